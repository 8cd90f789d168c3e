"""U-MARVEL's ablations: every variant of the paper's tables and of the released code, a line each.

A variant has a parent and one change, so that `harness leaderboard ablations` writes itself:

    umarvel-causal-mean-prompt   parent umarvel-bidirectional-mean-prompt   change: causal attention

Tables and numbers are those of arXiv 2507.14902; the axes without a table are those of the released code
(chaxjli/U-MARVEL). None has a public checkpoint: the recipe of the same name makes it. A variant of the
forward pass differs in its InputSpec, one of training only in its recipe.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from harness.model import ModelSpec

from ..input_spec import InputSpec
from ..qwen_vl import open_qwen, tiny_options


def _variant(
    name: str,
    parent: str,
    change: str,
    paper_ref: str | None = None,
    *,
    architecture: str = "qwen2_vl",
    held_out: Mapping[str, str] | None = None,
    trained_on: Mapping[str, str] | None = None,
    **forward: Any,
) -> ModelSpec:
    """A model that differs from `parent` by `change`; `forward` are its fields of InputSpec that are
    not U-MARVEL's."""
    name, parent = f"umarvel-{name}", f"umarvel-{parent}" if parent else "umarvel"
    spec = replace(InputSpec(), **forward)
    return ModelSpec(
        name=name,
        title=f"U-MARVEL: {change}",
        open=partial(open_qwen, name, "", architecture, spec),
        tiny=partial(tiny_options, architecture),
        source=f"no public checkpoint; recipe: harness train {name}",
        licence="Apache-2.0",
        parent=parent,
        change=change,
        paper_ref=paper_ref and f"arXiv 2507.14902, {paper_ref}",
        trained_on=trained_on or {},
        held_out=held_out or {},
        input_spec=spec.shown(),
    )


_PROMPT: dict[str, Any] = {"instruction_in_pool": True, "suffix": "summarize"}
_NO_CC3M = {"CC3M": "trained without the CC3M stage"}
_SHAREGPT4V = {"ShareGPT4V": "captions of the second stage"}
_TART = {"TART": "instructed texts in place of NLI's"}

STAGES = (
    _variant("no-distill", "", "without distillation", "Tables 5, 6, 15"),
    _variant("continue-hard", "", "hard negatives go on in place of distillation", "Table 6"),
    _variant("no-hard-negatives", "no-distill", "in-batch negatives only", "Tables 5, 15"),
    _variant("hard-unfiltered", "no-distill", "hard negatives not filtered at 0.7", "Table 5"),
    _variant("hard-only", "no-distill", "hard negatives without in-batch ones", "Table 5 (failed)"),
)

TRANSITION = (
    _variant("small-batch", "no-hard-negatives", "smaller batch and fixed temperature", "Table 3"),
    _variant("no-cc3m", "small-batch", "without the CC3M stage", "Tables 2, 3", held_out=_NO_CC3M),
    _variant("mbeir-only", "no-cc3m", "without the NLI stage", "Table 3"),
)

EMBEDDING = (
    _variant("no-instruction", "no-cc3m", "no instruction", "Table 2", instruction_place="nowhere"),
    _variant(
        "unmasked",
        "no-cc3m",
        "instruction counted in pooling",
        "Table 1 ID4, Table 2",
        instruction_in_pool=True,
    ),
    _variant("bidirectional-mean-prompt", "unmasked", "compression prompt", "Table 1 ID3", **_PROMPT),
    _variant(
        "causal-mean-prompt",
        "bidirectional-mean-prompt",
        "causal attention",
        "Table 1 ID2",
        attention="causal",
        **_PROMPT,
    ),
    _variant(
        "bidirectional-last-prompt",
        "bidirectional-mean-prompt",
        "last token in place of the mean",
        "Table 1 ID1",
        pool="pre_emb_token",
        **_PROMPT,
    ),
    _variant(
        "causal-last-prompt",
        "bidirectional-last-prompt",
        "causal attention",
        "Table 1 ID0",
        attention="causal",
        pool="pre_emb_token",
        **_PROMPT,
    ),
)

