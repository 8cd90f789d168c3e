"""Built-in models, found through the `harness` entry point like any other plugin."""

from __future__ import annotations

from collections.abc import Sequence

from harness.hookspecs import hookimpl
from harness.model import ModelSpec

from .baselines import CONSTANT, ORACLE, RANDOM
from .clip import CLIP
from .conse import CONSE
from .minilm import MINILM

MODELS = (CONSE, CLIP, MINILM, RANDOM, ORACLE, CONSTANT)


@hookimpl
def harness_models() -> Sequence[ModelSpec]:
    return MODELS
