"""U-MARVEL's recipe: texts, captions, instructions, then hard negatives, and what a reranker knows.

    nli → cc3m → mbeir ─┬→ mine ──────→ hard-negatives ─┬→ score → distill = umarvel
                        └→ mine-local → reranker ───────┘

Settings are those of the paper (arXiv 2507.14902) and, where it is silent, of the released scripts
(chaxjli/U-MARVEL, scripts/umarvel). Where they differ the paper counts as far as it is known: negatives
are filtered at a similarity of 0.7, of which the released code knows nothing.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from harness.recipe import MODEL, Recipe, Settings, Stage, StageRun

from ..training.answering import answer, reranker_base
from ..training.contrastive import contrastive
from ..training.corpus import uses
from ..training.distilling import distill
from ..training.embedder import SAVED, checkpoints_of, embedder_base
from ..training.estimates import answered_cost, contrastive_cost, distilled_cost, mined_cost, scored_cost
from ..training.lists import MINED, SCORED
from ..training.mining import mine
from ..training.scoring import score
from ..training.settings import ADAPTER, BASE, CONTRASTIVE, DATA, FORWARD, SCHEDULE
from . import SPEC
from .presets import BOARDS, PRESETS

MBEIR = "mbeir-local/*"
PAPER = "arXiv 2507.14902"
MAKES = (SAVED, "log.csv")


def umarvel_contrastive(run: StageRun) -> None:
    """InfoNCE on what U-MARVEL is shown."""
    contrastive(run, SPEC)


def umarvel_mine(run: StageRun) -> None:
    """What U-MARVEL retrieves."""
    mine(run, SPEC)


def umarvel_score(run: StageRun) -> None:
    """What U-MARVEL retrieves, with the reranker's word on it."""
    score(run, SPEC)


def umarvel_distill(run: StageRun) -> None:
    """A teacher's order of lists."""
    distill(run, SPEC)


_retriever = partial(Stage, makes=MAKES, uses=uses, base=embedder_base, checkpoints=checkpoints_of(SPEC))
_contrastive = partial(_retriever, run=umarvel_contrastive, estimate=contrastive_cost)

NLI = _contrastive(
    name="nli",
    title="pairs of sentences",
    objective="InfoNCE, query → candidate, in-batch negatives, temperature 0.05",
    settings={
        **CONTRASTIVE,
        **{"tasks": "nli/entailment", "batch": 576, "epochs": 2, "learning_rate": 2e-4},
        **{"lora_rank": 64, "lora_alpha": 128},
    },
    paper_ref=f"{PAPER}, §3.1.3",
    doc="""
    A language model learns to say a text in one vector: SimCSE's pairs of sentences, texts alone.
    Released: 72 a device on one node of 8. No score of its own is published. About 3 H100 hours.

        harness train umarvel --stage nli
    """,
)

CC3M = _contrastive(
    name="cc3m",
    title="captions and their pictures",
    objective="InfoNCE in both directions, weights 1 and 1, in-batch negatives, temperature 0.05",
    settings={
        **CONTRASTIVE,
        **{"tasks": "cc3m/text-to-image", "batch": 960, "learning_rate": 1e-4, "two_way": True},
    },
    needs={MODEL: "nli"},
    paper_ref=f"{PAPER}, §3.1.3, Table 3",
    doc="""
    Pictures come to lie where their captions are: LLaVA's 595k of CC3M. Released: 60 a device, on 16
    devices by the names of its runs. Worth 0.4 points locally (Table 3). About 11 H100 hours.

        harness train umarvel --stage cc3m
    """,
)

INSTRUCTED = _contrastive(
    name="mbeir",
    title="instructed retrieval",
    objective="InfoNCE, query → candidate, in-batch negatives, learned temperature",
    settings={
        **CONTRASTIVE,
        **{"tasks": MBEIR, "batch": 3840, "learning_rate": 4e-4, "learn_temperature": True},
    },
    needs={MODEL: "cc3m"},
    expected={"mbeir-local": 0.606, "mbeir-global": 0.587},
    paper_ref=f"{PAPER}, §3.1.2, §3.2.1, Tables 4, 5",
    doc="""
    M-BEIR's 1,332,790 instructed queries, the instruction seen but left out of the mean. The batch of
    3,840 was 64 devices of 60; on fewer its gradient is cached. 60.6 / 58.7 (Table 5). About 26 H100 hours.

        torchrun --nproc-per-node 8 $(which harness) train umarvel --stage mbeir
    """,
)

_MINING: Settings = {**BASE, **DATA, **FORWARD, "tasks": MBEIR, "depth": 100}

MINE = Stage(
    name="mine",
    title="what the model retrieves in all pools together",
    objective="none: exact search",
    settings={**_MINING, "pools": "global"},
    makes=(MINED,),
    run=umarvel_mine,
    estimate=mined_cost,
    uses=uses,
    base=embedder_base,
    needs={MODEL: "mbeir"},
    paper_ref=f"{PAPER}, §3.2.2",
    doc="""
    The 100 nearest candidates of every training query, by id, with their cosines. Encodes queries and
    pool once for both mining stages, about 16 H100 hours.

        harness train umarvel --stage mine
    """,
)

MINE_LOCAL = replace(
    MINE,
    name="mine-local",
    title="what the model retrieves in each task's own pool",
    settings={**_MINING, "pools": "local"},
    paper_ref=f"{PAPER}, §3.3",
    doc="""
    As mine, for the reranker.

        harness train umarvel --stage mine-local
    """,
)

