"""The recipes of U-MARVEL's ablations, a line each: every row of the paper's tables that training makes.

    umarvel-no-cc3m    _without(SMALL_BATCH, "no-cc3m", "cc3m")

Parents, changes and references are those of the models of the same names (`ablations.py`); a variant of
the forward pass is trained as it is evaluated.
"""

from __future__ import annotations

from dataclasses import replace

from harness.recipe import MODEL, Recipe, Setting, Settings, Stage, again, instead, vary, without

from ..training.settings import BASE
from . import UMARVEL_QWEN3VL_4B
from .ablations import ABLATIONS
from .recipe import CONTINUE_HARD, HARD_NEGATIVES, MINE_LOCAL, RERANKER, UMARVEL

_MODELS = {spec.name: spec for spec in (UMARVEL_QWEN3VL_4B, *ABLATIONS)}


def _said(name: str) -> dict[str, str | None]:
    return {"change": _MODELS[name].change or "", "paper_ref": _MODELS[name].paper_ref}


def _vary(parent: Recipe, short: str, **settings: Setting | Settings) -> Recipe:
    name = f"umarvel-{short}"
    return vary(parent, name, **_said(name), **settings)  # type: ignore[arg-type]


def _without(parent: Recipe, short: str, *stages: str) -> Recipe:
    name = f"umarvel-{short}"
    return without(parent, name, *stages, **_said(name))  # type: ignore[arg-type]


def _from_both(stage: Stage) -> Stage:
    """With as many negatives of the local pools as of all together."""
    return replace(stage, needs={**stage.needs, "negatives-local": "mine-local"})


# Tables 3, 5, 6, 15
NO_DISTILL = _without(UMARVEL, "no-distill", "distill", "score", "reranker", "mine-local")
CONTINUE = instead(
    UMARVEL,
    "umarvel-continue-hard",
    {"distill": CONTINUE_HARD},
    **_said("umarvel-continue-hard"),  # type: ignore[arg-type]
)
NO_HARD = _without(NO_DISTILL, "no-hard-negatives", "hard-negatives", "mine")
UNFILTERED = _vary(NO_DISTILL, "hard-unfiltered", hard_negatives={"threshold": None})
HARD_ONLY = _vary(NO_DISTILL, "hard-only", hard_negatives={"in_batch": False})
SMALL_BATCH = _vary(
    NO_HARD, "small-batch", mbeir={"batch": 960, "learning_rate": 1e-4, "learn_temperature": False}
)
"""LamRA's batch and rate: the paper does not say with which Tables 1 to 3 were made."""
NO_CC3M = _without(SMALL_BATCH, "no-cc3m", "cc3m")
MBEIR_ONLY = _without(NO_CC3M, "mbeir-only", "nli")

# Tables 1, 2
NO_INSTRUCTION = _vary(NO_CC3M, "no-instruction", instruction_place="nowhere")
UNMASKED = _vary(NO_CC3M, "unmasked", instruction_in_pool=True)
PROMPT = _vary(UNMASKED, "bidirectional-mean-prompt", suffix="summarize")
CAUSAL_PROMPT = _vary(PROMPT, "causal-mean-prompt", attention="causal")
LAST_PROMPT = _vary(PROMPT, "bidirectional-last-prompt", pool="pre_emb_token")
CAUSAL_LAST_PROMPT = _vary(LAST_PROMPT, "causal-last-prompt", attention="causal")

# Table 4
LEARNED = again(NO_HARD, "umarvel-bs3840-learnable", **_said("umarvel-bs3840-learnable"))  # type: ignore[arg-type]
LEARNED_7680 = _vary(LEARNED, "bs7680-learnable", mbeir={"batch": 7680})
FIXED = _vary(LEARNED, "bs3840-lr4e-4", mbeir={"learn_temperature": False})
FIXED_SLOW = _vary(FIXED, "bs3840-lr2.8e-4", mbeir={"learning_rate": 2.8e-4})
FIXED_5760 = _vary(FIXED, "bs5760-lr6e-4", mbeir={"batch": 5760, "learning_rate": 6e-4})
FIXED_7680 = _vary(FIXED, "bs7680-lr6e-4", mbeir={"batch": 7680, "learning_rate": 6e-4})
FIXED_1920 = _vary(FIXED, "bs1920-lr2e-4", mbeir={"batch": 1920, "learning_rate": 2e-4})
FIXED_1920_SLOW = _vary(FIXED_1920, "bs1920-lr1e-4", mbeir={"learning_rate": 1e-4})
FIXED_480 = _vary(FIXED_1920_SLOW, "bs480", mbeir={"batch": 480})

