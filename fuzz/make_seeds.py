#!/usr/bin/env python3
"""Creates the seeds for fuzzing: a valid file of each kind, and small arrays of tests/data/zarr. Those of `by_others` need
numpy, blosc2, h5py, hdf5plugin, imagecodecs, nibabel and tifffile."""

import bz2
import gzip
import io
import struct
import zipfile
import zlib
from pathlib import Path

HERE = Path(__file__).parent
VOXELS = bytes(range(64))


def seed(target, name, bytes):
    path = HERE / "seeds" / target / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes)


def npy(descr, fortran, shape, version=1):
    head = f"{{'descr': '{descr}', 'fortran_order': {fortran}, 'shape': {shape}, }}\n".encode()
    length = struct.pack("<H" if version == 1 else "<I", len(head))
    return b"\x93NUMPY" + bytes([version, 0]) + length + head + VOXELS * 4


def nifti(order, second=False, magic=b"n+1\0"):
    if second:
        head = bytearray(544)
        struct.pack_into(order + "i", head, 0, 540)
        head[4:12] = b"n+2\0\r\n\x1a\n"
        struct.pack_into(order + "hh8qddd", head, 12, 4, 16, 3, 2, 2, 2, 1, 1, 1, 1, 0, 0, 0)
        struct.pack_into(order + "8d", head, 104, 1, 1, 1, 1, 1, 1, 1, 1)
        struct.pack_into(order + "qdd", head, 168, 544, 2, -1)
    else:
        head = bytearray(352)
        struct.pack_into(order + "i", head, 0, 348)
        struct.pack_into(order + "8h", head, 40, 3, 2, 2, 2, 1, 1, 1, 1)
        struct.pack_into(order + "hh", head, 70, 4, 16)
        struct.pack_into(order + "8f", head, 76, -1, 1, 1, 1, 1, 1, 1, 1)
        struct.pack_into(order + "fff", head, 108, 352 if magic == b"n+1\0" else 0, 2, -1)
        struct.pack_into(order + "hh6f12f", head, 252, 1, 1, 0, 0, 0.5, 1, 2, 3, 1, 0, 0, 5, 0, 1, 0, 6, 0, 0, 1, 7)
        head[344:348] = magic
    return bytes(head) + VOXELS


def store(document, chunk, second):
    return struct.pack("<H", len(document) | second << 15) + document + chunk


#: A frame of 2 x 3 voxels of 16 bits, as packed runs.
RLE = struct.pack("<16I", 2, 64, 66, *[0] * 13) + bytes([0xFB, 0, 5, 0, 1, 2, 3, 4, 5, 0])


def element(group, number, kind, value):
    value += b" " * (len(value) % 2)
    return struct.pack("<HH2sH", group, number, kind, len(value)) + value


def pixels(data):
    return struct.pack("<HH2sHI", 0x7FE0, 0x10, b"OW", 0, len(data)) + data


def fragments(*parts):
    """Encapsulated pixel data: an empty offset table and these fragments."""
    parts = b"".join(struct.pack("<HHI", 0xFFFE, 0xE000, len(part)) + part for part in (b"", *parts))
    end = struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    return struct.pack("<HH2sHI", 0x7FE0, 0x10, b"OB", 0, 0xFFFFFFFF) + parts + end


def dicom(syntax, data, rows=2, columns=3, bits=16, stored=16, signed=1, samples=1, colors=b"MONOCHROME2", extra=b""):
    number = lambda tag, value: element(0x28, tag, b"US", struct.pack("<H", value))
    return b"".join([
        bytes(128) + b"DICM", element(2, 0x10, b"UI", syntax + b"\0" * (len(syntax) % 2)),
        element(8, 0x60, b"CS", b"CT"), element(0x20, 0xE, b"UI", b"1.2.3\0"),
        element(0x20, 0x32, b"DS", b"0\\0\\0"), element(0x20, 0x37, b"DS", b"1\\0\\0\\0\\1\\0"),
        number(2, samples), element(0x28, 4, b"CS", colors), extra, number(0x10, rows), number(0x11, columns),
        element(0x28, 0x30, b"DS", b"0.5\\0.75"), number(0x100, bits), number(0x101, stored), number(0x102, stored - 1),
        number(0x103, signed), element(0x28, 0x1052, b"DS", b"-1024"), element(0x28, 0x1053, b"DS", b"1"), data,
    ])


