"""DICOM series of many kinds, written by pydicom, against SimpleITK and the voxels that were written."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

import voxpatch
from damage import check_damage, total

pydicom = pytest.importorskip("pydicom")
from pydicom import uid  # noqa: E402
from pydicom.dataset import Dataset, FileMetaDataset  # noqa: E402

SECRET = "Doe^Jane"
AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
SAGITTAL = (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)
CORONAL = (1.0, 0.0, 0.0, 0.0, 0.0, -1.0)
# A rotation about x by the angle with cosine 0.8, and one about all axes.
TURNED = (1.0, 0.0, 0.0, 0.0, 0.8, 0.6)
OBLIQUE = (2 / 3, 2 / 3, 1 / 3, -2 / 3, 1 / 3, 2 / 3)


@dataclass
class Series:
    """A series to write."""

    dtype: str = "int16"
    shape: tuple[int, int, int] = (5, 6, 7)
    orientation: tuple[float, ...] = AXIAL
    spacing: tuple[float, float, float] = (2.5, 0.5, 0.75)
    origin: tuple[float, float, float] = (-10.25, 20.5, -30.0)
    slope: float | list[float] = 1.0
    intercept: float | list[float] = 0.0
    syntax: str = uid.ExplicitVRLittleEndian
    stored: int | None = None
    photometric: str = "MONOCHROME2"
    samples: int = 1
    planar: int = 0
    #: Positions of the slices in units of the spacing; 0, 1, 2 ... if none are given.
    places: list[float] | None = None
    #: Shift of each slice along the rows, in mm.
    tilt: float = 0.0
    uid: str = ""
    modality: str = "CT"
    description: str = "made"
    extra: dict = field(default_factory=dict)
    seed: int = 1
    reverse: bool = False
    multiframe: bool = False
    bare: bool = False

    def voxels(self) -> np.ndarray:
        """Return the stored values, c, z, y, x."""
        rng = np.random.default_rng(self.seed)
        info = np.iinfo(self.dtype)
        bits = self.stored or info.bits
        low, high = (-(1 << bits - 1), 1 << bits - 1) if info.min < 0 else (0, 1 << bits)
        shape = (self.samples, *self.shape)
        return rng.integers(low, high, shape, dtype=np.int64).astype(self.dtype)

    def position(self, z: int) -> list[float]:
        row, column = np.array(self.orientation[:3]), np.array(self.orientation[3:])
        place = z if self.places is None else self.places[z]
        at = np.array(self.origin) + np.cross(row, column) * place * self.spacing[0] + row * self.tilt * z
        return [round(float(n), 9) for n in at]


def write(folder: Path, series: Series) -> np.ndarray:
    """Write a series into a folder, and return its stored values."""
    folder.mkdir(parents=True, exist_ok=True)
    voxels = series.voxels()
    series.uid = series.uid or uid.generate_uid()
    count = voxels.shape[1]
    numbers = list(range(count))
    if series.reverse:
        numbers.reverse()
    for n, z in enumerate(numbers):
        data = dataset(series)
        data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = uid.generate_uid()
        data.InstanceNumber = n + 1
        data.ImagePositionPatient = series.position(z)
        data.ImageOrientationPatient = list(series.orientation)
        data.PixelSpacing = list(series.spacing[1:])
        each = lambda given: given[z] if isinstance(given, list) else given  # noqa: E731
        data.RescaleSlope, data.RescaleIntercept = each(series.slope), each(series.intercept)
        for name, value in series.extra.items():
            setattr(data, name, each(value))
        frame = voxels[:, z]
        pixels(data, series, frame[None])
        save(folder / f"{n:03}{'' if n % 2 else '.dcm'}", data, series)
    return voxels


def dataset(series: Series) -> Dataset:
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = uid.CTImageStorage
    data.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    data.PatientName, data.PatientID, data.PatientBirthDate = SECRET, "SECRET-1", "19700101"
    data.Modality, data.SeriesDescription = series.modality, series.description
    data.SeriesInstanceUID, data.StudyInstanceUID = series.uid, uid.generate_uid()
    data.FrameOfReferenceUID = uid.generate_uid()
    # Sequences of defined and undefined length come before the pixel data.
    inner = Dataset()
    inner.ImagePositionPatient, inner.PixelSpacing = [99.0, 99.0, 99.0], [9.0, 9.0]
    data.ReferencedImageSequence = [inner, Dataset()]
    data["ReferencedImageSequence"].is_undefined_length = series.seed % 2 == 0
    data.SliceThickness = series.spacing[0]
    return data


def pixels(data: Dataset, series: Series, frames: np.ndarray) -> None:
    """Set the pixel data from frames, c, y, x."""
    bits = frames.dtype.itemsize * 8
    data.Rows, data.Columns = frames.shape[2:]
    data.SamplesPerPixel, data.PhotometricInterpretation = series.samples, series.photometric
    data.BitsAllocated, data.BitsStored = bits, series.stored or bits
    data.HighBit = data.BitsStored - 1
    data.PixelRepresentation = int(frames.dtype.kind == "i")
    if series.samples > 1:
        data.PlanarConfiguration = series.planar
    if len(frames) > 1:
        data.NumberOfFrames = len(frames)
    together = frames[:, 0] if series.samples == 1 else frames
    if series.samples > 1 and not series.planar:
        together = frames.transpose(0, 2, 3, 1)
    data.PixelData = np.ascontiguousarray(together).tobytes()
    if len(data.PixelData) % 2:
        data.PixelData += b"\0"
    data["PixelData"].VR = "OW" if bits > 8 else "OB"
    syntax = uid.UID(series.syntax)
    if syntax.is_encapsulated:
        data.compress(syntax, np.ascontiguousarray(together if len(frames) > 1 else together[0]), generate_instance_uid=False)


def save(path: Path, data: Dataset, series: Series) -> None:
    syntax = uid.UID(series.syntax)
    data.file_meta.TransferSyntaxUID = syntax
    if syntax == uid.ExplicitVRBigEndian:
        word = np.frombuffer(data.PixelData, f"<u{data.BitsAllocated // 8}")
        data.PixelData = word.byteswap().tobytes()
    if series.bare:
        del data.file_meta.MediaStorageSOPClassUID
        pydicom.dcmwrite(path, data, implicit_vr=True, little_endian=True, enforce_file_format=False)
        content = path.read_bytes()
        start = content.find(b"\x08\x00\x16\x00")
        path.write_bytes(content[start:])
        return
    pydicom.dcmwrite(path, data, enforce_file_format=True)


def by_simpleitk(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read a series with SimpleITK: its values, and its affine in RAS+."""
    sitk = pytest.importorskip("SimpleITK")
    reader = sitk.ImageSeriesReader()
    names = reader.GetGDCMSeriesFileNames(str(folder))
    reader.SetFileNames(names)
    image = reader.Execute()
    direction = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = direction, image.GetOrigin()
    return sitk.GetArrayFromImage(image), np.diag([-1, -1, 1, 1]) @ affine


