"""One word for one thing: the parameters of the package, and which of them mean the same."""

from __future__ import annotations

import inspect
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import voxpatch

#: What each concept is called, and what takes it.
CONCEPTS = {
    "overwrite": ["write", "convert", "StorageOptions", "export_dicom_seg"],
    "memory": ["Queue", "predict", "write", "convert"],
    "threads": ["Queue", "predict", "stats", "write", "convert"],
    "blend": ["GridAggregator", "predict"],
    "overlap": ["GridSampler", "plan_predict", "predict"],
    "patch_size": ["GridSampler", "predict", "UniformSampler", "WeightedSampler", "LabelSampler", "plan_predict"],
    "batch_size": ["Queue", "MixtureSampler", "predict"],
    "label_weights": ["LabelSampler"],
    "padding": ["Subject", "GridSampler", "predict"],
    "samples_per_subject": ["Queue"],
    "durability": ["predict"],
    "read_method": ["open"],
    "missing_chunks": ["open"],
    "values": ["open", "Subject", "GridSampler", "predict"],
    "placement": ["GridSampler", "predict"],
    "tolerance": ["Subject", "predict"],
    "same_grid": ["Subject", "predict"],
    "reduce": ["GridAggregator", "predict"],
    "dtype": ["Queue", "GridAggregator", "predict", "write", "convert"],
    "labels": ["GridAggregator", "predict", "stats", "export_dicom_seg"],
    "accumulator": ["GridAggregator", "predict"],
    "non_finite": ["GridAggregator", "predict"],
    "fill": ["GridAggregator", "predict"],
    "halo": ["GridAggregator", "predict"],
    "scale": ["GridAggregator", "predict"],
    "average_integers": ["GridAggregator", "predict"],
    "clip": ["GridAggregator", "predict", "write", "convert"],
    "border": ["UniformSampler", "WeightedSampler", "LabelSampler"],
    "empty": ["WeightedSampler", "LabelSampler"],
    "seed": ["Queue"],
    "transform": ["Queue"],
    "transform_threads": ["Queue"],
    "flip": ["Queue"],
    "permute": ["Queue"],
    "rotate": ["Queue"],
    "crop": ["Queue"],
    "normalize": ["Queue", "Within", "open", "predict"],
    "pin_memory": ["Queue"],
    "same_images": ["Queue"],
    "on_error": ["Queue"],
    "uneven": ["Queue"],
    "dry_run": ["predict", "convert"],
    "chunk": ["write", "convert", "StorageOptions"],
    "shard": ["write", "convert", "StorageOptions"],
    "codec": ["write", "convert", "StorageOptions"],
    "clevel": ["write", "convert", "StorageOptions"],
    "pyramid": ["write", "convert", "StorageOptions"],
    "levels": ["write", "convert", "StorageOptions"],
    "zarr": ["write", "convert", "StorageOptions"],
}
#: Other words for these concepts, of peers, of the command line's past, or of ours.
NOT_OURS = {
    "force", "replace", "max_bytes", "num_workers", "num_threads", "workers", "overlap_mode", "patch_overlap", "patch", "batch",
    "label_probabilities", "probability_map", "padding_mode", "samples_per_volume", "patches_per_volume", "durable", "io",
    "missing", "allow_mixed", "mode", "roi_size", "sw_batch_size", "overwrite_existing", "max_memory",
}  # fmt: skip


def parameters() -> dict[str, set[str]]:
    """The parameters of all that the package exports."""
    found = {
        name: set(inspect.signature(getattr(voxpatch, name)).parameters)
        for name in voxpatch.__all__
        if callable(getattr(voxpatch, name)) and name not in ("Volume", "VoxpatchError", "Sampler")
    }
    found["StorageOptions"] = set(voxpatch.files.StorageOptions.__annotations__)
    return found


def test_a_concept_has_one_word() -> None:
    found = parameters()
    takers = {concept: sorted(name for name, names in found.items() if concept in names) for concept in CONCEPTS}
    assert takers == {concept: sorted(names) for concept, names in CONCEPTS.items()}
    foreign = {name: names & NOT_OURS for name, names in found.items() if names & NOT_OURS}
    assert not foreign


def same(batch: Any) -> Any:
    return batch