def tiff(order, blocks, more):
    """A page of 3 x 4 bytes."""
    data, places = b"", []
    for block in blocks:
        places.append(8 + len(data))
        data += block
    tiled = 322 in more
    lists = {(324 if tiled else 273): places, (325 if tiled else 279): [len(block) for block in blocks]}
    values = {256: [4], 257: [3], 258: [8], 259: [1], 277: [1], **{tag: [n] for tag, n in more.items()}, **lists}
    rows = b""
    for tag, numbers in sorted(values.items()):
        packed = struct.pack(f"{order}{len(numbers)}I", *numbers)
        if len(numbers) > 1:
            packed, data = struct.pack(order + "I", 8 + len(data)), data + packed
        rows += struct.pack(order + "HHI", tag, 4, len(numbers)) + packed
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8 + len(data))
    return head + data + struct.pack(order + "H", len(values)) + rows + bytes(4)


def n5_seeds():
    """Arrays of 4 x 3 x 2 with a block that is cut off at the end of x: its attributes and the block."""
    head = struct.pack(">HHIII", 0, 3, 4, 3, 2)
    for name, settings, encode in [
        ("raw", '"type": "raw"', bytes), ("gzip", '"type": "gzip", "level": -1', lambda data: gzip.compress(data, mtime=0)),
        ("zlib", '"type": "gzip", "useZlib": true', zlib.compress), ("bzip2", '"type": "bzip2"', bz2.compress),
    ]:
        document = f'{{"dimensions": [4, 3, 2], "blockSize": [5, 3, 2], "dataType": "uint16", "compression": {{{settings}}}}}'
        seed("n5", name, store(document.encode(), head + encode(VOXELS[:48]), False))


def by_others():
    """Seeds that other programs write."""
    import blosc2
    import h5py
    import hdf5plugin
    import imagecodecs
    import nibabel
    import numpy as np
    import tifffile

    rows = (np.indices((2, 16, 16)).sum(axis=0) * 5 % 200).astype("u1")
    floats = (rows / 4).astype("f4")
    syntax = b"1.2.840.10008.1.2.4."
    small = {"rows": 16, "columns": 16, "bits": 8, "stored": 8, "signed": 0}
    seed("dicom", "jpeg", dicom(syntax + b"50", fragments(imagecodecs.jpeg8_encode(rows[0])), **small))
    seed("dicom", "jpeg_lossless", dicom(syntax + b"70", fragments(imagecodecs.ljpeg_encode(rows[0])), **small))
    seed("dicom", "jpeg_ls", dicom(syntax + b"80", fragments(imagecodecs.jpegls_encode(rows[0])), **small))
    encoded = imagecodecs.jpegls_encode(np.stack([rows[0], rows[1], rows[0]], axis=-1), level=2)
    seed("dicom", "jpeg_ls_colors", dicom(syntax + b"81", fragments(encoded), samples=3, colors=b"RGB", **small))
    encoded = imagecodecs.jpeg2k_encode(rows[0], codecformat="j2k", reversible=True)
    seed("dicom", "jpeg_2000", dicom(syntax + b"90", fragments(encoded), **small))
    colors = np.stack([rows[0]] * 3, axis=-1)
    encoded = imagecodecs.jpeg8_encode(colors)
    seed("dicom", "jpeg_colors", dicom(syntax + b"50", fragments(encoded), samples=3, colors=b"YBR_FULL_422", **small))

    for name, data, options in [
        ("lzw", rows, {"compression": "lzw"}), ("zstd", rows, {"compression": "zstd"}),
        ("packbits", rows, {"compression": "packbits"}), ("jpeg", rows, {"compression": "jpeg", "tile": (16, 16)}),
        ("differences", rows.astype("u2"), {"compression": "zlib", "predictor": True}),
        ("float_differences", floats, {"compression": "zlib", "predictor": True}),
        ("planes", np.stack([rows] * 3), {"compression": "zlib", "photometric": "rgb", "planarconfig": "separate"}),
        ("ome", rows, {"ome": True, "compression": "zlib", "metadata": {"axes": "ZYX"}}),
        ("imagej", rows, {"imagej": True, "metadata": {"axes": "ZYX", "spacing": 2.0, "unit": "um"}}),
        ("big", rows, {"bigtiff": True, "tile": (16, 16), "byteorder": ">", "compression": "zlib"}),
    ]:
        file = io.BytesIO()
        if name == "planes":
            data = data.transpose(1, 0, 2, 3)
        options = {"photometric": "minisblack", "metadata": None, "software": False, **options}
        tifffile.imwrite(file, data, **options)
        seed("tiff", name, file.getvalue())

    shorts = (np.indices((4, 8, 8)).sum(axis=0) * 3).astype("i2")
    for name, options in [
        ("gzip", {"compression": "gzip", "shuffle": True}), ("lzf", {"compression": "lzf"}),
        ("fletcher32", {"fletcher32": True}), ("scaleoffset", {"scaleoffset": 0}), ("szip", {"compression": "szip"}),
        ("lz4", hdf5plugin.LZ4()), ("zstd", hdf5plugin.Zstd()), ("blosc", hdf5plugin.Blosc()), ("contiguous", {"chunks": None}),
    ]:
        file = io.BytesIO()
        try:
            with h5py.File(file, "w", libver="latest") as made:
                made.create_dataset("a", data=shorts, **{"chunks": (4, 4, 8), **options}, track_times=False)
        except ValueError as error:
            print(f"hdf5 {name}: {error}")
            continue
        seed("hdf5", name, file.getvalue())

    for name, codec, filters in [
        ("lz4", blosc2.Codec.LZ4, [blosc2.Filter.SHUFFLE]), ("zlib", blosc2.Codec.ZLIB, [blosc2.Filter.BITSHUFFLE]),
        ("blosclz", blosc2.Codec.BLOSCLZ, []),
    ]:
        path = HERE / "made.b2nd"
        blosc2.asarray(shorts, chunks=(4, 8, 8), blocks=(2, 4, 8), urlpath=str(path), mode="w",
                       cparams=blosc2.CParams(codec=codec, filters=filters, clevel=5))
        seed("blosc2", name, path.read_bytes())
        path.unlink()

    image = nibabel.MGHImage(shorts, np.eye(4))
    seed("mgh", "plain", image.to_bytes())
    seed("mgh", "packed", gzip.compress(image.to_bytes(), mtime=0))


