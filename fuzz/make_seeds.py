#!/usr/bin/env python3
"""Creates the seeds for fuzzing: a valid file of each kind, and small arrays of tests/data/zarr."""

import gzip
import struct
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
    seed("raw", "all", b'{"shape": [2, 3, 4], "dtype": "int16", "channels": 2, "byte_order": "big", "offset": 7, '
         b'"spacing": [1, 2, 3], "affine": [[1,0,0,0],[0,1,0,0],[0,0,1,0],[0,0,0,1]]}')
    seed("raw", "least", b'{"shape": [4, 4, 4], "dtype": "uint8"}')
    for version, file, key in [(2, ".zarray", "0.0.0"), (3, "zarr.json", "c/0/0/0")]:
        for folder in sorted((HERE.parent / f"tests/data/zarr/v{version}").glob("[!t]*")):
            document = " ".join((folder / file).read_text().split()).encode()
            chunk = next((path.read_bytes() for path in sorted(folder.rglob("*"))
                          if path.is_file() and not path.name.startswith(".z") and path.name != "zarr.json"), b"")
            if len(document) < 1500 and len(chunk) < 1500:
                seed("zarr", f"v{version}_{folder.name}", store(document, chunk, version == 2))


if __name__ == "__main__":
    main()
