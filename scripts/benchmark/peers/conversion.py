"""A compressed NIfTI file into Zarr."""

import shutil
import time


def nibabel_and_zarr(source, target, chunk, threads, **_):
    import nibabel
    import numpy
    import zarr

    zarr.config.set({"threading.max_workers": threads})
    shutil.rmtree(target, ignore_errors=True)
    began = time.perf_counter()
    scan = numpy.asarray(nibabel.load(source).dataobj).T
    chunks = tuple(min(chunk, n) for n in scan.shape)
    array = zarr.create_array(target, shape=scan.shape, dtype=scan.dtype, chunks=chunks,
                              compressors=zarr.codecs.ZstdCodec(level=3))
    array[:] = scan
    return {"seconds": time.perf_counter() - began}