def real(series: Series, voxels: np.ndarray) -> np.ndarray:
    """Return the real values of stored ones."""
    each = lambda given: np.array(given, np.float64).reshape(1, -1, 1, 1)  # noqa: E731
    return voxels * each(series.slope) + each(series.intercept)


CT = {"slope": 1.0, "intercept": -1024.0}
KINDS = {
    "int16": Series(),
    "uint16": Series(dtype="uint16", stored=12),
    "int16 of 12 bits": Series(stored=12, seed=2),
    "uint8": Series(dtype="uint8", modality="OT"),
    "ct": Series(stored=12, dtype="uint16", **CT),
    "implicit": Series(stored=12, syntax=uid.ImplicitVRLittleEndian, seed=2, **CT),
    "implicit, odd": Series(syntax=uid.ImplicitVRLittleEndian, shape=(3, 5, 5)),
    "big-endian": Series(syntax=uid.ExplicitVRBigEndian),
    "deflated": Series(syntax=uid.DeflatedExplicitVRLittleEndian, seed=2),
    "rle int16": Series(syntax=uid.RLELossless),
    "rle uint8": Series(syntax=uid.RLELossless, dtype="uint8"),
    "rle 12 bits": Series(syntax=uid.RLELossless, dtype="uint16", stored=12),
    "jpeg 2000 int16": Series(syntax=uid.JPEG2000Lossless, shape=(3, 33, 40)),
    "jpeg 2000 uint16": Series(syntax=uid.JPEG2000Lossless, dtype="uint16", shape=(3, 33, 40)),
    "jpeg 2000 uint8": Series(syntax=uid.JPEG2000Lossless, dtype="uint8", shape=(3, 40, 33)),
    "jpeg 2000 12 bits": Series(syntax=uid.JPEG2000Lossless, dtype="uint16", stored=12, shape=(3, 64, 64)),
    "jpeg 2000 signed 12 bits": Series(syntax=uid.JPEG2000Lossless, stored=12, shape=(3, 32, 32)),
    "sagittal": Series(orientation=SAGITTAL),
    "coronal": Series(orientation=CORONAL),
    "turned": Series(orientation=TURNED),
    "oblique": Series(orientation=OBLIQUE),
    "oblique ct, rle": Series(stored=12, orientation=OBLIQUE, syntax=uid.RLELossless, **CT),
    "reverse names": Series(reverse=True),
    "fractions": Series(slope=0.5, intercept=0.25),
    "negative slope": Series(slope=-2.0, intercept=3.0),
    "pet": Series(modality="PT", dtype="uint16", slope=[0.5, 0.25, 1.5, 2.0, 0.125], intercept=[0.0] * 5),
    "pet, rle": Series(
        modality="PT", syntax=uid.RLELossless, slope=[1.0, 2.0, 3.0, 4.0, 0.1], intercept=[0.0, 1.0, 0.0, 0.0, 0.5]
    ),
    "one slice": Series(shape=(1, 6, 7)),
    "two slices": Series(shape=(2, 6, 7)),
    "many slices": Series(shape=(60, 4, 4), spacing=(0.6, 0.7, 0.7)),
    "rounded positions": Series(shape=(9, 4, 4), spacing=(3.0, 1.0, 1.0), places=[0, 1.01, 2, 2.99, 4, 5, 6.01, 7, 8]),
    "thin": Series(spacing=(0.05, 0.01, 0.02)),
    "thick": Series(spacing=(50.0, 10.0, 20.0)),
    "far": Series(origin=(1234.5, -2345.25, 9999.0)),
    "monochrome1 kept": Series(photometric="MONOCHROME1", dtype="uint16", stored=12),
    "mr": Series(modality="MR", extra={"EchoTime": 30.0, "RepetitionTime": 2000.0}),
    "us": Series(modality="US", dtype="uint8", spacing=(1.0, 0.3, 0.3)),
    "large": Series(shape=(3, 128, 130)),
    "flat": Series(shape=(3, 1, 64)),
    "narrow": Series(shape=(3, 64, 1)),
    "bare": Series(bare=True, syntax=uid.ImplicitVRLittleEndian),
    "jpeg 2000 coronal": Series(syntax=uid.JPEG2000Lossless, orientation=CORONAL, shape=(4, 32, 34)),
    "deflated ct, oblique": Series(
        stored=12, dtype="uint16", orientation=OBLIQUE, syntax=uid.DeflatedExplicitVRLittleEndian, **CT
    ),
    "rle sagittal, reverse": Series(syntax=uid.RLELossless, orientation=SAGITTAL, reverse=True),
    "big-endian 12 bits": Series(syntax=uid.ExplicitVRBigEndian, dtype="uint16", stored=12, seed=2),
    "implicit, turned": Series(syntax=uid.ImplicitVRLittleEndian, orientation=TURNED, dtype="uint16"),
    "mr, rle, one slice": Series(modality="MR", syntax=uid.RLELossless, shape=(1, 9, 7)),
    "uint32": Series(dtype="uint32", modality="OT"),
    "int8": Series(dtype="int8", modality="OT"),
}


