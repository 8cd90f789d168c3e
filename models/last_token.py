"""Embedders of the Qwen-VL family that read the last token's state: GME, VLM2Vec, Qwen3-VL-Embedding, one's own.

gme-qwen2-vl-2b       the instruction is the system's turn, <|endoftext|> after the assistant's head is read
vlm2vec-qwen2-vl-2b   no turns: "<|image_pad|>… Represent the given image.", the last word is read
qwen3-vl-embedding-2b the instruction is the system's turn, the line break after "assistant" is read
qwen-vl               any checkpoint of the family: --model-arg path=FOLDER pool=mean …

GME (arXiv 2412.16855) is shown what gme_inference.py of its repository shows; there pictures are brought to
multiples of 28 first and then within 256 to 1,280 tokens, here at once. VLM2Vec (arXiv 2410.05160, 2507.04590)
as demo_v1_image.py and demo_v2_video.py of TIGER-AI-Lab/VLM2Vec: its placeholders stand alone, so that its
get_rope_index finds no picture and counts positions in one dimension. Qwen3-VL-Embedding (arXiv 2601.04720) as
qwen3_vl_embedding.py of QwenLM/Qwen3-VL-Embedding, which ends in the assistant's head where the report names
<|endoftext|> (its issue 4); it takes at most 64 frames, here a rate alone decides. All three cut whole inputs
at 1,800, 2,048 and 8,192 tokens, here a text is cut in its field.
"""  # noqa: E501

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

from harness.errors import CheckpointMissing
from harness.model import ModelSpec, options

from .input_spec import InputSpec, option
from .qwen_vl import QwenFrontend, architecture_of, open_qwen, qwen_model, tiny_options

SPEC = InputSpec(
    answer=None,
    special_tokens=(),
    instruction_tokens=False,
    instruction_in_pool=True,
    lone_period=False,
    pool="last_token",
    attention="causal",
    rope="mrope",
)
"""A plain question to Qwen2-VL and Qwen2.5-VL, and the state that is about to answer."""

GME = replace(
    SPEC,
    ending="<|endoftext|>",
    instruction_place="system",
    rope="1d",
    min_pixels=256 * 28 * 28,
    max_pixels=1280 * 28 * 28,
    checkpoint_pixels=False,
    text_tokens=1800,
)
VLM2VEC = replace(
    SPEC,
    chat=False,
    system=None,
    placeholders="bare",
    unasked="represent",
    rope="1d",
    max_pixels=1280 * 28 * 28,
    frame_min_pixels=4 * 28 * 28,
    frame_max_pixels=360 * 420,
    frames=8,
    checkpoint_pixels=False,
    text_tokens=2048,
)
QWEN3 = replace(
    SPEC,
    system="Represent the user's input.",
    instruction_place="system",
    deepstack=True,
    image_factor=32,
    min_pixels=4 * 32 * 32,
    max_pixels=1800 * 32 * 32,
    frame_min_pixels=128 * 32 * 32,
    frame_max_pixels=768 * 32 * 32,
    video_pixels=115_200 * 32 * 32,
    fps=1.0,
    checkpoint_pixels=False,
    text_tokens=8192,
    padding="right",
)

_MMEB = {
    **dict.fromkeys(
        ("COCO", "CIRR", "VisualNews", "NIGHTS", "WebQA", "VisDial"), "one of MMEB's twenty training sets"
    ),
}
_NOT_MMEB = dict.fromkeys(("OVEN", "EDIS", "FashionIQ"), "MMEB holds it out of training")
_APACHE = "Apache-2.0"

