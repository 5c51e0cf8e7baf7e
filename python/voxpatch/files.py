"""Opening, writing and converting volumes."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, overload

from ._voxpatch import Volume, _convert, _open, _write
from .errors import InvalidError
from .options import StorageOptions
from .sizes import count, normalization, three

if TYPE_CHECKING:
    import numpy.typing as npt

    from .options import (
        Affine,
        Codec,
        ConvertPlan,
        DType,
        Downsample,
        Interpolation,
        MissingChunks,
        Normalize,
        Padding,
        Part,
        Path,
        ReadMethod,
        Settings,
        Shard,
        Size,
        Spacing,
        Tilt,
        Values,
        Zarr,
    )


def open(
    path: Path,
    *,
    level: int = 0,
    channels: Part | None = None,
    time: Part | None = None,
    box: Sequence[Part] | None = None,
    values: Values = "real",
    spacing: Spacing | None = None,
    orientation: str | None = None,
    like: Volume | Path | None = None,
    interpolation: Interpolation = "linear",
    antialias: bool = False,
    outside: Padding = 0.0,
    normalize: Normalize | None = None,
    missing_chunks: MissingChunks = "fill",
    trusted: bool = True,
    read_method: ReadMethod = "auto",
    allow_external: bool = False,
    series: str | int | None = None,
    allow_uneven: bool = False,
    tilt: Tilt = "refuse",
    storage_options: Mapping[str, str | bool | float] | None = None,
    cache_dir: Path | None = None,
    cache_bytes: int | None = None,
) -> Volume:
    """Open a volume by path or address: Zarr, N5, a DICOM series, or a TIFF, NIfTI, numpy, HDF5, Imaris, NRRD or other file.

    Only the header is read.

    Parameters
    ----------
    path : str or path-like
        The file, or the folder of a Zarr array, an OME-Zarr image or a DICOM series; or an address,
        as a string, in an object store or on a web server: ``s3://``, ``gs://``, ``az://``, ``https://`` or ``http://``.
    level : int, default 0
        Level of a multiscale image; 0 is the finest.
    channels : int, slice, range or (int, int), optional
        Channels to keep: a number, or first and end, counted among those of the time points that `time` keeps.
    time : int, slice, range or (int, int), optional
        Time points to keep, where an axis is time. Without it all time points are there, one after the other, as
        channels.
    box : sequence of three slices or (int, int), optional
        Voxels to keep along z, y, x, counted after resampling. They keep their place in the world.
    values : {"real", "stored"} or dtype, default "real"
        "real" applies slope and intercept. The type is then the stored one where there are none, the smallest integer
        type that holds all values where the slope is 1 and the intercept whole (a CT is int16 HU), and float32
        otherwise. "stored" gives the numbers in the file. A type casts real values to it: fractions become the nearest
        value, and a value beyond the type's range is an error.
    spacing : float or sequence of three floats, optional
        Distance between voxels, in mm (for z, y, x), to resample the volume to, when it is read. The axes keep their
        directions, and the center of the volume stays where it is.
    orientation : str, optional
        Directions of the axes x, y and z to flip and permute the volume to, as "RAS". Voxels are copied.
    like : Volume or path, optional
        Volume to whose grid the volume is resampled. `orientation` and `spacing` then change that grid.
    interpolation : {"nearest", "linear", "cubic", "label-linear"}, default "linear"
        How values between voxels are computed: the nearest voxel, linearly, by the cubic B-spline through the voxels, or
        the label with the largest linear weight. For labels, use "nearest" or "label-linear".
    antialias : bool, default False
        Smooth with a Gaussian along axes whose voxels become larger, as TorchIO does on request.
    outside : float or {"edge", "reflect", "wrap"}, default 0
        Values beyond the faces of the volume: a number, or a way to continue the voxels inside.
    normalize : {"zscore", "zscore:nonzero"}, (float, float), Percentile, MeanStd, NnunetCt, Within or list, optional
        Give normalized values of type float32, as `predict` and `Queue` do, explained at `predict`. What is measured is
        measured here, in one pass over the channels that are kept, after resampling; the numbers are pickled with the
        volume. `values` must be "real".
    missing_chunks : {"fill", "error"}, default "fill"
        Meaning of a Zarr chunk that has no file: it is all fill value, or it was lost.
    trusted : bool, default True
        False refuses codecs that hostile data could exploit (blosc, JPEG 2000) and symbolic links in folders.
    read_method : {"auto", "mmap", "mmap-resident", "pread"}, default "auto"
        How uncompressed files are read: mapped, with touched pages unmapped again; mapped with touched pages kept,
        which is faster; or by system calls. "auto" keeps the pages of files that fit into the available memory, and
        reads files on network file systems by system calls. Zarr arrays whose chunks have no codec are mapped by
        "auto" and "mmap-resident", and otherwise read chunk by chunk.
    allow_external : bool, default False
        Follow a header to a file of voxels outside its own folder.
    series : str or int, optional
        DICOM series to open where there are several: its unique identifier, or its number in the list that the error
        message shows, counted from 1.
    allow_uneven : bool, default False
        Read DICOM slices that are missing or at uneven distances as if they were evenly spaced. The message of the
        error without it has the distances.
    tilt : {"refuse", "shear"}, default "refuse"
        Treatment of DICOM slices that are shifted within their plane, as by a tilted gantry: an error that names the
        angle, or a volume with an affine whose axes are not perpendicular.
    storage_options : mapping, optional
        Credentials, endpoint and region of an object store, by the names of its own tools or of fsspec; for example
        ``{"anon": True, "endpoint_url": "https://minio.example.org"}``. Values that are not given are taken from the
        environment and the AWS profile. They are not printed, but pickled with the volume.
    cache_dir : str or path-like, optional
        Folder on a local disk that keeps what is read from a store, and what a compressed file (``.nii.gz``) is unpacked to,
        for later epochs and runs. Processes may share it.
    cache_bytes : int, optional
        The most bytes in `cache_dir`, 32 GiB if not given: what was used longest ago leaves.

    Returns
    -------
    Volume
        The open volume, with axes c, z, y, x.

    Raises
    ------
    FileNotFoundError
        If nothing is at the path.
    ValueError
        If the header makes no sense, or the part does not exist.
    OSError
        If the file cannot be read or is damaged.

    Examples
    --------
    >>> import numpy as np, voxpatch
    >>> np.save("scan.npy", np.zeros((4, 5, 6), np.int16))
    >>> scan = voxpatch.open("scan.npy")
    >>> scan.shape
    (1, 4, 5, 6)
    >>> voxpatch.open("scan.npy", box=[(0, 2), (0, 5), (3, 6)])[...].shape
    (1, 2, 5, 3)
    >>> voxpatch.write("scan.nii", np.zeros((4, 5, 6), np.int16), spacing=(3, 1, 1)).shape
    (1, 4, 5, 6)
    >>> voxpatch.open("scan.nii", spacing=1.5, orientation="RAS").shape
    (1, 8, 3, 4)
    """
    options = (
        count("level", level),
        missing_chunks,
        bool(trusted),
        read_method,
        bool(allow_external),
        None if series is None else str(series),
        bool(allow_uneven),
        tilt,
        store(storage_options),
        None if cache_dir is None else os.path.abspath(cache_dir),
        None if cache_bytes is None else count("cache_bytes", cache_bytes, least=1),
    )
    lengths = None if spacing is None else _spacing(spacing)
    grid = like if like is None or isinstance(like, Volume) else open(like)
    resample = (lengths, orientation, grid, interpolation, bool(antialias), outside)
    if normalize is not None and values != "real":
        raise InvalidError(f"values {values!r} with normalize: normalized values are float32, so leave out values")
    return _open(path, options, (channels, time, box), values, resample, normalization(normalize))


def absolute(path: Path) -> str:
    """Return an absolute path, or an address in a store as it is."""
    text = os.fspath(path)
    return text if "://" in text else os.path.abspath(text)


def store(options: Mapping[str, str | bool | float] | None) -> list[tuple[str, str]]:
    """Return the options of a store, as the compiled half takes them."""
    return [(str(name), _option(value)) for name, value in (options or {}).items()]


def _option(value: str | bool | float) -> str:
    """Return an option of a store as a string."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _spacing(given: Spacing) -> tuple[float, ...]:
    """Return mm along z, y, x."""
    try:
        return tuple(float(mm) for mm in three("spacing", given))
    except (TypeError, ValueError) as error:
        raise InvalidError(f"spacing {given!r}: give mm, or three for z, y, x") from error


