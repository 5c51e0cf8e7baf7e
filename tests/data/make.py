#!/usr/bin/env python3
"""Makes the small Zarr arrays of tests/data/zarr with zarr-python (3.1) and numcodecs.

Voxel n in row-major order is v = (7 n + n // 5) % 251, made to fit the type: v % 2 for bool,
v - 100 for signed integers, v / 2 - 20 for floats. Where an array has the attribute
`written: [starts, stops]`, only that box was written and the rest is fill value (`fill`).

    pip install zarr==3.1.6 numcodecs==0.16.6 && python tests/data/make.py
"""
import json
import shutil
import warnings
from pathlib import Path

import numcodecs
import numpy as np
import zarr
from zarr.codecs import (
    BloscCodec, BytesCodec, Crc32cCodec, GzipCodec, ShardingCodec, TransposeCodec, ZstdCodec,
    numcodecs as v3,
)

warnings.filterwarnings("ignore")
OUT = Path(__file__).parent / "zarr"
SHAPE, CHUNK, FINE = (4, 5, 6), (2, 5, 6), (2, 3, 4)


def voxels(shape, dtype):
    n = np.arange(np.prod(shape), dtype=np.int64).reshape(shape)
    v = (7 * n + n // 5) % 251
    kind = np.dtype(dtype).kind
    if kind == "b":
        v = v % 2
    elif kind == "i":
        v = v - 100
    elif kind == "f":
        v = v / 2 - 20
    return v.astype(dtype)


def save(name, dtype="<i2", shape=SHAPE, chunks=None, written=None, fill=0, **how):
    chunks = chunks or (FINE if written else CHUNK)
    array = zarr.create(
        store=str(OUT / name), shape=shape, chunks=chunks, dtype=dtype, fill_value=fill, **how
    )
    every = voxels(shape, dtype)
    if written is None:
        array[...] = every
        return
    box = tuple(slice(a, b) for a, b in zip(*written))
    array[box] = every[box]
    seen = np.asarray(array.fill_value if array.fill_value is not None else 0, dtype=dtype)
    array.attrs["written"] = written
    array.attrs["fill"] = str(seen.astype("f8")) if seen.dtype.kind == "f" else int(seen)


def v2(name, **how):
    save("v2/" + name, zarr_format=2, **how)


def v3a(name, codecs=None, **how):
    codecs = [BytesCodec()] if codecs is None else codecs
    save("v3/" + name, zarr_format=3, codecs=codecs, **how)


def edit(name, change):
    path = OUT / name
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


shutil.rmtree(OUT, ignore_errors=True)
LITTLE, BIG = BytesCodec(endian="little"), BytesCodec(endian="big")
DTYPES = ["b1", "u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8"]
SOME = [[0, 0, 0], [2, 3, 6]]

# Types and byte orders.
for dtype in DTYPES:
    small = dict(shape=(2, 3, 4), chunks=(2, 2, 4))
    v3a("type_" + dtype, dtype=dtype, **small)
    v3a("type_big_" + dtype, [BIG], dtype=dtype, **small)
    v2("type_" + dtype, dtype=np.dtype(dtype).newbyteorder("<"), compressor=None, **small)
    v2("type_big_" + dtype, dtype=np.dtype(dtype).newbyteorder(">"), compressor=None, **small)

# Compressors.
for cname in ["blosclz", "lz4", "lz4hc", "zlib", "zstd"]:
    v3a("blosc_" + cname, [LITTLE, BloscCodec(cname=cname, shuffle="shuffle", typesize=2)])
    for shuffle in [0, 1, 2]:
        v2(f"blosc_{cname}_{shuffle}", compressor=numcodecs.Blosc(cname, 5, shuffle))
v3a("blosc_bitshuffle", [LITTLE, BloscCodec(cname="lz4", shuffle="bitshuffle", typesize=2)])
v3a("blosc_noshuffle", [LITTLE, BloscCodec(cname="zstd", shuffle="noshuffle", typesize=2)])
v3a("gzip", [LITTLE, GzipCodec(level=5)])
v3a("zstd", [LITTLE, ZstdCodec(level=3)])
v3a("zstd_checksum", [LITTLE, ZstdCodec(level=3, checksum=True)])
v3a("crc32c", [LITTLE, Crc32cCodec()])
v3a("zstd_crc32c", [LITTLE, ZstdCodec(), Crc32cCodec()])
v3a("crc32c_gzip_blosc", [LITTLE, Crc32cCodec(), GzipCodec(), BloscCodec(typesize=1)])
for name, codec in {
    "zlib": v3.Zlib(level=5), "bz2": v3.BZ2(level=5), "gzip": v3.GZip(level=5),
    "zstd": v3.Zstd(level=5), "blosc": v3.Blosc(cname="lz4", clevel=5, shuffle=1),
    "adler32": v3.Adler32(), "fletcher32": v3.Fletcher32(), "crc32c": v3.CRC32C(),
}.items():
    v3a("numcodecs_" + name, [LITTLE, codec])
v3a("numcodecs_shuffle_zlib", [LITTLE, v3.Shuffle(elementsize=2), v3.Zlib(level=5)])
for name, codec in {
    "zlib": numcodecs.Zlib(5), "bz2": numcodecs.BZ2(5), "gzip": numcodecs.GZip(5),
    "zstd": numcodecs.Zstd(5), "zstd_checksum": numcodecs.Zstd(5, True),
}.items():
    v2(name, compressor=codec)
v2("shuffle_zlib", compressor=numcodecs.Zlib(5), filters=[numcodecs.Shuffle(2)])
v2("adler32", compressor=None, filters=[numcodecs.Adler32()])
v2("fletcher32", compressor=None, filters=[numcodecs.Fletcher32()])

# Filters that change values, or could: these voxels come out as they went in.
v3a("numcodecs_bitround", [v3.BitRound(keepbits=10), LITTLE], dtype="f4")
v3a("numcodecs_quantize", [v3.Quantize(digits=2, dtype="f4"), LITTLE], dtype="f4")
scaled = dict(offset=-20, scale=2, dtype="f4", astype="i2")
v3a("numcodecs_fixedscaleoffset", [v3.FixedScaleOffset(**scaled), LITTLE], dtype="f4")
v2("bitround", dtype="<f4", compressor=None, filters=[numcodecs.BitRound(10)])
v2("quantize", dtype=">f4", compressor=numcodecs.Zlib(5), filters=[numcodecs.Quantize(2, ">f4")])
v2("fixedscaleoffset", dtype="<f4", compressor=None, filters=[numcodecs.FixedScaleOffset(**scaled)])

# Orders of axes.
v2("order_f", order="F", compressor=None, chunks=FINE)
v2("order_f_big_zlib", order="F", dtype=">f4", chunks=FINE, compressor=numcodecs.Zlib(5))
v3a("transpose", [TransposeCodec(order=(2, 0, 1)), LITTLE], chunks=FINE)
v3a("transpose_twice", [TransposeCodec(order=(2, 0, 1)), TransposeCodec(order=(0, 2, 1)), BIG, GzipCodec()], chunks=FINE)

# Shards.
inner = [LITTLE, ZstdCodec(level=1)]
PLAIN_INDEX, CHECKED_INDEX = [LITTLE], [LITTLE, Crc32cCodec()]


def sharded(chunk=FINE, codecs=inner, index=CHECKED_INDEX, location="end"):
    return ShardingCodec(chunk_shape=chunk, codecs=codecs, index_codecs=index, index_location=location)


big = dict(shape=(7, 8, 9), chunks=(4, 6, 8))
v3a("shard_end", [sharded()], **big)
v3a("shard_start", [sharded(location="start")], **big)
v3a("shard_index_unchecked", [sharded(index=PLAIN_INDEX)], **big)
v3a("shard_index_big", [sharded(index=[BIG, Crc32cCodec()], location="start")], **big)
v3a("shard_crc32c", [sharded(codecs=[LITTLE, Crc32cCodec()])], **big)
v3a("shard_blosc_transpose", [sharded(codecs=[TransposeCodec(order=(1, 2, 0)), BIG, BloscCodec(typesize=2)])], **big)
v3a("shard_partial", [sharded()], written=[[0, 0, 0], [2, 3, 9]], fill=-7, **big)
v3a("shard_in_shard", [sharded(codecs=[sharded(chunk=(1, 3, 2), location="start")])], **big)
v3a("shard_in_shard_partial", [sharded(codecs=[sharded(chunk=(1, 3, 2))])], written=[[0, 0, 0], [1, 3, 2]], fill=9, **big)
v3a("shard_gzip", [sharded(), GzipCodec()], **big)
v3a("shard_crc32c_outside", [sharded(), Crc32cCodec()], **big)
v3a("transpose_shard", [TransposeCodec(order=(2, 1, 0)), sharded(chunk=(4, 3, 2))], **big)
v3a("shard_channels", [sharded(chunk=(1, 2, 3, 4))], shape=(3, 4, 5, 6), chunks=(2, 4, 6, 8), dtype="u1")

# Fill values and keys.
for name, dtype, fill in [
    ("nan", "f4", np.nan), ("inf", "f4", np.inf), ("minus_inf", "f8", -np.inf), ("half", "f2", 1.5),
    ("negative", "i2", -300), ("large", "u8", 2**63 + 5), ("true", "b1", True),
]:
    v3a("fill_" + name, dtype=dtype, written=SOME, fill=fill)
    v2("fill_" + name, dtype=dtype, written=SOME, fill=fill, compressor=None)
v2("fill_null", written=SOME, fill=None, compressor=None)
v2("fill_null_f4", dtype="f4", written=SOME, fill=None, compressor=None)
v2("fill_missing", written=SOME, fill=None, compressor=None)
edit("v2/fill_missing/.zarray", lambda d: d.pop("fill_value"))
v2("fill_bool_number", dtype="b1", written=SOME, fill=True, compressor=None)
edit("v2/fill_bool_number/.zarray", lambda d: d.update(fill_value=1))
v2("fill_whole_float", written=SOME, fill=-3, compressor=None)
edit("v2/fill_whole_float/.zarray", lambda d: d.update(fill_value=-3.0))
v3a("fill_hex", dtype="f4", written=SOME, fill=1.5)
edit("v3/fill_hex/zarr.json", lambda d: d.update(fill_value="0x3fc00000"))
v2("separator_slash", dimension_separator="/", chunks=FINE, compressor=None)
v2("separator_dot", dimension_separator=".", chunks=FINE, compressor=None)
v3a("separator_dot", chunk_key_encoding=("default", "."), chunks=FINE)
v3a("separator_v2", chunk_key_encoding=("v2", "/"), chunks=FINE)
v3a("zstd_bare", [LITTLE, ZstdCodec(level=3)])
edit("v3/zstd_bare/zarr.json", lambda d: d["codecs"][1].update(configuration={"level": 3}))
v3a("named_codecs", [BytesCodec(), GzipCodec()], dtype="u1")
edit("v3/named_codecs/zarr.json", lambda d: d.update(codecs=["bytes", d["codecs"][1]], data_type={"name": "uint8"}))

# Ranks and chunks that are longer than the array.
for rank in range(2, 9):
    shape = (2, 1, 2, 1, 2, 3, 4, 5)[-rank:]
    chunks = (1, 1, 1, 1, 1, 2, 4, 3)[-rank:]
    v3a(f"rank_{rank}", shape=shape, chunks=chunks)
    v2(f"rank_{rank}", shape=shape, chunks=chunks, compressor=numcodecs.Zlib(1))
v2("chunk_beyond", shape=(1, 2, 3, 4, 5), chunks=(8, 8, 8, 8, 8), compressor=None)
v2("chunk_beyond_each", shape=(3, 2, 3, 4, 5), chunks=(1, 4, 2, 4, 5), compressor=numcodecs.Zlib(1))
v3a("chunk_of_channels", shape=(2, 4, 2, 3, 4), chunks=(1, 2, 2, 3, 4))
v3a("chunk_of_times", shape=(5, 2, 2, 3, 4), chunks=(2, 2, 2, 2, 4))

for attrs in OUT.rglob(".zattrs"):
    if attrs.read_text().strip() in ("{}", ""):
        attrs.unlink()
print(sum(1 for _ in OUT.rglob("*")), "files,", sum(p.stat().st_size for p in OUT.rglob("*") if p.is_file()), "bytes")
