"""Built-in models, found through the `harness` entry point like any other plugin."""

from __future__ import annotations

from collections.abc import Sequence

from harness.hookspecs import hookimpl
from harness.model import ModelSpec

from .baselines import CONSTANT, ORACLE, RANDOM
from .clip import CLIP
from .conse import CONSE
from .lamra import LAMRA_RET, LAMRA_RET_QWEN25VL
from .minilm import MINILM
from .umarvel import UMARVEL, UMARVEL_QWEN3VL_4B
from .umarvel.ablations import ABLATIONS

MODELS = (
    *(UMARVEL, UMARVEL_QWEN3VL_4B, *ABLATIONS),
    *(LAMRA_RET, LAMRA_RET_QWEN25VL),
    *(CONSE, CLIP, MINILM, RANDOM, ORACLE, CONSTANT),
)


@hookimpl
def harness_models() -> Sequence[ModelSpec]:
    return MODELS