def test_series_have_the_voxels_and_the_place_that_simpleitk_gives_them(tmp_path):
    assert len(KINDS) >= 40
    compared = 0
    for name, series in KINDS.items():
        folder = tmp_path / name / "deep" / "er"
        stored = write(folder, series)
        volume = voxpatch.open(folder.parent.parent)
        expected = real(series, stored)
        assert volume.shape == expected.shape, name
        found = volume[...]
        if name.startswith("ct"):
            assert found.dtype == np.int16, name
        tolerance = 1e-6 * np.abs(expected).max() if found.dtype.kind == "f" else 0
        assert np.abs(found - expected).max() <= tolerance, name
        assert np.array_equal(voxpatch.open(folder, values="stored")[...], stored), name
        assert np.allclose(volume.spacing, series.spacing, rtol=1e-3), name
        assert volume.info["format"] == "dicom" if hasattr(volume, "info") else True
        try:
            values, affine = by_simpleitk(folder)
        except RuntimeError:
            continue
        if name == "flat":  # SimpleITK takes the slices for rows
            continue
        if name in ("monochrome1 kept", "uint32", "int8", "bare") or name.startswith("pet"):
            values = None
        if values is not None:
            assert found[0].shape == values.shape, name
            assert np.abs(found[0] - values).max() <= 1e-4 * max(1, np.abs(values).max()), name
        if name != "one slice":
            assert np.allclose(volume.affine, affine, atol=1e-6 * np.abs(affine).max()), (name, volume.affine, affine)
        compared += 1
    print(f"{len(KINDS)} series of DICOM, {compared} of them compared with SimpleITK")
    assert compared >= 40, compared


