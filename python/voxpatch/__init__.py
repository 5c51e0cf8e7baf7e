"""Patches out of huge 3-D volumes, without loading the volume.

Axes are c, z, y, x everywhere: channels, then planes, rows and columns, x fastest. Spacing is in mm, along z, y, x;
affines take voxel indices (x, y, z, 1) to mm in RAS+, as nibabel's do.
"""

from ._voxpatch import Volume, __version__
from .augment import RandomAffine, RandomElastic
from .errors import VoxpatchError
from .files import convert, open, write
from .inference import GridAggregator, GridSampler
from .jobs import Job, Task, plan_predict
from .options import Gaussian, MeanStd, NnunetCt, Percentile, Quantize, Threshold, Within
from .prediction import predict
from .queue import LazySubjects, Queue, turn_back
from .samplers import LabelSampler, MixtureSampler, Sampler, UniformSampler, WeightedSampler
from .segmentation import export_dicom_seg
from .statistics import stats
from .subject import Subject

__all__ = [
    "Gaussian",
    "GridAggregator",
    "GridSampler",
    "Job",
    "LabelSampler",
    "LazySubjects",
    "MeanStd",
    "MixtureSampler",
    "NnunetCt",
    "Percentile",
    "Quantize",
    "Queue",
    "RandomAffine",
    "RandomElastic",
    "Sampler",
    "Subject",
    "Task",
    "Threshold",
    "UniformSampler",
    "Volume",
    "VoxpatchError",
    "WeightedSampler",
    "Within",
    "__version__",
    "convert",
    "export_dicom_seg",
    "open",
    "plan_predict",
    "predict",
    "stats",
    "turn_back",
    "write",
]