def main():
    seed("npy", "u2", npy("<u2", False, (2, 3, 4)))
    seed("npy", "big_fortran", npy(">f4", True, (2, 2, 3, 4)))
    seed("npy", "version_2", npy("|b1", False, (5, 6), 2))
    for name, bytes in [("little", nifti("<")), ("big", nifti(">")), ("second", nifti("<", True)),
                        ("second_big", nifti(">", True)), ("pair", nifti("<", magic=b"ni1\0"))]:
        seed("nifti", name, bytes)
        seed("nifti", name + "_gz", gzip.compress(bytes, mtime=0))
    mhd = b"ObjectType = Image\nNDims = 3\nDimSize = 2 2 2\nElementSpacing = 1 2 3\nOffset = 1 2 3\n" \
          b"TransformMatrix = 1 0 0 0 1 0 0 0 1\nElementType = MET_SHORT\n"
    seed("metaimage", "beside", mhd + b"HeaderSize = 7\nElementDataFile = near.raw\n")
    seed("metaimage", "local", mhd + b"ElementByteOrderMSB = True\nElementDataFile = LOCAL\n" + VOXELS)
    seed("metaimage", "packed", mhd + b"CompressedData = True\nElementDataFile = LOCAL\n" + zlib.compress(VOXELS[:16]))
    seed("metaimage", "end", mhd + b"ElementNumberOfChannels = 3\nHeaderSize = -1\nElementDataFile = near.raw\n")
    nrrd = b"NRRD0004\n# made\ntype: short\nendian: little\ndimension: 3\nsizes: 2 2 2\n"
    seed("nrrd", "beside", nrrd + b"encoding: raw\nline skip: 0\nbyte skip: 3\ndata file: near.raw\n")
    seed("nrrd", "inside", nrrd + b"spacings: 1 2 3\nencoding: raw\nkey:=value\n\n" + VOXELS)
    seed("nrrd", "packed", nrrd + b"space: left-posterior-superior\nspace directions: (1,0,0) (0,2,0.5) (0,0,3)\n"
         b"space origin: (1,2,3)\nencoding: gzip\n\n" + gzip.compress(VOXELS[:16], mtime=0))
    seed("nrrd", "vector", nrrd.replace(b"dimension: 3\nsizes: 2", b"dimension: 4\nsizes: 3 2")
         + b"kinds: vector domain domain domain\nspace: RAS\nspace directions: none (1,0,0) (0,1,0) (0,0,1)\n"
         b"encoding: raw\nbyte skip: -1\n\n" + VOXELS)
    seed("dicom", "plain", dicom(b"1.2.840.10008.1.2.1", pixels(VOXELS[:24])))
    seed("dicom", "packed", dicom(b"1.2.840.10008.1.2.5", fragments(RLE[:70], RLE[70:])))
    plain = dicom(b"1.2.840.10008.1.2.1.99", pixels(VOXELS[:12]))
    head = plain.index(b"\x08\0\x60\0")
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    seed("dicom", "deflated", plain[:head] + deflate.compress(plain[head:]) + deflate.flush())
    seed("dicom", "encapsulated", dicom(b"1.2.840.10008.1.2.1.98", fragments(VOXELS[:12])))
    seed("tiff", "strips", tiff("<", [VOXELS[:8], VOXELS[8:12]], {278: 2}))
    seed("tiff", "big-endian", tiff(">", [VOXELS[:8], VOXELS[8:12]], {278: 2}))
    seed("tiff", "deflate", tiff("<", [zlib.compress(VOXELS[:12])], {278: 3, 259: 8, 317: 2}))
    seed("tiff", "tile", tiff("<", [VOXELS * 4], {322: 16, 323: 16}))
    seed("raw", "all", b'{"shape": [2, 3, 4], "dtype": "int16", "channels": 2, "byte_order": "big", "offset": 7, '
         b'"spacing": [1, 2, 3], "affine": [[1,0,0,0],[0,1,0,0],[0,0,1,0],[0,0,0,1]]}')
    seed("raw", "least", b'{"shape": [4, 4, 4], "dtype": "uint8"}')
    for name, method in [("stored", zipfile.ZIP_STORED), ("deflated", zipfile.ZIP_DEFLATED)]:
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w", method) as archive:
            archive.writestr(zipfile.ZipInfo("data.npy"), npy("<i2", False, (2, 4, 4)), method)
        seed("archive", name, packed.getvalue())
        packed = io.BytesIO()
        document = b'{"zarr_format": 2, "shape": [2, 3, 4], "chunks": [2, 3, 4], "dtype": "|u1", "compressor": null, ' \
                   b'"fill_value": 0, "order": "C", "filters": null}'
        with zipfile.ZipFile(packed, "w", method) as archive:
            archive.writestr(zipfile.ZipInfo(".zarray"), document, method)
            archive.writestr(zipfile.ZipInfo("0.0.0"), VOXELS[:24], method)
        seed("archive", f"zarr_{name}", packed.getvalue())
    n5_seeds()
    sources = HERE.parent / "src/volume"
    for target, name, file in [("hdf5", "one", "hdf5/tests/single.h5"), ("hdf5", "compact", "hdf5/tests/compact.h5"),
                               ("hdf5", "bitshuffle", "hdf5/tests/bits.h5"), ("hdf5", "imaris", "hdf5/tests/imaris.ims"),
                               ("blosc2", "one", "blosc2/tests/zstd.b2nd")]:
        seed(target, name, (sources / file).read_bytes())
    for version, file, key in [(2, ".zarray", "0.0.0"), (3, "zarr.json", "c/0/0/0")]:
        for folder in sorted((HERE.parent / f"tests/data/zarr/v{version}").glob("[!t]*")):
            document = " ".join((folder / file).read_text().split()).encode()
            chunk = next((path.read_bytes() for path in sorted(folder.rglob("*"))
                          if path.is_file() and not path.name.startswith(".z") and path.name != "zarr.json"), b"")
            if len(document) < 1500 and len(chunk) < 1500:
                seed("zarr", f"v{version}_{folder.name}", store(document, chunk, version == 2))


if __name__ == "__main__":
    main()
    by_others()
