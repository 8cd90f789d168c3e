"""U-MARVEL (arXiv 2507.14902): bidirectional attention, the mean of all states but the instruction's."""

from __future__ import annotations

from dataclasses import replace

from ..input_spec import InputSpec
from ..qwen_vl import qwen_model
from ..training_data import MBEIR, NLI, NOT_MBEIR

_SEEN = {**MBEIR, **NLI, "CC3M": "595k of its pictures and captions, between NLI and M-BEIR"}
_LICENCE = "MIT (code), Apache-2.0 (base model)"

SPEC = InputSpec()

UMARVEL = qwen_model(
    "umarvel",
    "U-MARVEL, Qwen2-VL-7B",
    repo="TencentBAC/U-MARVEL-Qwen2VL-7B-Instruct",
    architecture="qwen2_vl",
    spec=SPEC,
    licence=_LICENCE,
    paper_ref="arXiv 2507.14902",
    trained_on=_SEEN,
    held_out=NOT_MBEIR,
)

UMARVEL_QWEN3VL_4B = qwen_model(
    "umarvel-qwen3vl-4b",
    "U-MARVEL, Qwen3-VL-4B",
    repo="TencentBAC/U-MARVEL-Qwen3VL-4B-Instruct",
    architecture="qwen3_vl",
    spec=replace(SPEC, system=None),
    licence=_LICENCE,
    paper_ref="arXiv 2507.14902, table 16",
    parent="umarvel",
    change="Qwen3-VL-4B for Qwen2-VL-7B",
    trained_on=_SEEN,
    held_out=NOT_MBEIR,
)
