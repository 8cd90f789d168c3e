"""Speed on this machine: search, encoding, metrics, loading and storing beside what people use instead.

Every comparison takes turns in one process; the ratio is the median of the rounds' ratios, ours divided
by theirs. With one thread the seconds are the process's CPU seconds, which other programs on the
machine hardly touch; with more, they are of the clock.
"""

from __future__ import annotations

from .encoding import EncodeSizes, bench_encode
from .evaluation import Model, bench_evaluation, write_drawn, write_pictures, write_texts
from .evaluators import OpenClip, sentence_model, write_open_clip
from .full_shape import full_shape
from .galleries import bench_galleries
from .growth import Growth, GrowthSizes, bench_growth
from .loading import bench_load
from .metrics import bench_intervals, bench_metrics
from .pictures import ImageSizes, bench_images
from .pools import SearchSizes
from .search import bench_search
from .start import bench_start
from .storing import StoreSizes, bench_store
from .timing import Peer, Row, Timing, threads

__all__ = [
    "EncodeSizes",
    "Growth",
    "GrowthSizes",
    "ImageSizes",
    "Model",
    "OpenClip",
    "Peer",
    "Row",
    "SearchSizes",
    "StoreSizes",
    "Timing",
    "bench_encode",
    "bench_evaluation",
    "bench_galleries",
    "bench_growth",
    "bench_images",
    "bench_intervals",
    "bench_load",
    "bench_metrics",
    "bench_search",
    "bench_start",
    "bench_store",
    "full_shape",
    "sentence_model",
    "threads",
    "write_drawn",
    "write_open_clip",
    "write_pictures",
    "write_texts",
]
