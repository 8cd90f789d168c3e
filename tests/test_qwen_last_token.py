"""GME, VLM2Vec and Qwen3-VL-Embedding are plain transformers forwards over their own prompts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.content import Image, Item, Part, Text, Video
from harness.errors import CheckpointMissing
from harness.models.input_spec import InputSpec, Piece, render, text_of
from harness.models.last_token import GME, GME_2B, MODELS, QWEN3, QWEN3_2B, QWEN_VL, VLM2VEC, VLM2VEC_2B
from harness.models.qwen_vl import tiny_options
from qwen_plain import FIRST, Plain
from qwen_toys import ASK, cosine, items_of, opened, query, rows

IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
SYSTEM = "<|im_start|>system\n{}<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
HELPFUL, REPRESENT = "You are a helpful assistant.", "Represent the user's input."
P, Q = Image(Path("p.png")), Image(Path("q.png"))
RED = Text("the same in red")
# 64x48 and 40x90 within 256 to 1,280 tokens of 28 pixels; of 32 pixels, at least four
GME_SIZES = {"p": (532, 392), "q": (308, 672)}
QWEN3_SIZES = {"p": (64, 64), "q": (64, 96)}
GOLDEN: dict[str, tuple[InputSpec, str, Mapping[str, tuple[int, int]], tuple[Part, ...], str | None, str]] = {
    "gme text": (GME, "qwen2_vl", GME_SIZES, (RED,), None, SYSTEM.format(HELPFUL, RED.text)),
    "gme asked": (GME, "qwen2_vl", GME_SIZES, (RED,), ASK, SYSTEM.format(ASK, RED.text)),
    "gme picture": (GME, "qwen2_vl", GME_SIZES, (P,), None, SYSTEM.format(HELPFUL, IMAGE)),
    "gme both": (GME, "qwen2_vl", GME_SIZES, (Q, RED), ASK, SYSTEM.format(ASK, IMAGE + RED.text)),
    "vlm2vec text": (VLM2VEC, "qwen2_vl", FIRST, (RED,), None, RED.text),
    "vlm2vec asked": (VLM2VEC, "qwen2_vl", FIRST, (RED,), ASK, f"{ASK} {RED.text}"),
    "vlm2vec picture": (
        *(VLM2VEC, "qwen2_vl", FIRST, (P,), None),
        "<|image_pad|> Represent the given image.",
    ),
    "vlm2vec asked picture": (VLM2VEC, "qwen2_vl", FIRST, (P,), ASK, f"<|image_pad|> {ASK}"),
    "vlm2vec both": (VLM2VEC, "qwen2_vl", FIRST, (Q, RED), ASK, f"<|image_pad|> {ASK} {RED.text}"),
    "vlm2vec candidate of both": (
        *(VLM2VEC, "qwen2_vl", FIRST, (Q, RED), None),
        f"<|image_pad|> Represent the given image with related text information: {RED.text}",
    ),
    "qwen3 text": (QWEN3, "qwen3_vl", QWEN3_SIZES, (RED,), None, SYSTEM.format(REPRESENT, RED.text)),
    "qwen3 asked": (QWEN3, "qwen3_vl", QWEN3_SIZES, (RED,), ASK, SYSTEM.format(ASK, RED.text)),
    "qwen3 both": (QWEN3, "qwen3_vl", QWEN3_SIZES, (Q, RED), ASK, SYSTEM.format(ASK, IMAGE + RED.text)),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_the_last_state_is_a_plain_forward(tiny_qwen, qwen_media, name):
    spec, architecture, sizes, parts, instruction, text = GOLDEN[name]
    parts = tuple(p if isinstance(p, Text) else replace(p, path=qwen_media / p.path) for p in parts)
    reference = Plain(tiny_qwen[architecture], architecture)
    pictures = [p.path for p in parts if isinstance(p, Image)]
    ending = spec.ending or ""
    inputs = reference.inputs(text + ending, pictures, [], sizes)
    ids = inputs["input_ids"][0].tolist()
    how: dict[str, Any] = {}
    if spec.rope == "1d":
        how["position_ids"] = torch.arange(len(ids)).expand(3, 1, -1)
    expected = reference.states(inputs, **how)[-1]

    frontend = opened(tiny_qwen, architecture, replace(spec, dtype="float32"))
    item = query(*parts, instruction=instruction)
    assert frontend.prepare([item])["ids"][0].tolist() == ids
    assert cosine(rows(frontend, [item, *items_of(qwen_media)])[0], expected) > 0.99999


@pytest.mark.parametrize(
    ("parts", "instruction", "expected"),
    [
        ((Video(Path("a.mp4")),), None, "<|video_pad|> Represent the given video."),
        ((P, Text("a"), Q, Text("b")), None, "<|image_pad|> a<|image_pad|> b"),
        ((P, Text("a"), Q), ASK, f"{ASK}<|image_pad|> a<|image_pad|> "),
        ((P, Text("")), None, "<|image_pad|> Represent the given image."),
        ((Text(""),), None, ""),
    ],
)
def test_vlm2vec_is_shown_other_mixes_in_their_order(parts, instruction, expected):
    def show(part: Image | Video) -> list[Piece]:
        pad = "<|image_pad|>" if isinstance(part, Image) else "<|video_pad|>"
        return [Piece(token, token=True) for token in ("<|vision_start|>", pad, "<|vision_end|>")]

    assert text_of(render(VLM2VEC, Item("query", parts, instruction), show)) == expected


def test_an_empty_text_without_a_template_has_a_vector(tiny_qwen):
    frontend = opened(tiny_qwen, "qwen2_vl", replace(VLM2VEC, dtype="float32"))
    items = [query(Text("")), query(Text("a"))]
    assert [frontend.cost(item) for item in items] == [1, 1]
    assert rows(frontend, items).isfinite().all()


def test_pixels_of_the_processor_hold_unless_the_code_has_its_own(tiny_qwen, tmp_path, qwen_media):
    given = tiny_options("qwen3_vl", tmp_path)
    settings = tmp_path / "preprocessor_config.json"
    least = '"min_pixels": 65536'  # as Qwen3-VL's own are
    settings.write_text(settings.read_text().replace('"min_pixels": 1024', least))
    item = query(Image(qwen_media / "p.png"))
    tokens = [
        (QWEN3_2B.open(given | more).prepare([item])["kinds"] == 1).sum()
        for more in ({}, {"checkpoint-pixels": "true"})
    ]
    assert tokens == [4, 64]  # 64x64 and 256x256 in tokens of 32x32


def test_a_checkpoint_of_one_s_own_says_what_it_is(tiny_qwen):
    shown = {}
    for architecture, folder in tiny_qwen.items():
        frontend = QWEN_VL.open({"path": str(folder), "pool": "mean"})
        assert frontend.identity["architecture"] == architecture
        shown[architecture] = (frontend.spec.system, frontend.spec.deepstack, frontend.spec.pool)
    assert shown["qwen2_vl"] == shown["qwen2_5_vl"] == (HELPFUL, False, "mean")
    assert shown["qwen3_vl"] == (None, True, "mean")
    with pytest.raises(CheckpointMissing, match=r"^qwen-vl is .*--model-arg path=FOLDER"):
        QWEN_VL.open({})


def test_later_fields_leave_the_identity_of_others_alone():
    later = {"placeholders", "unasked", "checkpoint_pixels"}
    assert set(InputSpec().shown()) - set(InputSpec().identity) == later
    assert later <= set(VLM2VEC.identity)
    assert set(GME.identity) & later == {"checkpoint_pixels"}


def test_every_one_says_where_it_is_from():
    for spec in MODELS:
        assert spec.licence
        assert spec.name == "qwen-vl" or spec.source.startswith("https://huggingface.co/")
        assert not set(spec.trained_on) & set(spec.held_out)
    assert GME_2B.input_spec["system"] == HELPFUL
    assert VLM2VEC_2B.input_spec["chat"] == "false"