# What the released code has beyond the tables
SKIP_NLI = _without(NO_HARD, "skip-nli", "nli")
SKIP_CC3M = _without(NO_HARD, "skip-cc3m", "cc3m")
SKIP_BOTH = _without(NO_HARD, "skip-nli-cc3m", "nli", "cc3m")
WITH_SHAREGPT4V = _vary(NO_HARD, "cc3m-sharegpt4v", cc3m={"tasks": "cc3m/*,sharegpt4v-train/*"})
SHAREGPT4V = _vary(NO_HARD, "sharegpt4v", cc3m={"tasks": "sharegpt4v-train/*"})
PROJECTOR = _vary(NO_HARD, "projector", cc3m={"train_projector": True})
VISION_LORA = _vary(NO_HARD, "vision-lora", cc3m={"train_vision": True})
TART = _vary(NO_HARD, "tart", nli={"tasks": "tart/*", "learning_rate": 1e-4})
TEMP_FIXED = _vary(NO_HARD, "temp-fixed", mbeir={"learn_temperature": False})
BILOSS = _vary(NO_HARD, "biloss", mbeir={"two_way": True})
FOCAL = _vary(NO_HARD, "loss-focal", mbeir={"objective": "focal", "learn_temperature": False})
FOCAL_ABS = _vary(NO_HARD, "loss-focal-abs", mbeir={"objective": "focal-abs", "learn_temperature": False})
DIHT = _vary(NO_HARD, "loss-diht", mbeir={"objective": "diht", "learn_temperature": False})
LLAVE = _vary(NO_HARD, "loss-llave", mbeir={"objective": "llave", "learn_temperature": False})
_TENTH: Settings = {"learn_temperature": False, "temperature": 0.1}
SOFTCSE_W = _vary(NO_HARD, "loss-softcse-w", mbeir={"objective": "softcse-w", **_TENTH})
SOFTCSE_T = _vary(NO_HARD, "loss-softcse-t", mbeir={"objective": "softcse-t", **_TENTH})
HARD_LOCAL = _vary(NO_DISTILL, "hard-local", mine={"pools": "local"})
HARD_BOTH = replace(
    instead(
        _without(UMARVEL, "no-distill", "distill", "score", "reranker"),
        "umarvel-hard-both",
        {"hard-negatives": _from_both(HARD_NEGATIVES)},
        **_said("umarvel-hard-both"),  # type: ignore[arg-type]
    ),
    parent="umarvel-no-distill",
)
RELEASED_TOPK = _vary(NO_DISTILL, "released-topk", hard_negatives={"threshold": None})
TWO_STRATEGY = _vary(NO_DISTILL, "two-strategy", hard_negatives={"policy": "two-strategy", "threshold": None})
THREE_STRATEGY = _vary(
    NO_DISTILL, "three-strategy", hard_negatives={"policy": "three-strategy", "threshold": None}
)
HARD_K10 = _vary(NO_DISTILL, "hard-k10", hard_negatives={"negatives": 10})
RANKING = _vary(UMARVEL, "distill-ranking", distill={"ranking": 1.0})
DISTILL_GLOBAL = _vary(UMARVEL, "distill-global", score={"pools": "global"})
RANDOM50 = _vary(UMARVEL, "distill-random50", score={"lists": "random"})
LASTK = _vary(UMARVEL, "distill-lastk", score={"lists": "last"})
TWENTY_PERCENT = _vary(UMARVEL, "distill-20percent", score={"share": 0.2}, distill={"share": 0.2})
SKIP_HARD = replace(
    _without(UMARVEL, "distill-skip-hard", "hard-negatives", "mine"), parent="umarvel-no-hard-negatives"
)
_HELD_OUT: Settings = {
    "tasks": "mbeir-local/*,!mbeir-local/nights*,!mbeir-local/oven*,!mbeir-local/infoseek*"
}
HELD_OUT = _vary(
    UMARVEL,
    "held-out",
    **dict.fromkeys(
        ("mbeir", "mine", "mine_local", "hard_negatives", "reranker", "score", "distill"), _HELD_OUT
    ),
)

