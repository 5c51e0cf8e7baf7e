"""Statistics and normalizations, against numpy."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
import voxpatch

RANDOM = np.random.default_rng(3)
SHAPE = (9, 11, 13)
TYPES = ["bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float16", "float32", "float64"]
PERCENTILES = (0, 0.5, 25, 50, 99.5, 100)


def values(dtype: str, channels: int = 1) -> np.ndarray:
    wild = RANDOM.normal(0, 1, (channels, *SHAPE)) * 10.0 ** RANDOM.integers(-2, 4, (channels, *SHAPE))
    wild[RANDOM.random(wild.shape) < 0.3] = 0
    if dtype == "bool":
        return wild > 0
    if np.dtype(dtype).kind in "iu":
        info = np.iinfo(dtype)
        return np.clip(wild, max(info.min, -(2**40)), min(info.max, 2**40)).astype(dtype)
    return wild.astype(dtype)


def check(found: dict, own: np.ndarray) -> None:
    own = own.astype(float)
    assert found["count"] == own.size
    assert (found["minimum"], found["maximum"]) == (own.min(), own.max())
    assert found["mean"] == pytest.approx(own.mean(), rel=1e-9, abs=1e-9)
    assert found["std"] == pytest.approx(own.std(), rel=1e-9, abs=1e-9)
    for percent in PERCENTILES:
        expected = np.percentile(own, percent)
        low = np.percentile(own, percent, method="lower")
        high = np.percentile(own, percent, method="higher")
        near = found["percentile_error"] * max(abs(low), abs(high)) + 1e-9
        assert abs(found["percentiles"][str(percent)] - expected) <= near


@pytest.mark.parametrize("dtype", TYPES)
def test_statistics_are_those_of_numpy(dtype, tmp_path):
    scan, label = values(dtype, 2), RANDOM.integers(0, 4, SHAPE).astype(np.uint8)
    voxpatch.write(tmp_path / "scan.zarr", scan, chunk=5, shard=None)
    found = {}
    for threads in (1, 4):
        found[threads] = voxpatch.stats(
            tmp_path / "scan.zarr", label, ignore_label=3, percentiles=PERCENTILES, threads=threads
        )
    assert found[1] == found[4]
    volume = found[1]["volumes"][0]
    assert found[1]["all"]["channels"] == volume["channels"]
    kept = label != 3
    for channel, own in zip(volume["channels"], scan, strict=True):
        assert (channel["percentile_error"] == 0) == (np.dtype(dtype).itemsize <= 2)
        check(channel, own[kept])
        check(channel["nonzero"], own[kept & (own != 0)])
        check(channel["foreground"], own[kept & (label > 0)])
        assert list(channel["labels"]) == ["0", "1", "2"]
        for one in range(3):
            check(channel["labels"][str(one)], own[label == one])
    for one in range(3):
        at = np.argwhere(label == one)
        assert volume["labels"][str(one)] == {
            "voxels": len(at),
            "box": [*at.min(axis=0).tolist(), *(at.max(axis=0) + 1).tolist()],
        }
    at = np.argwhere((scan != 0).any(axis=0) & kept)
    assert volume["nonzero_box"] == [*at.min(axis=0).tolist(), *(at.max(axis=0) + 1).tolist()]


def test_several_volumes_are_merged_and_their_results_are_kept(tmp_path):
    scans = [values("int16")[0] for _ in range(5)]
    paths = [tmp_path / f"{n}.npy" for n in range(5)]
    for path, scan in zip(paths, scans):
        np.save(path, scan)
    results = tmp_path / "done"
    first = voxpatch.stats(paths[:3], percentiles=PERCENTILES, results=results)
    assert len(list(results.iterdir())) == 3
    # What was kept is used, and not measured again: a changed number comes back.
    for kept in results.iterdir():
        text = json.loads(kept.read_text())
        text["statistics"]["channels"][0][0][0] = 77
        kept.write_text(json.dumps(text, separators=(",", ":")))
    both = voxpatch.stats(paths, percentiles=PERCENTILES, results=results)
    assert [one["channels"][0]["not_finite"] for one in both["volumes"]] == [77, 77, 77, 0, 0]
    assert first["volumes"][0]["channels"][0]["mean"] == both["volumes"][0]["channels"][0]["mean"]
    check(both["all"]["channels"][0], np.stack(scans))
    np.save(paths[0], scans[0] + 1)
    again = voxpatch.stats(paths, percentiles=PERCENTILES, results=results)
    assert again["volumes"][0]["channels"][0]["not_finite"] == 0
    check(again["volumes"][0]["channels"][0], scans[0] + 1)
    next(results.iterdir()).write_text('{"input":[')
    assert len(voxpatch.stats(paths, results=results)["volumes"]) == 5


def test_wrong_arguments_are_refused():
    scan = np.zeros((4, 4, 4), np.float32)
    with pytest.raises(ValueError, match="one for each"):
        voxpatch.stats([scan, scan], [scan])
    with pytest.raises(ValueError, match="at least one"):
        voxpatch.stats([])
    with pytest.raises(ValueError, match="percentiles"):
        voxpatch.stats(scan, percentiles=[101])
    with pytest.raises(ValueError, match="0.5 is not a label"):
        voxpatch.stats(scan, scan + 0.5)


def test_every_normalization_is_that_of_numpy_in_training_and_prediction():
    scan = values("int16", 2)
    wide = scan.astype(float)

    def each(one):
        return np.stack([one(channel) for channel in wide])

    def nonzero(channel):
        own = channel[channel != 0]
        return np.where(channel == 0, 0, (channel - own.mean()) / own.std())

    def percentile(channel):
        low, high = np.percentile(channel, (2, 97.5))
        return (np.clip(channel, low, high) - low) / (high - low)

    for normalize, expected in [
        ("zscore", each(lambda own: (own - own.mean()) / own.std())),
        ("zscore:nonzero", each(nonzero)),
        ((-20, 300), each(lambda own: (np.clip(own, -20, 300) + 20) / 320)),
        (voxpatch.Percentile(2, 97.5), each(percentile)),
        (voxpatch.MeanStd(12, 3), (wide - 12) / 3),
        (voxpatch.NnunetCt(-50, 400, 12, 30), (np.clip(wide, -50, 400) - 12) / 30),
    ]:
        queue = voxpatch.Queue([voxpatch.Subject(ct=scan)], voxpatch.UniformSampler(SHAPE), 1, normalize=normalize)
        trained = next(iter(queue))["ct"]
        predicted = voxpatch.predict(lambda batch: batch, scan, None, SHAPE, normalize=normalize)
        assert (trained == predicted).all(), normalize
        assert np.abs(trained - expected).max() < 1e-3 * max(1, np.abs(expected).max()), normalize
    for wrong in [voxpatch.Percentile(5, 5), voxpatch.MeanStd(1, 0), voxpatch.NnunetCt(2, 1, 0, 1), "ct:0,1"]:
        with pytest.raises(ValueError, match="normalization"):
            voxpatch.predict(lambda batch: batch, scan, None, SHAPE, normalize=wrong)


def test_an_open_volume_is_normalized_as_in_training_and_prediction(tmp_path):
    scan = values("int16", 2)
    path = tmp_path / "scan.zarr"
    voxpatch.write(path, scan, chunk=8)
    mask = scan[0] > 20
    np.save(tmp_path / "mask.npy", mask)
    own = scan[:, mask].astype(float)
    z = ((scan.T - own.mean(1)) / own.std(1)).T
    for normalize, expected in [
        ("zscore", None),
        (["zscore", (-20, 300)], None),
        ([voxpatch.MeanStd(12, 3), "none"], np.stack([(scan[0] - 12) / 3, scan[1]])),
        (voxpatch.Within("zscore", tmp_path / "mask.npy"), z),
        (f"zscore@{tmp_path / 'mask.npy'}", z),
    ]:
        opened = voxpatch.open(path, normalize=normalize)
        assert opened.dtype == np.float32
        found = opened[:]
        predicted = voxpatch.predict(lambda batch: batch, path, None, SHAPE, normalize=normalize)
        assert (found == predicted).all(), normalize
        queue = voxpatch.Queue([voxpatch.Subject(ct=path)], voxpatch.UniformSampler(SHAPE), 1, normalize=normalize)
        assert (next(iter(queue))["ct"] == found).all(), normalize
        sampler = voxpatch.GridSampler(opened, SHAPE)
        assert (sampler[0]["image"] == found).all()
        if expected is not None:
            assert np.abs(found - expected).max() < 1e-3, normalize
        # A pickled volume takes its numbers along.
        again = pickle.loads(pickle.dumps(opened))
        assert (again[:] == found).all()
    # Only the channels that are kept are measured.
    second = voxpatch.open(path, channels=1, normalize="zscore")
    wide = scan[1].astype(float)
    assert np.abs(second[:][0] - (wide - wide.mean()) / wide.std()).max() < 1e-3
    assert (pickle.loads(pickle.dumps(second))[:] == second[:]).all()
    with pytest.raises(ValueError, match="values"):
        voxpatch.open(path, values="stored", normalize="zscore")
    with pytest.raises(ValueError, match="2 channels"):
        voxpatch.open(path, normalize=["zscore"])
    with pytest.raises(ValueError, match="mask is only used"):
        voxpatch.open(path, normalize=voxpatch.Within((0, 1), tmp_path / "mask.npy"))


def test_the_mask_of_a_normalization_is_a_volume_of_the_subject():
    scan = values("int16")
    for threshold in (20, 60):
        mask = scan[0] > threshold
        own = scan[0][mask].astype(float)
        subject = voxpatch.Subject(ct=scan, brain=mask.astype(np.uint8))
        queue = voxpatch.Queue(
            [subject], voxpatch.UniformSampler(SHAPE), 1, normalize={"ct": voxpatch.Within("zscore", "brain")}
        )
        found = next(iter(queue))
        assert np.abs(found["ct"][0] - (scan[0] - own.mean()) / own.std()).max() < 1e-3
        assert (found["brain"][0] == mask).all()