def test_series_of_several_volumes_have_time_points_or_channels(tmp_path):
    def volumes(name: str, count: int, extra) -> tuple[Path, np.ndarray]:
        series = uid.generate_uid()
        stored = []
        for n in range(count):
            made = Series(dtype="uint16", shape=(4, 5, 6), uid=series, seed=n + 1, extra=extra(n))
            stored.append(write(tmp_path / name / str(count - n), made)[0])
        return tmp_path / name, np.stack(stored)

    for name, extra, is_time in [
        ("temporal", lambda n: {"TemporalPositionIdentifier": n + 1}, True),
        ("trigger", lambda n: {"TriggerTime": 100.0 * n}, True),
        ("b-value", lambda n: {"DiffusionBValue": 500.0 * n}, False),
        ("echo", lambda n: {"EchoTime": 10.0 + 20.0 * n}, False),
        ("acquisition", lambda n: {"AcquisitionNumber": n + 1}, True),
        ("acquisition time", lambda n: {"AcquisitionTime": f"1020{n:02}.5"}, True),
        ("instance", lambda n: {"InstanceNumber": [4 * n + z + 1 for z in range(4)]}, True),
    ]:
        path, stored = volumes(name, 3, extra)
        volume = voxpatch.open(path)
        assert np.array_equal(volume[...], stored), name
        assert (volume.time_points == 3) == is_time, name
        if is_time:
            assert np.array_equal(voxpatch.open(path, time=1)[...], stored[1:2]), name


def test_colors_are_channels(tmp_path):
    for n, (syntax, photometric, planar) in enumerate(
        [
            (uid.ExplicitVRLittleEndian, "RGB", 0),
            (uid.ExplicitVRLittleEndian, "RGB", 1),
            (uid.ImplicitVRLittleEndian, "RGB", 0),
            (uid.RLELossless, "RGB", 0),
            (uid.JPEG2000Lossless, "RGB", 0),
        ]
    ):
        series = Series(
            dtype="uint8", samples=3, shape=(3, 34, 36), photometric=photometric, planar=planar, syntax=syntax, modality="XC"
        )
        stored = write(tmp_path / str(n), series)
        volume = voxpatch.open(tmp_path / str(n))
        assert np.array_equal(volume[...], stored), (n, syntax)


