"""The rerankers of LamRA and U-MARVEL, with their published depths and weights.

lamra-rank   mscoco_task0: the best 50, score + 0.5 · P(Yes)      umarvel-rerank   circo/test: the best 50, + 0.1 · P(Yes)

LamRA (Liu et al. 2024, arXiv 2412.01720): depths and weights as Code-kunkun/LamRA evaluates M-BEIR and, 10
deep, everything else. U-MARVEL (arXiv 2507.14902): as chaxjli/U-MARVEL does; MSR-VTT there is 5 · score + P(Yes).
"""  # noqa: E501

from __future__ import annotations

from .qwen_rerank import qwen_reranker
from .training_data import LAMRA_HELD_OUT, MBEIR

_LICENCE = "MIT (code), Apache-2.0 (base model)"
_PAIRS = {"ccneg/*": 2, "sugarcrepe/*": 2}
_LAMRA_DEPTHS = {"*": 10, "mbeir-*": 50, **_PAIRS}
_LAMRA_WEIGHTS = {
    "*": 1.0,
    "mbeir-*/mscoco_task0": 0.5,
    "mbeir-*/mscoco_task3": 0.1,
    "sugarcrepe/*": 0.1,
}

LAMRA_RANK = qwen_reranker(
    "lamra-rank",
    "LamRA-Rank, Qwen2-VL-7B",
    repo="code-kunkun/LamRA-Rank",
    architecture="qwen2_vl",
    source="https://huggingface.co/code-kunkun/LamRA-Rank",
    licence=_LICENCE,
    depths=_LAMRA_DEPTHS,
    weights=_LAMRA_WEIGHTS,
    paper_ref="arXiv 2412.01720",
    trained_on=MBEIR,
    held_out=LAMRA_HELD_OUT,
)

LAMRA_RANK_QWEN25VL = qwen_reranker(
    "lamra-rank-qwen2.5vl",
    "LamRA-Rank, Qwen2.5-VL-7B",
    repo="code-kunkun/LamRA-Rank-Qwen2.5VL-7b",
    architecture="qwen2_5_vl",
    source="https://huggingface.co/code-kunkun/LamRA-Rank-Qwen2.5VL-7b",
    licence=_LICENCE,
    depths=_LAMRA_DEPTHS,
    weights=_LAMRA_WEIGHTS,
    parent="lamra-rank",
    change="Qwen2.5-VL-7B for Qwen2-VL-7B",
    trained_on=MBEIR,
    held_out=LAMRA_HELD_OUT,
)

UMARVEL_RERANK = qwen_reranker(
    "umarvel-rerank",
    "U-MARVEL's reranker, any Qwen-VL",
    source="no public checkpoint; recipe: harness train umarvel --stage reranker",
    licence=_LICENCE,
    depths={"*": 10, "mbeir-*": 50, "circo/*": 50, **_PAIRS},
    weights={"*": 0.1, "genecis/*_object": 1.0, "ccneg/*": 1.0, "msrvtt/*": 0.2},
    paper_ref="arXiv 2507.14902",
    trained_on=MBEIR,
    held_out=LAMRA_HELD_OUT,
)