def write(
    path: Path,
    array: npt.ArrayLike | Volume,
    *,
    spacing: Sequence[float] | None = None,
    affine: Affine | None = None,
    dtype: DType | None = None,
    clip: bool = False,
    zarr: Zarr = 3,
    chunk: Size | None = None,
    shard: Shard = "auto",
    codec: Codec | None = None,
    clevel: int | None = None,
    pyramid: Downsample | None = None,
    levels: int | None = None,
    overwrite: bool = False,
    storage_options: Mapping[str, str | bool | float] | None = None,
    memory: int | None = None,
    threads: int | None = None,
) -> Volume:
    """Write an array as a volume, and open it.

    The end of the path chooses the format: ``.zarr``, ``.npy``, ``.nii``, ``.mha``, ``.mhd``, ``.nrrd`` or ``.tif``.
    Zarr is also written to object stores (``s3://bucket/out.zarr``).

    Parameters
    ----------
    path : str or path-like
        The file or folder to write.
    array : array_like or Volume
        Values with axes z, y, x or c, z, y, x.
    spacing : sequence of three floats, optional
        Distance between voxel centers along z, y, x, in mm.
    affine : array_like, optional
        Matrix (4, 4) that takes voxel indices (x, y, z, 1) to mm in RAS+. It replaces `spacing`.
    dtype : dtype, optional
        Type of the values written; that of the array if not given.
    clip : bool, default False
        Write values beyond the range of `dtype` as its nearest value, with a warning that counts them. Otherwise they
        are an error.
    zarr : {2, 3}, default 3
        Version of Zarr: 3 with OME-Zarr 0.5, or 2 with OME-Zarr 0.4 and without shards.
    chunk : int or (int, int, int), optional
        Voxels of a Zarr chunk along z, y, x; 32, or 64 in version 2, if not given. For ``.tif``, the last two are those
        of a tile, multiples of 16 or those of the page, and the first the number of pages that are compressed together.
    shard : int, (int, int, int), "auto" or None, default "auto"
        Voxels of a shard along z, y, x, a multiple of the chunk. None writes a file for each chunk.
    codec : {"zstd", "blosc-zstd", "blosc-lz4", "gzip", "zlib", "none"}, optional
        Compression of chunks; zstd if not given. For ``.tif``, that of tiles: zlib, zstd, or none if not given.
    clevel : int, optional
        Effort of the codec.
    pyramid : {"mean", "mode"}, optional
        Write coarser levels too, each half the size of the one before: voxels become their mean (for images) or the
        most frequent value (for labels).
    levels : int, optional
        Levels of the pyramid, the finest included. Without it, levels are written until every axis fits one chunk.
    overwrite : bool, default False
        Replace what is at the path.
    storage_options : mapping, optional
        Credentials and options of the object store that the output is in, as in :func:`open`.
    memory : int, optional
        Bytes that boxes under way and decoded chunks may take together; 256 MiB if not given.
    threads : int, optional
        Threads that read, convert and encode; one for each core if not given.

    Returns
    -------
    Volume
        The written volume, opened.

    Raises
    ------
    FileExistsError
        If something is at the path, and `overwrite` is False.
    ValueError
        If values do not fit the type, or options do not fit each other.

    Examples
    --------
    >>> import numpy as np, voxpatch
    >>> labels = np.zeros((64, 64, 64), np.uint8)
    >>> voxpatch.write("labels.zarr", labels, spacing=(2.5, 0.7, 0.7), chunk=32, pyramid="mode").spacing
    (2.5, 0.7, 0.7)
    """
    options = given_options(
        dtype=dtype, clip=clip, zarr=zarr, chunk=chunk, shard=shard, codec=codec, clevel=clevel, pyramid=pyramid,
        levels=levels, overwrite=overwrite, storage_options=storage_options, memory=memory, threads=threads,
    )  # fmt: skip
    return _write(path, array, spacing, affine, options)


