"""Built-in models, found through the `harness` entry point like any other plugin."""

from __future__ import annotations

from collections.abc import Sequence

from harness.hookspecs import hookimpl
from harness.model import ModelSpec, RerankerSpec
from harness.recipe import Recipe

from .baselines import CONSTANT, ORACLE, RANDOM
from .clip import CLIP
from .conse import CONSE
from .lamra import LAMRA_RET, LAMRA_RET_QWEN25VL
from .lamra_recipe import LAMRA_RANK_RECIPE, LAMRA_RET_RECIPE
from .last_token import MODELS as LAST_TOKEN
from .minilm import MINILM
from .random_qwen import RANDOM_QWEN
from .rerankers import LAMRA_RANK, LAMRA_RANK_QWEN25VL, UMARVEL_RERANK
from .sentence_transformer import SENTENCE_TRANSFORMERS
from .towers import CLIP_L, SIGLIP
from .umarvel import UMARVEL, UMARVEL_QWEN3VL_4B
from .umarvel.ablations import ABLATIONS
from .umarvel.recipe import UMARVEL as UMARVEL_RECIPE
from .umarvel.variants import VARIANTS
from .uniir import UNIIR_BLIP_FF, UNIIR_CLIP_SF

MODELS = (
    *(UMARVEL, UMARVEL_QWEN3VL_4B, *ABLATIONS),
    *(LAMRA_RET, LAMRA_RET_QWEN25VL),
    *LAST_TOKEN,
    *(CLIP, CLIP_L, SIGLIP, UNIIR_CLIP_SF, UNIIR_BLIP_FF),
    *(CONSE, MINILM, SENTENCE_TRANSFORMERS, RANDOM_QWEN, RANDOM, ORACLE, CONSTANT),
)
RERANKERS = (UMARVEL_RERANK, LAMRA_RANK, LAMRA_RANK_QWEN25VL)
RECIPES = (UMARVEL_RECIPE, *VARIANTS, LAMRA_RET_RECIPE, LAMRA_RANK_RECIPE)


@hookimpl
def harness_models() -> Sequence[ModelSpec]:
    return MODELS


@hookimpl
def harness_rerankers() -> Sequence[RerankerSpec]:
    return RERANKERS


@hookimpl
def harness_recipes() -> Sequence[Recipe]:
    return RECIPES