def multiframe(path: Path, series: Series, per_frame: bool = True) -> np.ndarray:
    """Write an enhanced multi-frame file, with its frames in reverse order."""
    voxels = series.voxels()
    series.uid = uid.generate_uid()
    data = dataset(series)
    data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = uid.generate_uid()
    order = list(range(voxels.shape[1]))[::-1]

    def group(**items) -> Dataset:
        inner = Dataset()
        for name, value in items.items():
            setattr(inner, name, value)
        return inner

    shared = group(
        PlaneOrientationSequence=[group(ImageOrientationPatient=list(series.orientation))],
        PixelMeasuresSequence=[group(PixelSpacing=list(series.spacing[1:]), SliceThickness=series.spacing[0])],
    )
    each = lambda given, z: given[z] if isinstance(given, list) else given  # noqa: E731
    frames = []
    for z in order:
        transform = group(
            RescaleSlope=each(series.slope, z), RescaleIntercept=each(series.intercept, z), RescaleType="US"
        )
        frame = group(
            PlanePositionSequence=[group(ImagePositionPatient=series.position(z))],
            FrameContentSequence=[group(InStackPositionNumber=z + 1)],
            PixelValueTransformationSequence=[transform],
        )
        frames.append(frame)
    data.SharedFunctionalGroupsSequence = [shared]
    data.PerFrameFunctionalGroupsSequence = frames
    pixels(data, series, voxels[:, order].transpose(1, 0, 2, 3))
    path.parent.mkdir(parents=True, exist_ok=True)
    save(path, data, series)
    return voxels


def test_enhanced_files_have_a_slice_for_each_frame(tmp_path):
    for n, series in enumerate(
        [
            Series(),
            Series(syntax=uid.ImplicitVRLittleEndian, dtype="uint16", stored=12, **CT),
            Series(syntax=uid.DeflatedExplicitVRLittleEndian, orientation=OBLIQUE),
            Series(syntax=uid.RLELossless, orientation=SAGITTAL),
            Series(syntax=uid.JPEG2000Lossless, shape=(4, 40, 50)),
            Series(modality="PT", dtype="uint16", slope=[1.0, 0.5, 2.0, 0.25, 3.0], intercept=[0.0] * 5),
        ]
    ):
        path = tmp_path / str(n) / "one.dcm"
        stored = multiframe(path, series)
        for opened in (path, path.parent):
            volume = voxpatch.open(opened)
            assert np.abs(volume[...] - real(series, stored)).max() <= 1e-2, n
            assert np.allclose(volume.spacing, series.spacing), n
            row, column = np.array(series.orientation[:3]), np.array(series.orientation[3:])
            lps = np.column_stack([row * series.spacing[2], column * series.spacing[1], np.cross(row, column) * series.spacing[0]])
            assert np.allclose(volume.affine[:3, :3], np.diag([-1, -1, 1]) @ lps), n
            assert np.allclose(np.array(volume.affine)[:3, 3], np.diag([-1, -1, 1]) @ series.origin), n


REFUSED = {
    "missing": (Series(places=[0, 1, 3, 4, 5]), ["1 slices are missing", "2.500 mm apart", "5.000 mm after"]),
    "uneven": (Series(places=[0, 1, 2.4, 3, 4.2]), ["unevenly spaced", "3.500 mm after"]),
    "duplicate": (Series(places=[0, 1, 1, 2, 3]), ["duplicate or missing", "5 images have 4 different positions"]),
    "twice": (Series(shape=(4, 6, 7), places=[0, 0, 1, 1], extra={"InstanceNumber": 1}), ["duplicate", "2 positions"]),
    "tilted": (Series(tilt=0.5), ["tilted by 11.31 degrees", "2.000 mm over 5 slices"]),
    "palette": (Series(dtype="uint8", photometric="PALETTE COLOR"), ["palette"]),
    "orientations": (
        Series(extra={"ImageOrientationPatient": [list(AXIAL)] * 4 + [list(SAGITTAL)]}),
        ["different orientations", "1 of 5"],
    ),
    "spacings": (Series(extra={"PixelSpacing": [[0.5, 0.75]] * 4 + [[0.5, 0.8]]}), ["different pixel spacings", "0.8"]),
    "skewed": (Series(orientation=(1.0, 0.0, 0.0, 0.5, 0.5, 0.0)), ["not two perpendicular directions"]),
    "no position": (Series(extra={"ImagePositionPatient": None}), ["5 of its 5 images have no position"]),
    "one without": (
        Series(extra={"ImagePositionPatient": [None, [0, 0, 1], [0, 0, 2], [0, 0, 3], [0, 0, 4]]}),
        ["1 of its 5 images have no position"],
    ),
}