HARD_NEGATIVES = _contrastive(
    name="hard-negatives",
    title="what the model still confuses",
    objective="InfoNCE, in-batch negatives and five mined ones of every query, learned temperature",
    settings={
        **CONTRASTIVE,
        **{"tasks": MBEIR, "batch": 1088, "learning_rate": 1.5e-5, "learn_temperature": True},
        **{"negatives": 5, "policy": "top", "threshold": 0.7},
    },
    needs={MODEL: "mbeir", "negatives": "mine"},
    expected={"mbeir-local": 0.617, "mbeir-global": 0.599},
    paper_ref=f"{PAPER}, §3.2.2, Table 5",
    doc="""
    The best five of all pools that are no positives and not more alike to the query than 0.7, in which the
    paper sees positives that nobody has marked. 17 a device on 64. 61.7 / 59.9 (Table 5; second-hand, as is
    the threshold). About 90 H100 hours.

        torchrun --nproc-per-node 8 $(which harness) train umarvel --stage hard-negatives
    """,
)

RERANKER = Stage(
    name="reranker",
    title="Yes or No to a query and a candidate",
    objective="cross entropy of the answer's next tokens",
    settings={
        **BASE,
        **DATA,
        **ADAPTER,
        **SCHEDULE,
        **{"tasks": MBEIR, "batch": 512, "learning_rate": 2e-5, "form": "pointwise", "labels": "turn"},
        **{"max_pixels": 300 * 28 * 28, "text_tokens": 256, "dtype": "bfloat16", "init": "base"},
    },
    makes=MAKES,
    run=answer,
    estimate=answered_cost,
    uses=uses,
    base=reranker_base,
    needs={"negatives": "mine-local", "retriever": "mbeir"},
    paper_ref=f"{PAPER}, §3.3, §3.4",
    doc="""
    The raw base learns to answer Yes to a positive and No to one drawn of the 100 that were retrieved.
    Released: 2 a device, 4 passes a step, on 64. As a teacher, 64.5 / 61.7 (Table 6). About 39 H100 hours.

        torchrun --nproc-per-node 8 $(which harness) train umarvel --stage reranker
    """,
)

SCORE = Stage(
    name="score",
    title="the teacher's order of what the student retrieves",
    objective="none: cosine + weight · P(Yes)",
    settings={
        **_MINING,
        **{"share": 0.1, "depth": 50, "pools": "local", "lists": "top"},
        "weights": "*=1.0,*/mscoco_task0=0.5,*/mscoco_task3=0.1",
    },
    makes=(SCORED,),
    run=umarvel_score,
    estimate=scored_cost,
    uses=uses,
    base=embedder_base,
    needs={MODEL: "hard-negatives", "reranker": "reranker"},
    paper_ref=f"{PAPER}, §3.3",
    doc="""
    The reranker on the 50 nearest candidates of a tenth of the queries. About 17 H100 hours.

        harness train umarvel --stage score
    """,
)

DISTILL = _retriever(
    name="distill",
    title="the teacher's order in the student's vectors",
    objective="KL divergence of the shares of 50 candidates, learned temperature",
    settings={
        **BASE,
        **DATA,
        **FORWARD,
        **ADAPTER,
        **SCHEDULE,
        **{"tasks": MBEIR, "share": 0.1, "depth": 50, "batch": 128, "learning_rate": 1e-5},
        **{"temperature": 0.05, "learn_temperature": True, "max_pixels": 224 * 224},
        **{"divergence": "kl", "divide": 2.0, "ranking": 0.0, "infonce": 0.0, "with_positives": False},
    },
    run=umarvel_distill,
    estimate=distilled_cost,
    needs={MODEL: "hard-negatives", "teacher": "score"},
    expected={"mbeir-local": 0.632, "mbeir-global": 0.607},
    paper_ref=f"{PAPER}, §3.3, Table 6",
    doc="""
    No in-batch negatives, no InfoNCE; positives count where they were retrieved. Pictures of 224² pixels,
    as released. 2 a device on 64. 63.2 / 60.7 (Table 6). About 65 H100 hours.

        torchrun --nproc-per-node 8 $(which harness) train umarvel --stage distill
    """,
)

CONTINUE_HARD = _contrastive(
    name="continue-hard",
    title="the control: hard negatives in place of the teacher",
    objective="InfoNCE, the teacher's candidates as negatives, none of the batch",
    settings={
        **CONTRASTIVE,
        **{"tasks": MBEIR, "share": 0.1, "batch": 128, "learning_rate": 1e-5, "learn_temperature": True},
        **{"negatives": 50, "policy": "top", "threshold": None, "in_batch": False, "max_pixels": 224 * 224},
    },
    needs={MODEL: "hard-negatives", "negatives": "score"},
    paper_ref=f"{PAPER}, Table 6",
    doc="""
    The data, the lists and the steps of distill, without its teacher. 62.2 / 60.0 (Table 6).

        harness train umarvel-continue-hard --stage continue-hard
    """,
)

UMARVEL = Recipe(
    "umarvel",
    "U-MARVEL, Qwen2-VL-7B",
    (NLI, CC3M, INSTRUCTED, MINE, MINE_LOCAL, HARD_NEGATIVES, RERANKER, SCORE, DISTILL),
    paper_ref=PAPER,
    presets=PRESETS,
    boards=BOARDS,
)
