"""Label maps as DICOM segmentations of the series that they were made from, written by highdicom."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, cast

from ._voxpatch import Volume, __version__
from .errors import InvalidError
from .files import open as open_volume

if TYPE_CHECKING:
    import numpy as np

__all__ = ["SegmentCodes", "export_dicom_seg"]

#: The category and the type of a segment without codes: value, scheme, meaning.
ANATOMICAL_STRUCTURE = ("123037004", "SCT", "Anatomical Structure")


class _Label(TypedDict):
    #: The name.
    label: str


class SegmentCodes(_Label, total=False):
    """A segment of a DICOM segmentation: its name, and codes of what it is as (value, scheme, meaning)."""

    #: The category, such as ``("49755003", "SCT", "Morphologically Altered Structure")``.
    category: tuple[str, str, str]
    #: The type, such as ``("39607008", "SCT", "Lung structure")``.
    type: tuple[str, str, str]

#: Distance in voxels up to which two grids are the same; files of NIfTI round their affine.
TOLERANCE = 1e-2

#: Attributes of patient and study that are there in every segmentation, empty if need be.
MAY_BE_EMPTY = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyID", "StudyDate", "StudyTime", "AccessionNumber",
    "ReferringPhysicianName",
)  # fmt: skip

#: The diagonal of the map from millimeters in RAS+, as affines of this package are, to those of DICOM.
TO_DICOM = (-1.0, -1.0, 1.0, 1.0)


def export_dicom_seg(
    labels: str | os.PathLike[str] | Volume,
    series: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    segments: Mapping[int, str | SegmentCodes] | None = None,
    series_uid: str | None = None,
    description: str = "Segmentation",
    overwrite: bool = False,
) -> dict[int, int]:
    """Write a label map as a DICOM segmentation (SEG) that belongs to the series which it was predicted from.

    Needs highdicom (``pip install highdicom``). The segmentation has binary segments, refers to the frames of the
    series, and has its patient and study. Labels are read whole: one byte for each voxel.

    Parameters
    ----------
    labels : path or Volume
        The labels, one channel of whole numbers from 0 to 65535, on the grid of the series. 0 is background.
    series : path
        The folder of the series, its ``DICOMDIR``, or its enhanced multi-frame file.
    out : path
        The file to write.
    segments : mapping of int to str or SegmentCodes, optional
        The names of the labels to write, or their names and codes. Without it, all labels above 0 that occur, as
        ``"Label 1"`` and so on. Category and type of a segment without codes are "Anatomical Structure".
    series_uid : str, optional
        The series, if there are several.
    description : str, optional
        The series description of the segmentation.
    overwrite : bool, optional
        Whether an existing file may be replaced.

    Returns
    -------
    dict of int to int
        The segment number of each label. DICOM counts segments from 1, without gaps.

    Raises
    ------
    VoxpatchError
        If the labels have a different grid than the series, or nothing to write.

    Examples
    --------
    >>> voxpatch.export_dicom_seg("lungs.nii.gz", "ct", "lungs.dcm", segments={1: "Lung"})  # doctest: +SKIP
    {1: 1}
    >>> lung = {"label": "Lung", "type": ("39607008", "SCT", "Lung structure")}
    >>> voxpatch.export_dicom_seg("lungs.nii.gz", "ct", "lungs.dcm", segments={1: lung})  # doctest: +SKIP
    {1: 1}
    """
    try:
        import highdicom  # noqa: F401
        import numpy as np
        import pydicom
    except ImportError as error:
        raise ImportError("export_dicom_seg needs highdicom: pip install highdicom") from error
    target = Path(out)
    if target.exists() and not overwrite:
        raise FileExistsError(f"{target} exists: give overwrite=True to replace it")
    image = open_volume(series, series=series_uid) if series_uid else open_volume(series)
    volume = labels if isinstance(labels, Volume) else open_volume(labels)
    voxels = _labels(volume, image)
    sources = _sources(Path(series), series_uid, pydicom)
    planes = _planes(sources, image)
    present = {int(value) for value in np.unique(voxels)} - {0}
    chosen = dict(segments) if segments is not None else {value: f"Label {value}" for value in sorted(present)}
    if not chosen or 0 in chosen:
        raise InvalidError(
            "there is no segment to write: all labels are 0" if not chosen else "segments has 0, which is background"
        )
    described = {value: _described(value, segment) for value, segment in chosen.items()}
    numbers = {value: n for n, value in enumerate(sorted(chosen), 1)}
    table = np.zeros(max(int(voxels.max(initial=0)), *numbers) + 1, np.uint16)
    for value, number in numbers.items():
        table[value] = number
    frames = table[voxels][planes]
    if len(numbers) < 256:
        frames = frames.astype(np.uint8)
    dataset = _segmentation(sources, frames, [described[value] for value in numbers], description)
    part = target.with_name(f".{target.name}.partial")
    try:
        dataset.save_as(part)
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)
    return numbers


def _labels(volume: Volume, image: Volume) -> np.ndarray[Any, np.dtype[Any]]:
    """Return the voxels of a label map, after checking that it has the grid of an image."""
    import numpy as np

    if volume.shape[0] != 1:
        raise InvalidError(f"the labels have {volume.shape[0]} channels: give a label map with one")
    if tuple(volume.shape[1:]) != tuple(image.shape[1:]):
        raise InvalidError(
            f"the labels have {tuple(volume.shape[1:])} voxels (z, y, x), the series has {tuple(image.shape[1:])}: "
            "predict on the grid of the series, or with output_grid='source'"
        )
    corners = np.array([[x, y, z, 1] for x in (0, 1) for y in (0, 1) for z in (0, 1)], float)
    corners[:, :3] *= np.array(image.shape[:0:-1]) - 1
    own, other = (np.asarray(one.affine) for one in (volume, image))
    apart = np.abs(np.linalg.solve(other, own @ corners.T) - corners.T).max()
    if not apart <= TOLERANCE:
        raise InvalidError(
            f"the labels are up to {apart:.3g} voxels away from the series: they have another grid or orientation"
        )
    voxels = volume[0]
    if voxels.dtype.kind == "f":
        whole = voxels.astype(np.int64)
        if not np.array_equal(whole, voxels):
            raise InvalidError("the labels are not whole numbers")
        voxels = whole
    if voxels.size and (int(voxels.min()) < 0 or int(voxels.max()) > 65535):
        raise InvalidError("labels must be from 0 to 65535")
    return cast("np.ndarray[Any, np.dtype[Any]]", voxels.astype(np.uint16))


def _files(path: Path) -> Iterator[Path]:
    """Yield the files that a series may be in."""
    if path.is_file() and path.name.upper() != "DICOMDIR":
        yield path
        return
    for above, _, names in os.walk(path if path.is_dir() else path.parent):
        for name in sorted(names):
            if name.upper() != "DICOMDIR":
                yield Path(above, name)


def _sources(path: Path, series_uid: str | None, pydicom: Any) -> list[Any]:
    """Return the datasets of a series without their pixels."""
    found: dict[str, Any] = {}
    for file in _files(path):
        try:
            dataset = pydicom.dcmread(file, stop_before_pixels=True)
        except (pydicom.errors.InvalidDicomError, IsADirectoryError):
            continue
        is_image = "Rows" in dataset and "SOPInstanceUID" in dataset
        if is_image and (series_uid is None or dataset.get("SeriesInstanceUID") == series_uid):
            # A segmentation repeats what it must have; a source may lack what may be empty.
            for name in MAY_BE_EMPTY:
                if name not in dataset:
                    setattr(dataset, name, "")
            found[str(dataset.SOPInstanceUID)] = dataset
    sources = list(found.values())
    for dataset in sources[1:]:
        # Tools that remove names of patients may give each slice its own; the positions were checked on opening.
        dataset.FrameOfReferenceUID = sources[0].FrameOfReferenceUID
    return sources


def _positions(sources: list[Any]) -> list[Any]:
    """Return the position of the first voxel of each frame."""
    positions = []
    for dataset in sources:
        if "PerFrameFunctionalGroupsSequence" in dataset:
            groups = dataset.PerFrameFunctionalGroupsSequence
            positions += [group.PlanePositionSequence[0].ImagePositionPatient for group in groups]
        else:
            positions.append(dataset.ImagePositionPatient)
    return positions


def _planes(sources: list[Any], image: Volume) -> list[int]:
    """Return the slice of the volume that each frame of the series is."""
    import numpy as np

    if not sources:
        raise InvalidError("the series has no images")
    to_voxels = np.linalg.inv(np.diag(TO_DICOM) @ np.asarray(image.affine))
    planes = []
    for position in _positions(sources):
        place = to_voxels @ np.array([*map(float, position), 1.0])
        plane = round(place[2])
        near = np.abs(place[:3] - [0, 0, plane]).max() < 0.1
        if not near or not 0 <= plane < image.shape[1]:
            raise InvalidError("a frame of the series is not a slice of the volume that is read from it")
        planes.append(plane)
    if sorted(planes) != list(range(image.shape[1])):
        raise InvalidError("the frames of the series are not the slices of one volume (several series or time points?)")
    return planes


def _described(value: int, segment: str | SegmentCodes) -> SegmentCodes:
    """Return the name and the codes of a segment, after checking them."""
    given: SegmentCodes = {"label": segment} if isinstance(segment, str) else segment
    known = {"label", "category", "type"}
    if not isinstance(given, Mapping) or not isinstance(given.get("label"), str) or not set(given) <= known:
        raise InvalidError(f"the segment of label {value} is {segment!r}: give its name, or a dict of {sorted(known)}")
    for name in ("category", "type"):
        code = given.get(name, ANATOMICAL_STRUCTURE)
        is_code = isinstance(code, tuple | list) and len(code) == 3 and all(isinstance(part, str) and part for part in code)
        if not is_code:
            raise InvalidError(
                f"the {name} of the segment of label {value} is {code!r}: give (value, scheme, meaning), like "
                f"{ANATOMICAL_STRUCTURE}"
            )
    return given


def _segmentation(sources: list[Any], frames: Any, segments: list[SegmentCodes], description: str) -> Any:
    """Return the dataset of a segmentation."""
    import highdicom
    from highdicom import seg
    from pydicom.sr.codedict import codes

    algorithm = highdicom.AlgorithmIdentificationSequence(
        name="voxpatch", version=__version__, family=codes.cid7162.ArtificialIntelligence
    )
    concept: Any = highdicom.sr.CodedConcept
    described = [
        seg.SegmentDescription(
            segment_number=n,
            segment_label=segment["label"][:64],
            segmented_property_category=concept(*segment.get("category", ANATOMICAL_STRUCTURE)),
            segmented_property_type=concept(*segment.get("type", ANATOMICAL_STRUCTURE)),
            algorithm_type=seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=algorithm,
        )
        for n, segment in enumerate(segments, 1)
    ]
    return seg.Segmentation(
        source_images=sources,
        pixel_array=frames,
        segmentation_type=seg.SegmentationTypeValues.BINARY,
        segment_descriptions=described,
        series_instance_uid=highdicom.UID(),
        series_number=300,
        sop_instance_uid=highdicom.UID(),
        instance_number=1,
        manufacturer="voxpatch",
        manufacturer_model_name="voxpatch",
        software_versions=__version__,
        device_serial_number="0",
        series_description=description[:64],
        omit_empty_frames=True,
    )