def test_series_that_are_no_volume_are_refused_with_their_numbers(tmp_path):
    for name, (series, words) in REFUSED.items():
        write(tmp_path / name, series)
        with pytest.raises((ValueError, OSError)) as caught:
            voxpatch.open(tmp_path / name)
        message = str(caught.value)
        for word in [*words, str(tmp_path / name)]:
            assert word in message, (name, message)
        assert "Doe" not in message and "SECRET" not in message
    sizes = tmp_path / "sizes"
    same = uid.generate_uid()
    write(sizes / "a", Series(uid=same))
    write(sizes / "b", Series(uid=same, shape=(2, 8, 8), origin=(0.0, 0.0, 90.0)))
    with pytest.raises(ValueError, match="different sizes .* 2 of 7, 8 x 8 x 1 int16"):
        voxpatch.open(sizes)
    for name in ("missing", "uneven"):
        volume = voxpatch.open(tmp_path / name, allow_uneven=True)
        assert np.array_equal(volume[...], REFUSED[name][0].voxels()), name
    sheared = voxpatch.open(tmp_path / "tilted", tilt="shear")
    series = REFUSED["tilted"][0]
    assert np.array_equal(sheared[...], series.voxels())
    for z in range(5):
        world = np.array(sheared.affine) @ [0, 0, z, 1]
        assert np.allclose(world[:3], np.array(series.position(z)) * [-1, -1, 1])


def test_one_of_several_series_is_chosen(tmp_path):
    made = [Series(seed=n, description=f"phase {n}", extra={"SeriesNumber": n}, modality="MR") for n in (3, 1, 2)]
    voxels = {series.description: write(tmp_path / str(n), series) for n, series in enumerate(made)}
    with pytest.raises(ValueError) as caught:
        voxpatch.open(tmp_path)
    message = str(caught.value)
    for word in ["3 DICOM series", '1: "phase 1", MR, 5 images of 6 x 7', made[0].uid, "series="]:
        assert word in message, message
    assert "Doe" not in message and "SECRET" not in message
    assert np.array_equal(voxpatch.open(tmp_path, series=2)[...], voxels["phase 2"])
    assert np.array_equal(voxpatch.open(tmp_path, series=made[0].uid)[...], voxels["phase 3"])
    for wrong in (0, 4, "1.2.3"):
        with pytest.raises(ValueError, match="no DICOM series"):
            voxpatch.open(tmp_path, series=wrong)


def test_a_file_set_is_opened_by_its_catalog(tmp_path):
    from pydicom.fileset import FileSet

    series = Series()
    stored = write(tmp_path / "made", series)
    files = FileSet()
    for path in sorted((tmp_path / "made").iterdir()):
        data = pydicom.dcmread(path)
        data.StudyDate, data.StudyTime, data.StudyID, data.SeriesNumber = "20200101", "101010", "1", 1
        data.AccessionNumber = ""
        data.StudyInstanceUID = "1.2.3"
        files.add(data)
    files.write(tmp_path / "set")
    shutil.rmtree(tmp_path / "made")
    volume = voxpatch.open(tmp_path / "set" / "DICOMDIR")
    assert np.array_equal(volume[...], stored)
    assert np.array_equal(voxpatch.open(tmp_path / "set")[...], stored)
    next(path for path in (tmp_path / "set").rglob("*00") if path.is_file()).unlink()
    with pytest.raises(ValueError, match="which is not there"):
        voxpatch.open(tmp_path / "set" / "DICOMDIR")


def test_other_files_in_the_folder_are_ignored_and_copies_counted_once(tmp_path):
    stored = write(tmp_path, Series())
    (tmp_path / "notes.txt").write_text("voxels")
    (tmp_path / "empty").touch()
    (tmp_path / "copy").mkdir()
    shutil.copy(tmp_path / "001", tmp_path / "copy" / "001")
    volume = voxpatch.open(tmp_path)
    assert np.array_equal(volume[...], stored)
    (tmp_path / "001").write_bytes(b"changed")
    with pytest.raises(ValueError, match="changed while it was in use"):
        volume[...]