def call(name: str, folder: pathlib.Path) -> Callable[..., object]:
    """Calls that are right but for the keyword they are given."""
    scan = np.zeros((8, 8, 8), np.float32)
    sampler = voxpatch.UniformSampler(4)
    grid = voxpatch.GridSampler(scan, 4)
    calls: dict[str, Callable[..., object]] = {
        "open": lambda **wrong: voxpatch.open(folder / "a.npy", **wrong),
        "write": lambda **wrong: voxpatch.write(folder / "b.npy", scan, **wrong),
        "convert": lambda **wrong: voxpatch.convert(folder / "a.npy", folder / "b.npy", **wrong),
        "predict": lambda **wrong: voxpatch.predict(same, scan, folder / "b.npy", 4, **wrong),
        "Queue": lambda **wrong: voxpatch.Queue([voxpatch.Subject(ct=scan)], sampler, 2, **wrong),
        "LazySubjects": lambda **wrong: voxpatch.LazySubjects(2, lambda n: {"ct": scan}, **wrong),
        "UniformSampler": lambda **wrong: voxpatch.UniformSampler(4, **wrong),
        "WeightedSampler": lambda **wrong: voxpatch.WeightedSampler(4, "weights", **wrong),
        "LabelSampler": lambda **wrong: voxpatch.LabelSampler(4, "label", **wrong),
        "MixtureSampler": lambda **wrong: voxpatch.MixtureSampler([(1, sampler)], **wrong),
        "GridSampler": lambda **wrong: voxpatch.GridSampler(scan, 4, **wrong),
        "GridAggregator": lambda **wrong: voxpatch.GridAggregator(grid, **wrong),
        "from_array": lambda **wrong: voxpatch.Volume.from_array(scan, **wrong),
    }
    return calls[name]


@pytest.mark.parametrize(
    "name",
    ["open", "write", "convert", "predict", "Queue", "LazySubjects", "UniformSampler", "WeightedSampler", "LabelSampler",
     "MixtureSampler", "GridSampler", "GridAggregator", "from_array"],
)  # fmt: skip
def test_another_name_is_a_type_error(name: str, tmp_path: pathlib.Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((8, 8, 8), np.float32))
    wrong = call(name, tmp_path)
    wrong()
    (tmp_path / "b.npy").unlink(missing_ok=True)
    for other in sorted(NOT_OURS):
        with pytest.raises(TypeError, match=rf"unexpected keyword argument '{other}'"):
            wrong(**{other: 1})
    assert not (tmp_path / "b.npy").exists(), "nothing was written"


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("open", {"missing_chunks": "x"}), ("open", {"read_method": "x"}), ("open", {"level": "x"}),
        ("write", {"memory": "x"}), ("write", {"threads": "x"}), ("write", {"clevel": "x"}), ("write", {"levels": 2}),
        ("write", {"codec": "x"}), ("write", {"pyramid": "x"}), ("write", {"zarr": 4}), ("write", {"chunk": "x"}),
        ("predict", {"overlap": "x"}), ("predict", {"durability": "x"}), ("predict", {"threads": "x"}),
        ("predict", {"memory": "x"}), ("predict", {"batch_size": "x"}), ("predict", {"padding": "x"}),
        ("predict", {"blend": "x"}), ("predict", {"reduce": "x"}), ("predict", {"placement": "x"}),
        ("Queue", {"threads": "x"}), ("Queue", {"memory": "x"}), ("Queue", {"uneven": "x"}), ("Queue", {"on_error": "x"}),
        ("GridSampler", {"overlap": "x"}), ("GridSampler", {"padding": "x"}), ("GridSampler", {"placement": "x"}),
        ("UniformSampler", {"border": "x"}), ("LabelSampler", {"empty": "x"}),
    ],
)  # fmt: skip
def test_an_error_names_the_parameter(name: str, wrong: dict[str, Any], tmp_path: pathlib.Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((8, 8, 8), np.float32))
    with pytest.raises((ValueError, TypeError), match=rf"\b{next(iter(wrong))}\b"):
        made: Any = call(name, tmp_path)(**wrong)
        if name.endswith("Sampler"):
            subject = voxpatch.Subject(ct=np.zeros((8, 8, 8), np.float32), label=np.ones((8, 8, 8), np.uint8))
            made[0] if name == "GridSampler" else next(made(subject))


def test_the_guide_s_names_and_defaults_are_python_s_too() -> None:
    guide = pathlib.Path(__file__).parents[2] / "docs/guide/command-line.md"
    rows = [line.split("|")[1:3] for line in guide.read_text().splitlines() if line.startswith("| `")]
    table = {name.strip(" `").replace("-", "_"): default.strip() for name, default in rows}
    options = {"patch_size", "overlap", "memory", "blend", "threads", "durability", "missing_chunks", "clevel", "label_weights"}
    assert options <= set(table)
    known = set().union(*parameters().values())
    assert not set(table) - known
    exported = [getattr(voxpatch, name) for name in ("open", "write", "predict", "GridSampler", "GridAggregator", "Queue", "UniformSampler")]
    signatures = [inspect.signature(one).parameters for one in exported]
    for name, default in table.items():
        given = {signature[name].default for signature in signatures if name in signature} - {None, inspect.Parameter.empty}
        spoken = {
            "half the patch": 0.5, "256 MiB": 256 << 20, "no": False, "0": 0, "1": 1, "3": 3, "128": "auto",
        }.get(default, default)  # fmt: skip
        assert given <= {spoken}, name