GME_2B = qwen_model(
    "gme-qwen2-vl-2b",
    "GME, Qwen2-VL-2B",
    repo="Alibaba-NLP/gme-Qwen2-VL-2B-Instruct",
    architecture="qwen2_vl",
    spec=GME,
    licence=_APACHE,
    paper_ref="arXiv 2412.16855",
)
GME_7B = qwen_model(
    "gme-qwen2-vl-7b",
    "GME, Qwen2-VL-7B",
    repo="Alibaba-NLP/gme-Qwen2-VL-7B-Instruct",
    architecture="qwen2_vl",
    spec=GME,
    licence=_APACHE,
    paper_ref="arXiv 2412.16855",
    parent="gme-qwen2-vl-2b",
    change="Qwen2-VL-7B for Qwen2-VL-2B",
)
VLM2VEC_2B = qwen_model(
    "vlm2vec-qwen2-vl-2b",
    "VLM2Vec, Qwen2-VL-2B",
    repo="TIGER-Lab/VLM2Vec-Qwen2VL-2B",
    architecture="qwen2_vl",
    spec=VLM2VEC,
    licence=_APACHE,
    paper_ref="arXiv 2410.05160",
    trained_on=_MMEB,
    held_out=_NOT_MMEB,
)
VLM2VEC_7B = qwen_model(
    "vlm2vec-qwen2-vl-7b",
    "VLM2Vec, Qwen2-VL-7B",
    repo="TIGER-Lab/VLM2Vec-Qwen2VL-7B",
    architecture="qwen2_vl",
    spec=VLM2VEC,
    licence=_APACHE,
    paper_ref="arXiv 2410.05160",
    parent="vlm2vec-qwen2-vl-2b",
    change="Qwen2-VL-7B for Qwen2-VL-2B",
    trained_on=_MMEB,
    held_out=_NOT_MMEB,
)
VLM2VEC_V2 = qwen_model(
    "vlm2vec-v2",
    "VLM2Vec-V2, Qwen2-VL-2B",
    repo="VLM2Vec/VLM2Vec-V2.0",
    architecture="qwen2_vl",
    spec=VLM2VEC,
    licence=_APACHE,
    paper_ref="arXiv 2507.04590",
    parent="vlm2vec-qwen2-vl-2b",
    change="clips and documents in training",
    trained_on=_MMEB,
    held_out=_NOT_MMEB,
)
QWEN3_2B = qwen_model(
    "qwen3-vl-embedding-2b",
    "Qwen3-VL-Embedding-2B",
    repo="Qwen/Qwen3-VL-Embedding-2B",
    architecture="qwen3_vl",
    spec=QWEN3,
    licence=_APACHE,
    paper_ref="arXiv 2601.04720",
)
QWEN3_8B = qwen_model(
    "qwen3-vl-embedding-8b",
    "Qwen3-VL-Embedding-8B",
    repo="Qwen/Qwen3-VL-Embedding-8B",
    architecture="qwen3_vl",
    spec=QWEN3,
    licence=_APACHE,
    paper_ref="arXiv 2601.04720",
    parent="qwen3-vl-embedding-2b",
    change="Qwen3-VL-8B for Qwen3-VL-2B",
)


def _open_any(name: str, given: Mapping[str, str]) -> QwenFrontend:
    """Whatever of the family a checkpoint says it is. Raises CheckpointMissing, HarnessError, UnknownName."""
    given = {key.replace("_", "-"): value for key, value in given.items()}
    shown = {option(field): value for field, value in SPEC.shown().items()}
    chosen = options(name, given, {"path": "", "revision": "main", "base": "", **shown})
    if not chosen["path"]:
        raise CheckpointMissing(f"{name} is a checkpoint of one's own: --model-arg path=FOLDER names it")
    architecture = architecture_of(chosen["path"], chosen["revision"], chosen["base"])
    third = architecture == "qwen3_vl"
    spec = replace(SPEC, system=None, deepstack=True, image_factor=32) if third else SPEC
    return open_qwen(name, "", architecture, spec, given)


QWEN_VL = ModelSpec(
    name="qwen-vl",
    title="any Qwen-VL checkpoint; the last token's state unless told otherwise",
    open=partial(_open_any, "qwen-vl"),
    tiny=partial(tiny_options, "qwen2_5_vl"),
    source="a folder or a repository of the hub: --model-arg path=…",
    licence="that of the checkpoint",
    input_spec=SPEC.shown(),
)

MODELS = (GME_2B, GME_7B, VLM2VEC_2B, VLM2VEC_7B, VLM2VEC_V2, QWEN3_2B, QWEN3_8B, QWEN_VL)