def test_nothing_about_the_patient_is_in_any_text_or_output(tmp_path):
    folder, out = tmp_path / "ct", tmp_path / "out"
    write(folder, Series(dtype="uint16", stored=12, shape=(6, 9, 10), **CT))
    out.mkdir()
    volume = voxpatch.open(folder)
    texts = [repr(volume), str(volume), volume._repr_html_()]
    for name in ("a.nii.gz", "b.zarr", "c.ome.tif", "d.mha"):
        voxpatch.convert(folder, out / name)
    voxpatch.predict(lambda batch: batch, folder, out / "e.zarr", 4, 2)
    subject = voxpatch.Subject(ct=folder)
    queue = voxpatch.Queue([subject], voxpatch.UniformSampler(4), samples_per_subject=3, seed=1)
    texts += [repr(subject), repr(queue), *(repr({**sample, "ct": None}) for sample in queue)]
    texts += [repr(queue.state_dict()), repr(queue.stats()), repr(voxpatch.stats([folder]))]
    (folder / "001").write_bytes((folder / "001").read_bytes()[:-9])
    for wrong in (folder, tmp_path / "none"):
        with pytest.raises((ValueError, OSError)) as caught:
            voxpatch.open(wrong)
        texts.append(repr(caught.value))
    for text in texts:
        assert "Doe" not in text and "SECRET" not in text and "19700101" not in text, text
    files = [path for path in out.rglob("*") if path.is_file()]
    assert len(files) > 6
    for path in files:
        content = path.read_bytes()
        assert b"Doe^" not in content and b"SECRET" not in content and b"19700101" not in content, path


def test_unsafe_decoders_are_refused_on_untrusted_data(tmp_path):
    write(tmp_path, Series(syntax=uid.JPEG2000Lossless, shape=(3, 33, 40)))
    with pytest.raises(ValueError, match="jpeg2000"):
        voxpatch.open(tmp_path, trusted=False)


def test_damaged_headers_and_frames_are_errors(tmp_path):
    """Change bytes of headers and frames: an error or a volume, never a crash."""
    rng = np.random.default_rng(3)
    outcomes = []
    for syntax in (uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian, uid.RLELossless, uid.JPEG2000Lossless,
                   uid.DeflatedExplicitVRLittleEndian):
        path = tmp_path / "one.dcm"
        multiframe(path, Series(syntax=syntax, shape=(3, 33, 34)))
        outcomes.append(check_damage(path, rng, 150, allowed="JPEG 2000"))
    assert min(total(outcomes).values()) > 20, outcomes


