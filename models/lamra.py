"""LamRA's retrievers (Liu et al. 2024, arXiv 2412.01720): causal, the state that is about to say one word.

The text of a query is its instruction and its words, a request for one word follows, and the vector is
the state in front of `<emb>`. The checkpoint on Qwen2.5-VL has positions in three dimensions.
"""

from __future__ import annotations

from dataclasses import replace

from .input_spec import EMB, InputSpec
from .qwen_vl import qwen_model
from .training_data import LAMRA_HELD_OUT, MBEIR, NLI

_SEEN = {**MBEIR, **NLI}
_LICENCE = "MIT (code), Apache-2.0 (base model)"

SPEC = InputSpec(
    suffix="summarize",
    special_tokens=(EMB,),
    instruction_tokens=False,
    instruction_in_pool=True,
    lone_period=False,
    pool="pre_emb_token",
    attention="causal",
)
"""Code-kunkun/LamRA, branch master; its branch qwen2.5vl differs in the positions."""

LAMRA_RET = qwen_model(
    "lamra-ret",
    "LamRA-Ret, Qwen2-VL-7B",
    repo="code-kunkun/LamRA-Ret",
    architecture="qwen2_vl",
    spec=SPEC,
    licence=_LICENCE,
    paper_ref="arXiv 2412.01720",
    trained_on=_SEEN,
    held_out=LAMRA_HELD_OUT,
)

LAMRA_RET_QWEN25VL = qwen_model(
    "lamra-ret-qwen2.5vl",
    "LamRA-Ret, Qwen2.5-VL-7B",
    repo="code-kunkun/LamRA-Ret-Qwen2.5VL-7b",
    architecture="qwen2_5_vl",
    spec=replace(SPEC, rope="mrope"),
    licence=_LICENCE,
    parent="lamra-ret",
    change="Qwen2.5-VL-7B, positions in three dimensions",
    trained_on=_SEEN,
    held_out=LAMRA_HELD_OUT,
)