BATCH = (
    _variant("bs3840-learnable", "no-hard-negatives", "as Table 4 was made (not stated in full)", "Table 4"),
    _variant("bs7680-learnable", "bs3840-learnable", "batch 7,680", "Table 4"),
    _variant("bs3840-lr4e-4", "bs3840-learnable", "temperature fixed at 0.05", "Table 4"),
    _variant("bs3840-lr2.8e-4", "bs3840-lr4e-4", "learning rate 2.8e-4", "Table 4"),
    _variant("bs5760-lr6e-4", "bs3840-lr4e-4", "batch 5,760, learning rate 6e-4", "Table 4"),
    _variant("bs7680-lr6e-4", "bs3840-lr4e-4", "batch 7,680, learning rate 6e-4", "Table 4"),
    _variant("bs1920-lr2e-4", "bs3840-lr4e-4", "batch 1,920, learning rate 2e-4", "Table 4"),
    _variant("bs1920-lr1e-4", "bs1920-lr2e-4", "learning rate 1e-4", "Table 4"),
    _variant("bs480", "bs1920-lr1e-4", "batch 480", "Table 4"),
)

RELEASED = (
    _variant("skip-nli", "no-hard-negatives", "without the NLI stage"),
    _variant("skip-cc3m", "no-hard-negatives", "without the CC3M stage", held_out=_NO_CC3M),
    _variant("skip-nli-cc3m", "no-hard-negatives", "straight to M-BEIR", held_out=_NO_CC3M),
    _variant("cc3m-sharegpt4v", "no-hard-negatives", "ShareGPT4V's captions too", trained_on=_SHAREGPT4V),
    _variant(
        "sharegpt4v",
        "no-hard-negatives",
        "ShareGPT4V's captions in place of CC3M's",
        trained_on=_SHAREGPT4V,
        held_out=_NO_CC3M,
    ),
    _variant("projector", "no-hard-negatives", "the projector is trained with CC3M"),
    _variant("vision-lora", "no-hard-negatives", "adapters in the vision tower too"),
    _variant("tart", "no-hard-negatives", "TART in place of NLI", trained_on=_TART),
    _variant("temp-fixed", "no-hard-negatives", "temperature fixed at 0.05"),
    _variant("biloss", "no-hard-negatives", "two-way loss on M-BEIR"),
    _variant("loss-focal", "no-hard-negatives", "focal weights in the loss"),
    _variant("loss-focal-abs", "no-hard-negatives", "focal weights of absolute values"),
    _variant("loss-diht", "no-hard-negatives", "DiHT's weights of negatives"),
    _variant("loss-llave", "no-hard-negatives", "LLaVE's weights of negatives"),
    _variant("loss-softcse-w", "no-hard-negatives", "SoftCSE's weights"),
    _variant("loss-softcse-t", "no-hard-negatives", "SoftCSE's temperatures"),
    _variant("hard-local", "no-distill", "negatives mined in the local pools"),
    _variant("hard-both", "no-distill", "negatives of local and global pools"),
    _variant("released-topk", "no-distill", "top 5 for every task, unfiltered, as the main file has it"),
    _variant("two-strategy", "no-distill", "top 5 for seven tasks, random for nine, as the lineage is named"),
    _variant("three-strategy", "no-distill", "top, last or random by task"),
    _variant("hard-k10", "no-distill", "ten hard negatives"),
    _variant("distill-ranking", "", "a pairwise hinge beside the divergence"),
    _variant("distill-global", "", "teacher's lists of the global pool"),
    _variant("distill-random50", "", "teacher's lists of random candidates"),
    _variant("distill-lastk", "", "teacher's lists from the end of the retrieved"),
    _variant("distill-20percent", "", "twice the queries in distillation"),
    _variant("distill-skip-hard", "no-hard-negatives", "distilled straight after M-BEIR"),
    _variant(
        "distill-cross-teacher",
        "qwen3vl-4b",
        "Qwen2-VL-7B's reranker as the teacher",
        architecture="qwen3_vl",
        system=None,
    ),
    _variant(
        "held-out",
        "",
        "NIGHTS, OVEN and InfoSeek kept from training",
        held_out=dict.fromkeys(("NIGHTS", "OVEN", "InfoSeek"), "left out of the training split"),
    ),
    _variant("qwen2.5vl-7b", "", "Qwen2.5-VL-7B as the backbone", architecture="qwen2_5_vl"),
    _variant("qwen3vl-8b", "", "Qwen3-VL-8B as the backbone", architecture="qwen3_vl", system=None),
)

ABLATIONS = (*STAGES, *TRANSITION, *EMBEDDING, *BATCH, *RELEASED)