def test_jpeg_ls_frames_are_those_of_charls(tmp_path):
    """Frames of all kinds of content, encoded by CharLS in every interleave mode, with and without loss."""
    codecs = pytest.importorskip("imagecodecs", reason="imagecodecs writes JPEG-LS")
    jpeg_ls = pytest.importorskip("jpeg_ls", reason="pyjpegls chooses the interleave mode")
    from pydicom.encaps import encapsulate

    rng = np.random.default_rng(5)
    y, x = np.indices((40, 48))
    contents = {
        "noise": lambda most: rng.integers(0, most + 1, (40, 48)),
        "smooth": lambda most: (y * 3 + x * 2 + rng.integers(0, 3, y.shape)) % (most + 1),
        "even": lambda most: np.full(y.shape, most // 2),
        "steps": lambda most: np.where((x // 7 + y // 5) % 2, most, most // 3),
        "runs": lambda most: np.where(rng.random(y.shape) < 0.02, most, 0),
    }
    count = 0
    series = Series(dtype="uint8", shape=(1, 4, 4))
    write(tmp_path / "made", series)
    data = pydicom.dcmread(tmp_path / "made" / "000.dcm")
    path = tmp_path / "a.dcm"

    def check(frame: np.ndarray, encoded: bytes, bits: int, loss: int, name: object) -> None:
        nonlocal count
        rows, columns = frame.shape[:2]
        data.Rows, data.Columns = rows, columns
        data.SamplesPerPixel = 1 if frame.ndim == 2 else 3
        data.PhotometricInterpretation = "MONOCHROME2" if frame.ndim == 2 else "RGB"
        data.PlanarConfiguration = 0
        data.BitsAllocated, data.BitsStored, data.HighBit = 8 * frame.itemsize, bits, bits - 1
        data.PixelData = encapsulate([encoded])
        data["PixelData"].VR = "OB"
        data["PixelData"].is_undefined_length = True
        data.file_meta.TransferSyntaxUID = uid.JPEGLSNearLossless if loss else uid.JPEGLSLossless
        data.save_as(path, enforce_file_format=True)
        volume = voxpatch.open(path, trusted=False)
        found = volume[...][:, 0]
        planes = frame[None] if frame.ndim == 2 else frame.transpose(2, 0, 1)
        own = codecs.jpegls_decode(encoded)
        oracle = own[None] if own.ndim == 2 else own.transpose(2, 0, 1)
        assert np.array_equal(found, oracle), (name, "CharLS")
        assert np.abs(found.astype(int) - planes).max() <= loss, name
        count += 1

    for name, content in contents.items():
        for bits, loss in [(8, 0), (8, 1), (8, 5), (12, 0), (12, 3), (16, 0), (16, 20), (10, 0)]:
            frame = content((1 << bits) - 1).astype("uint8" if bits == 8 else "uint16")
            for part in (frame, frame[:1], frame[:, :1], frame[:7, :5]):
                part = np.ascontiguousarray(part)
                part[-1, -1] = (1 << bits) - 1  # the number of bits follows from the largest value
                try:
                    encoded = bytes(jpeg_ls.encode_array(part, lossy_error=loss))
                except RuntimeError:  # noise, for which it has no room
                    encoded = codecs.jpegls_encode(part, level=loss)
                check(part, encoded, bits, loss, (name, bits, loss, part.shape))
        for mode, loss in [(0, 0), (1, 0), (2, 0), (1, 2), (2, 2)]:
            frame = np.stack([content(255), content(200), content(99)], axis=-1).astype("uint8")
            given = frame.transpose(2, 0, 1) if mode == 0 else frame
            try:
                encoded = bytes(
                    jpeg_ls.encode_array(np.ascontiguousarray(given), lossy_error=loss, interleave_mode=mode)
                )
            except RuntimeError:
                continue
            check(frame, encoded, 8, loss, (name, mode, loss))
    print(f"{count} frames of JPEG-LS")
    assert count >= 180
    whole = path.read_bytes()
    for cut in range(len(whole) - 300, len(whole) - 12, 20):
        path.write_bytes(whole[:cut] + bytes(len(whole) - cut))
        with pytest.raises((ValueError, OSError)):
            voxpatch.open(path)[...]


def test_jpeg_frames_are_those_of_imagecodecs(tmp_path):
    codecs = pytest.importorskip("imagecodecs", reason="imagecodecs writes JPEG")
    from pydicom.encaps import encapsulate

    for n, (syntax, dtype, stored, encode, decode) in enumerate(
        [
            (uid.JPEGLosslessSV1, "uint16", 12, lambda a: codecs.ljpeg_encode(a, bitspersample=12), None),
            (uid.JPEGLosslessSV1, "uint16", 16, lambda a: codecs.ljpeg_encode(a, bitspersample=16), None),
            (uid.JPEGLossless, "uint8", 8, lambda a: codecs.ljpeg_encode(a, bitspersample=8), None),
            (uid.JPEGBaseline8Bit, "uint8", 8, lambda a: codecs.jpeg8_encode(a, level=95), codecs.jpeg8_decode),
        ]
    ):
        series = Series(dtype=dtype, stored=stored, shape=(3, 40, 48))
        folder = tmp_path / str(n)
        voxels = write(folder, series)
        for path in folder.iterdir():
            data = pydicom.dcmread(path)
            frame = encode(np.ascontiguousarray(data.pixel_array))
            if decode is not None:
                z = round((data.ImagePositionPatient[2] - series.origin[2]) / series.spacing[0])
                voxels[0, z] = decode(frame)
            data.PixelData = encapsulate([frame])
            data["PixelData"].VR = "OB"
            data["PixelData"].is_undefined_length = True
            data.file_meta.TransferSyntaxUID = syntax
            data.save_as(path, enforce_file_format=True)
        found = voxpatch.open(folder)[...]
        values, _ = by_simpleitk(folder)
        assert np.abs(found[0].astype(int) - values).max() <= (2 if decode else 0), (n, syntax)
        assert np.abs(found.astype(int) - voxels).max() <= (2 if decode else 0), (n, syntax)
