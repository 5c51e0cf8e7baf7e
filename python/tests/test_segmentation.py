"""Label maps as DICOM segmentations, read back by highdicom, pydicom and SimpleITK."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

import voxpatch

highdicom = pytest.importorskip("highdicom", reason="highdicom writes segmentations")
pydicom = pytest.importorskip("pydicom")

from test_dicom import Series, multiframe, write  # noqa: E402


#: The groups of a frame with its segment and its position.
NAMES = ("SegmentIdentificationSequence", "PlanePositionSequence")


def made(folder: Path, shape: tuple[int, int, int] = (6, 20, 24)) -> tuple[voxpatch.Volume, np.ndarray]:
    """Write a series, and return its volume and labels on its grid."""
    write(folder, Series(shape=shape, extra={"StudyInstanceUID": pydicom.uid.generate_uid()}))
    image = voxpatch.open(folder)
    labels = np.zeros(shape, np.uint8)
    labels[1:4, 3:9, 5:15] = 1
    labels[2:5, 10:18, 2:8] = 7
    labels[0, 0, 0] = 3
    return image, labels


def masks(path: Path, image: voxpatch.Volume) -> dict[str, np.ndarray]:
    """Return the mask of each segment on the grid of a volume, from the position of each frame."""
    dataset = pydicom.dcmread(path)
    to_voxels = np.linalg.inv(np.diag([-1, -1, 1, 1]) @ np.asarray(image.affine))
    names = [segment.SegmentLabel for segment in dataset.SegmentSequence]
    found = {name: np.zeros(image.shape[1:], bool) for name in names}
    frames = dataset.pixel_array.reshape(-1, *image.shape[2:])
    for frame, groups in zip(frames, dataset.PerFrameFunctionalGroupsSequence, strict=True):
        # What all frames share is not repeated.
        shared = dataset.SharedFunctionalGroupsSequence[0]
        group = {name: (groups if name in groups else shared)[name].value[0] for name in NAMES}
        number = group[NAMES[0]].ReferencedSegmentNumber
        place = to_voxels @ [*map(float, group[NAMES[1]].ImagePositionPatient), 1]
        assert np.abs(place[:2]).max() < 1e-3 and abs(place[2] - round(place[2])) < 1e-3
        found[names[number - 1]][round(place[2])] |= frame.astype(bool)
    return found


def test_segments_are_where_the_labels_are(tmp_path):
    image, labels = made(tmp_path / "ct")
    voxpatch.write(tmp_path / "labels.nii.gz", labels, affine=image.affine)
    out = tmp_path / "seg.dcm"
    numbers = voxpatch.export_dicom_seg(tmp_path / "labels.nii.gz", tmp_path / "ct", out)
    assert numbers == {1: 1, 3: 2, 7: 3}
    found = masks(out, image)
    assert list(found) == ["Label 1", "Label 3", "Label 7"]
    for value, mask in zip((1, 3, 7), found.values(), strict=True):
        assert np.array_equal(mask, labels == value), value
    dataset = highdicom.seg.segread(out)
    sources = {str(pydicom.dcmread(path, stop_before_pixels=True).SOPInstanceUID) for path in (tmp_path / "ct").iterdir()}
    assert {str(uid) for _, _, uid in dataset.get_source_image_uids()} == sources
    with pytest.raises(FileExistsError):
        voxpatch.export_dicom_seg(tmp_path / "labels.nii.gz", tmp_path / "ct", out)
    numbers = voxpatch.export_dicom_seg(
        tmp_path / "labels.nii.gz", tmp_path / "ct", out, segments={7: "lesion"}, overwrite=True
    )
    assert numbers == {7: 1} and np.array_equal(masks(out, image)["lesion"], labels == 7)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ct", "labels.nii.gz", "seg.dcm"]


def test_a_prediction_goes_back_to_its_series(tmp_path):
    """The example of the README: from the folder of a series to a NIfTI file and back."""
    image, _ = made(tmp_path / "ct")
    out = tmp_path / "air.nii.gz"
    model = lambda batch: np.concatenate([batch * 0, batch < 0], axis=1).astype("f4")  # noqa: E731
    voxpatch.predict(model, tmp_path / "ct", out, 4, 2, reduce="argmax")
    voxpatch.export_dicom_seg(out, tmp_path / "ct", tmp_path / "air.dcm", segments={1: "Air"})
    expected = image[0] < 0
    assert 0 < expected.sum() < expected.size
    assert np.array_equal(masks(tmp_path / "air.dcm", image)["Air"], expected)
    source, made_of = (pydicom.dcmread(path) for path in (tmp_path / "ct" / "001", tmp_path / "air.dcm"))
    for name in ("PatientName", "PatientID", "StudyInstanceUID"):
        assert source[name].value == made_of[name].value, name


def test_segments_have_codes(tmp_path):
    image, labels = made(tmp_path / "ct")
    voxpatch.write(tmp_path / "labels.nii", labels, affine=image.affine)
    out, lung = tmp_path / "seg.dcm", ("39607008", "SCT", "Lung structure")
    segments = {
        1: {"label": "Lung", "type": lung},
        3: "plain",
        7: {
            "label": "Nodule", "category": ("49755003", "SCT", "Morphologically Altered Structure"),
            "type": ("27925004", "SCT", "Nodule"),
        },
    }  # fmt: skip
    voxpatch.export_dicom_seg(tmp_path / "labels.nii", tmp_path / "ct", out, segments=segments)
    found = []
    for segment in pydicom.dcmread(out).SegmentSequence:
        codes = [segment.SegmentedPropertyCategoryCodeSequence[0], segment.SegmentedPropertyTypeCodeSequence[0]]
        found.append((segment.SegmentLabel, *((c.CodeValue, c.CodingSchemeDesignator, c.CodeMeaning) for c in codes)))
    usual = ("123037004", "SCT", "Anatomical Structure")
    assert found == [("Lung", usual, lung), ("plain", usual, usual), tuple(segments[7].values())]
    for wrong in [
        {"label": "Lung", "type": "Lung"}, {"type": lung}, {"label": "Lung", "kind": lung}, 3,
        {"label": "Lung", "category": ("1", "SCT")}, {"label": "Lung", "type": ("1", "SCT", "")},
    ]:  # fmt: skip
        with pytest.raises(voxpatch.VoxpatchError, match="segment of label 1"):
            voxpatch.export_dicom_seg(
                tmp_path / "labels.nii", tmp_path / "ct", tmp_path / "no.dcm", segments={1: wrong}
            )
    assert not (tmp_path / "no.dcm").exists()


def test_the_place_is_that_of_simpleitk(tmp_path):
    itk = pytest.importorskip("SimpleITK")
    image, labels = made(tmp_path / "ct")
    voxpatch.write(tmp_path / "labels.zarr", (labels == 1).astype(np.uint8), affine=image.affine)
    out = tmp_path / "seg.dcm"
    voxpatch.export_dicom_seg(tmp_path / "labels.zarr", tmp_path / "ct", out)
    found = itk.ReadImage(str(out))
    voxels = itk.GetArrayFromImage(found) > 0
    assert voxels.sum() == (labels == 1).sum()
    # GDCM takes the frames that are there as one volume: the first voxel of the mask has the same place.
    z, y, x = np.argwhere(voxels)[0]
    place = found.TransformIndexToPhysicalPoint((int(x), int(y), int(z)))
    own = np.diag([-1, -1, 1, 1]) @ np.asarray(image.affine)
    ours = [own @ [x, y, z, 1] for z, y, x in np.argwhere(labels == 1)]
    nearest = min(float(np.abs(np.asarray(place) - one[:3]).max()) for one in ours)
    assert nearest < 1e-2


def test_an_enhanced_file_is_a_source(tmp_path):
    path = tmp_path / "one.dcm"
    multiframe(path, Series(shape=(4, 16, 18)))
    dataset = pydicom.dcmread(path)
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = pydicom.uid.EnhancedCTImageStorage
    dataset.save_as(path)
    image = voxpatch.open(path)
    labels = np.zeros(image.shape[1:], np.uint8)
    labels[1:3, 2:9, 3:7] = 2
    voxpatch.write(tmp_path / "labels.nii", labels, affine=image.affine)
    numbers = voxpatch.export_dicom_seg(tmp_path / "labels.nii", path, tmp_path / "seg.dcm")
    assert numbers == {2: 1}
    assert np.array_equal(masks(tmp_path / "seg.dcm", image)["Label 2"], labels == 2)


def test_labels_that_do_not_belong_to_the_series_are_refused(tmp_path):
    image, labels = made(tmp_path / "ct")
    moved = np.asarray(image.affine).copy()
    moved[2, 3] += 1.0
    out = tmp_path / "seg.dcm"
    for name, voxels, affine, word in [
        ("moved.nii", labels, moved, "voxels away"),
        ("small.nii", labels[:-1], image.affine, "predict on the grid"),
        ("empty.nii", labels * 0, image.affine, "no segment"),
        ("two.zarr", np.stack([labels] * 2), image.affine, "channels"),
        ("half.nii", labels.astype("f4") / 2, image.affine, "whole numbers"),
    ]:
        voxpatch.write(tmp_path / name, voxels, affine=affine)
        with pytest.raises(voxpatch.VoxpatchError, match=word):
            voxpatch.export_dicom_seg(tmp_path / name, tmp_path / "ct", out)
    voxpatch.write(tmp_path / "labels.nii", labels, affine=image.affine)
    with pytest.raises(voxpatch.VoxpatchError, match="background"):
        voxpatch.export_dicom_seg(tmp_path / "labels.nii", tmp_path / "ct", out, segments={0: "air"})
    assert not out.exists()


@pytest.mark.skipif("VOXPATCH_TEST_DATA" not in os.environ, reason="no real scans")
def test_a_real_series(tmp_path):
    folder = Path(os.environ["VOXPATCH_TEST_DATA"]) / "ct_chest_lidc0314_dicom"
    if not folder.exists():
        pytest.skip("the series is not there")
    image = voxpatch.open(folder)
    labels = (image[0] < -500).astype(np.uint8)
    voxpatch.write(tmp_path / "labels.nii.gz", labels, affine=image.affine)
    voxpatch.export_dicom_seg(tmp_path / "labels.nii.gz", folder, tmp_path / "seg.dcm", segments={1: "air"})
    assert np.array_equal(masks(tmp_path / "seg.dcm", image)["air"], labels == 1)
