"""LamRA's recipes: a retriever of texts and instructions, and a reranker of what that retrieves.

    nli → mbeir = lamra-ret → mine-local → reranker = lamra-rank

Liu et al. 2024 (arXiv 2412.01720) and the released scripts (Code-kunkun/LamRA).
"""

from __future__ import annotations

from functools import partial

from harness.recipe import MODEL, Recipe, Settings, Stage, StageRun

from .lamra import SPEC
from .training.answering import answer, reranker_base
from .training.contrastive import contrastive
from .training.corpus import uses
from .training.embedder import SAVED, checkpoints_of, embedder_base
from .training.estimates import answered_cost, contrastive_cost, mined_cost
from .training.lists import MINED
from .training.mining import mine
from .training.settings import ADAPTER, BASE, CONTRASTIVE, DATA, FORWARD, SCHEDULE

_PAPER = "arXiv 2412.01720"
_MAKES = (SAVED, "log.csv")
_MBEIR = "mbeir-local/*"
_SHOWN: Settings = {
    **FORWARD,
    "suffix": "summarize",
    "instruction_tokens": False,
    "instruction_in_pool": True,
    "pool": "pre_emb_token",
    "attention": "causal",
}


def lamra_contrastive(run: StageRun) -> None:
    """InfoNCE on what LamRA-Ret is shown."""
    contrastive(run, SPEC)


def lamra_mine(run: StageRun) -> None:
    """What LamRA-Ret retrieves."""
    mine(run, SPEC)


_contrastive = partial(
    Stage,
    makes=_MAKES,
    run=lamra_contrastive,
    estimate=contrastive_cost,
    uses=uses,
    base=embedder_base,
    checkpoints=checkpoints_of(SPEC),
)

NLI = _contrastive(
    name="nli",
    title="pairs of sentences",
    objective="InfoNCE, query → candidate, in-batch negatives, temperature 0.05",
    settings={
        **CONTRASTIVE,
        **_SHOWN,
        **{"tasks": "nli/entailment", "batch": 576, "epochs": 2, "learning_rate": 2e-4},
        **{"lora_rank": 64, "lora_alpha": 128},
    },
    paper_ref=_PAPER,
    doc="""
    Texts alone; 72 a device on 8. The paper says a rate of 4e-5, the script 2e-4.

        harness train lamra-ret --stage nli
    """,
)

INSTRUCTED = _contrastive(
    name="mbeir",
    title="instructed retrieval",
    objective="InfoNCE, query → candidate, in-batch negatives, temperature 0.05",
    settings={**CONTRASTIVE, **_SHOWN, "tasks": _MBEIR, "batch": 960, "learning_rate": 1e-4},
    needs={MODEL: "nli"},
    expected={"mbeir-local": 0.566, "mbeir-global": 0.549},
    paper_ref=_PAPER,
    doc="""
    60 a device on 16. 56.6 / 54.9. Its authors took about 8 hours of 16 A100 (issue 14 of the repository).

        torchrun --nproc-per-node 8 $(which harness) train lamra-ret --stage mbeir
    """,
)

MINE_LOCAL = Stage(
    name="mine-local",
    title="what the model retrieves in each task's own pool",
    objective="none: exact search",
    settings={**BASE, **DATA, **_SHOWN, "tasks": _MBEIR, "depth": 100, "pools": "local"},
    makes=(MINED,),
    run=lamra_mine,
    estimate=mined_cost,
    uses=uses,
    base=embedder_base,
    needs={MODEL: "mbeir"},
    paper_ref=_PAPER,
    doc="""
    The 100 nearest candidates of every training query.

        harness train lamra-rank --stage mine-local
    """,
)

RERANKER = Stage(
    name="reranker",
    title="Yes or No to a candidate, and the best of a list",
    objective="cross entropy of the answer's next tokens, a pair or a list at a time",
    settings={
        **BASE,
        **DATA,
        **ADAPTER,
        **SCHEDULE,
        **{"tasks": _MBEIR, "batch": 128, "learning_rate": 2e-5, "form": "pointwise+listwise"},
        **{"labels": "turn", "max_pixels": 300 * 28 * 28, "text_tokens": 256, "dtype": "bfloat16"},
        "init": "base",
    },
    makes=_MAKES,
    run=answer,
    estimate=answered_cost,
    uses=uses,
    base=reranker_base,
    needs={"negatives": "mine-local", "retriever": "mbeir"},
    expected={"mbeir-local": 0.637, "mbeir-global": 0.614},
    paper_ref=_PAPER,
    doc="""
    2 a device, 4 passes a step, on 16; the paper says a rate of 4e-5, the script 2e-5. With LamRA-Ret
    63.7 / 61.4. Its authors took about two days of 16 A100.

        torchrun --nproc-per-node 8 $(which harness) train lamra-rank --stage reranker
    """,
)

LAMRA_RET_RECIPE = Recipe("lamra-ret", "LamRA-Ret, Qwen2-VL-7B", (NLI, INSTRUCTED), paper_ref=_PAPER)
LAMRA_RANK_RECIPE = Recipe(
    "lamra-rank",
    "LamRA-Rank, Qwen2-VL-7B",
    (NLI, INSTRUCTED, MINE_LOCAL, RERANKER),
    paper_ref=_PAPER,
)
