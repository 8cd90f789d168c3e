"""What other people's packages need before they can be imported."""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path
from typing import Any


def allow_torchvision() -> None:
    """Call this before the first import of torchvision, open_clip or a transformers model.

    The package registry's torchvision is linked to CUDA: beside a CPU-only torch its extension
    cannot load, and `import torchvision` then fails over two operators that nobody here calls.
    Naming their schemas lets the import pass; the operators themselves stay unusable.
    """
    _operators()


@cache
def _operators() -> Any:
    """The library that holds the schemas: they vanish with it, so the cache keeps it."""
    import torch

    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None or torch.version.cuda or torch.version.hip:
        return None
    ops: Any = torch.ops  # untyped, as is the library
    for extension in Path(spec.origin).parent.glob("_C.*"):
        try:
            ops.load_library(str(extension))
        except (ImportError, OSError):
            continue
        return None  # a CPU build: it brings its own operators, and a second schema would clash
    make: Any = torch.library.Library
    library = make("torchvision", "FRAGMENT")
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library