@overload
def convert(
    source: Path | Volume,
    path: Path,
    *,
    dry_run: Literal[False] = False,
    dtype: DType | None = None,
    clip: bool = False,
    zarr: Zarr = 3,
    chunk: Size | None = None,
    shard: Shard = "auto",
    codec: Codec | None = None,
    clevel: int | None = None,
    pyramid: Downsample | None = None,
    levels: int | None = None,
    overwrite: bool = False,
    storage_options: Mapping[str, str | bool | float] | None = None,
    memory: int | None = None,
    threads: int | None = None,
) -> Volume: ...
@overload
def convert(
    source: Path | Volume,
    path: Path,
    *,
    dry_run: Literal[True],
    dtype: DType | None = None,
    clip: bool = False,
    zarr: Zarr = 3,
    chunk: Size | None = None,
    shard: Shard = "auto",
    codec: Codec | None = None,
    clevel: int | None = None,
    pyramid: Downsample | None = None,
    levels: int | None = None,
    overwrite: bool = False,
    storage_options: Mapping[str, str | bool | float] | None = None,
    memory: int | None = None,
    threads: int | None = None,
) -> ConvertPlan: ...
def convert(
    source: Path | Volume,
    path: Path,
    *,
    dry_run: bool = False,
    dtype: DType | None = None,
    clip: bool = False,
    zarr: Zarr = 3,
    chunk: Size | None = None,
    shard: Shard = "auto",
    codec: Codec | None = None,
    clevel: int | None = None,
    pyramid: Downsample | None = None,
    levels: int | None = None,
    overwrite: bool = False,
    storage_options: Mapping[str, str | bool | float] | None = None,
    memory: int | None = None,
    threads: int | None = None,
) -> Volume | ConvertPlan:
    """Copy a volume into another format, voxel type or chunking, box by box, and open the copy.

    Parameters
    ----------
    source : str, path-like or Volume
        The volume to copy. A :class:`Volume` gives the values, channels and box that it was opened with.
    path : str or path-like
        The file or folder to write; its end chooses the format.
    dry_run : bool, default False
        Write nothing, and return what the copy would need.
    dtype : dtype, optional
        Type of the values written; that of the source if not given. Fractions that are rounded are counted in a warning.
    clip : bool, default False
        Write values beyond the range of `dtype` as its nearest value, with a warning that counts them. Otherwise they
        are an error.
    zarr : {2, 3}, default 3
        Version of Zarr, as in :func:`write`.
    chunk : int or (int, int, int), optional
        Voxels of a Zarr chunk along z, y, x, as in :func:`write`.
    shard : int, (int, int, int), "auto" or None, default "auto"
        Voxels of a shard along z, y, x, as in :func:`write`.
    codec : {"zstd", "blosc-zstd", "blosc-lz4", "gzip", "zlib", "none"}, optional
        Compression of chunks, as in :func:`write`.
    clevel : int, optional
        Effort of the codec.
    pyramid : {"mean", "mode"}, optional
        Write coarser levels too, as in :func:`write`.
    levels : int, optional
        Levels of the pyramid, as in :func:`write`.
    overwrite : bool, default False
        Replace what is at the path.
    storage_options : mapping, optional
        Credentials and options of the object stores that the output and a `source` given by its address are in, as in
        :func:`open`.
    memory : int, optional
        Bytes that boxes under way and decoded chunks may take together; 256 MiB if not given.
    threads : int, optional
        Threads that read, convert and encode; one for each core if not given.

    Returns
    -------
    Volume or dict
        The copy, opened. With ``dry_run=True`` a dictionary: ``process_bytes`` is the memory of the whole process,
        ``output_bytes`` the size of the output before it is compressed, ``free_bytes`` the free space of its disk.

    Raises
    ------
    FileExistsError
        If something is at the path, and `overwrite` is False.
    ValueError
        If values do not fit the type, or options do not fit each other.

    Examples
    --------
    >>> import numpy as np, voxpatch
    >>> np.save("scan.npy", np.ones((40, 50, 60), np.float32))
    >>> voxpatch.convert("scan.npy", "scan.zarr", dtype="int16", chunk=16, shard=32).dtype
    dtype('int16')
    """
    options = given_options(
        dtype=dtype, clip=clip, zarr=zarr, chunk=chunk, shard=shard, codec=codec, clevel=clevel, pyramid=pyramid,
        levels=levels, overwrite=overwrite, storage_options=storage_options, memory=memory, threads=threads,
    )  # fmt: skip
    found: Volume | ConvertPlan = _convert(source, path, bool(dry_run), options)
    return found


def given_options(**options: Any) -> Settings:
    """Return the options that were given, as the compiled half takes them."""
    given = {name: value for name, value in options.items() if value is not None}
    if "storage_options" in given:
        given["storage_options"] = store(given["storage_options"])
    if "shard" in options:
        if options["shard"] is None:
            given["shard"] = None
        elif isinstance(options["shard"], str) and options["shard"] == "auto":
            del given["shard"]
    return given


def storage_options(function: str, given: Mapping[str, Any]) -> Settings:
    """Return the storage options among the keywords of a function, which has no other ones."""
    for name in given:
        if name not in StorageOptions.__annotations__:
            raise TypeError(f"{function}() got an unexpected keyword argument {name!r}")
    return given_options(**given)