# Other backbones: adapters reach into their vision towers, as the released code's do
_BOTH_WAYS: Settings = {"two_way": True, "two_way_weight": 0.5}
_SMALLER: Settings = {"max_pixels": 224 * 224}
QWEN25VL_7B = _vary(
    UMARVEL,
    "qwen2.5vl-7b",
    base="Qwen/Qwen2.5-VL-7B-Instruct",
    train_vision=True,
    nli={**_BOTH_WAYS, "batch": 960},
    cc3m={"two_way_weight": 0.5},
    distill={"max_pixels": 200 * 28 * 28},
)
QWEN3VL_4B = _vary(
    UMARVEL,
    "qwen3vl-4b",
    base="Qwen/Qwen3-VL-4B-Instruct",
    system=None,
    train_vision=True,
    nli={**_BOTH_WAYS, "batch": 1728},
    cc3m={"two_way_weight": 0.5, "batch": 2880},
    mbeir={"batch": 5120, **_SMALLER},
    hard_negatives={"batch": 1280, **_SMALLER},
    distill={"batch": 192},
)
QWEN3VL_8B = _vary(
    UMARVEL,
    "qwen3vl-8b",
    base="Qwen/Qwen3-VL-8B-Instruct",
    system=None,
    train_vision=True,
    nli=_BOTH_WAYS,
    cc3m={"two_way_weight": 0.5},
    mbeir={"batch": 3200, "learning_rate": 2e-4, "lora_rank": 32, "lora_alpha": 64},
    hard_negatives={"batch": 768, **_SMALLER},
    distill={"max_pixels": 200 * 200},
)
CROSS_TEACHER = _vary(QWEN3VL_4B, "distill-cross-teacher", reranker=BASE)

PLUS = Recipe(
    "umarvel-plus",
    "U-MARVEL+: a reranker trained on what the distilled model retrieves",
    (
        *UMARVEL.stages,
        replace(MINE_LOCAL, name="mine-plus", needs={MODEL: "distill"}),
        replace(
            RERANKER,
            name="reranker-plus",
            needs={"negatives": "mine-plus", "retriever": "distill"},
            expected={"mbeir-local": 0.648, "mbeir-global": 0.618},
        ),
    ),
    parent="umarvel",
    change="a second reranker, evaluated with --rerank",
    paper_ref=f"{UMARVEL.paper_ref}, Tables 7, 17",
    presets={
        name: {**stages, "mine-plus": stages["mine-local"], "reranker-plus": stages["reranker"]}
        for name, stages in UMARVEL.presets.items()
    },
    boards=UMARVEL.boards,
)

VARIANTS = (
    *(NO_DISTILL, CONTINUE, NO_HARD, UNFILTERED, HARD_ONLY, SMALL_BATCH, NO_CC3M, MBEIR_ONLY),
    *(NO_INSTRUCTION, UNMASKED, PROMPT, CAUSAL_PROMPT, LAST_PROMPT, CAUSAL_LAST_PROMPT),
    *(LEARNED, LEARNED_7680, FIXED, FIXED_SLOW, FIXED_5760, FIXED_7680, FIXED_1920, FIXED_1920_SLOW),
    *(FIXED_480, SKIP_NLI, SKIP_CC3M, SKIP_BOTH, WITH_SHAREGPT4V, SHAREGPT4V, PROJECTOR, VISION_LORA, TART),
    *(TEMP_FIXED, BILOSS, FOCAL, FOCAL_ABS, DIHT, LLAVE, SOFTCSE_W, SOFTCSE_T, HARD_LOCAL, HARD_BOTH),
    *(RELEASED_TOPK, TWO_STRATEGY, THREE_STRATEGY, HARD_K10, RANKING, DISTILL_GLOBAL, RANDOM50, LASTK),
    *(TWENTY_PERCENT, SKIP_HARD, HELD_OUT, QWEN25VL_7B, QWEN3VL_4B, QWEN3VL_8B, CROSS_TEACHER, PLUS),
)
