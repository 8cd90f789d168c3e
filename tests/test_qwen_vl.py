"""The Qwen-VL embedders are plain transformers forwards, whatever the batch looks like."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.content import Candidate, Image, Item, Part, Text, Video
from harness.errors import DataInvalid
from harness.evaluate import evaluate
from harness.models.lamra import LAMRA_RET
from harness.models.lamra import SPEC as LAMRA
from harness.models.qwen_vl import additive_mask, last_states
from harness.models.umarvel import UMARVEL
from qwen_plain import Plain, unstacked
from qwen_toys import ARCHITECTURES, ASK, MODELS, PLAIN, cosine, items_of, opened, query, rows
from toys import catalog, collection, places, task


def test_a_result_says_how_many_texts_were_cut(tiny_qwen: dict[str, Path], tmp_path: Path) -> None:
    wordy = [Candidate(f"c{i}", (Text(f"dog {i} " * 50),)) for i in range(3)]
    long = task(lambda: collection(3, candidates=wordy))
    options = {"path": str(tiny_qwen["qwen2_vl"]), "dtype": "float32", "text-tokens": "20"}
    (outcome,) = evaluate(catalog([UMARVEL], [long]), UMARVEL, options, [long], places(tmp_path))
    assert outcome.result is not None, outcome.error
    assert outcome.result.provenance["counts"]["texts_cut"] == 3


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_the_cost_is_the_number_of_tokens(tiny_qwen, qwen_media, data):
    names = st.sampled_from(["p", "q", "dot", "line", "wide"])
    part = st.one_of(
        st.text(max_size=30).map(Text),
        st.sampled_from([Text("a<|image_pad|>b"), Text("<instruction_start>a<instruction_end>")]),
        names.map(lambda name: Image(qwen_media / f"{name}.png")),
        st.tuples(st.sampled_from([12, 5, 1]), st.sampled_from([None, 1, 3])).map(
            lambda drawn: Video(qwen_media / f"{drawn[0]}.mp4", frames=drawn[1])
        ),
    )
    spec = replace(
        data.draw(st.sampled_from([PLAIN, replace(LAMRA, dtype="float32")])),
        frame_min_pixels=28 * 28 * 2,
        text_tokens=data.draw(st.sampled_from([5, 1024])),
        padding=data.draw(st.sampled_from(["left", "right"])),
    )
    frontend = opened(tiny_qwen, data.draw(st.sampled_from(ARCHITECTURES)), spec)
    instructions = st.sampled_from([None, ASK])
    items = [
        Item("query", tuple(data.draw(st.lists(part, min_size=1, max_size=4))), data.draw(instructions))
        for _ in range(3)
    ]
    batch = frontend.prepare(items)
    assert batch["real"].sum(1).tolist() == [frontend.cost(item) for item in items]
    tokens = frontend.vision.merge**2
    assert (batch["kinds"] == 1).sum() * tokens == len(batch["pictures"])
    assert (batch["kinds"] == 2).sum() * tokens == len(batch["clips"])
    assert (batch["pool"] <= batch["real"]).all()
    assert batch["pool"].any(1).all()


def test_texts_that_were_cut_are_counted(tiny_qwen):
    frontend = opened(tiny_qwen, "qwen2_vl", replace(PLAIN, text_tokens=6))
    batch = frontend.prepare([query(Text("a b"), Text("x" * 50)), query(Text("y" * 7)), query(Text("z" * 6))])
    assert batch["cut"] == [1, 1, 0]
    assert opened(tiny_qwen, "qwen2_vl").prepare([query(Text("x " * 900))])["cut"] == [1]  # 1,800 tokens here


def test_an_item_of_too_many_tokens_is_named(tiny_qwen, qwen_media):
    frontend = opened(tiny_qwen, "qwen2_vl", replace(PLAIN, context=60))
    assert frontend.cost(query(Text("short"))) <= 60
    for fails in (frontend.cost, lambda item: frontend.prepare([item])):
        with pytest.raises(
            DataInvalid, match=r"query .*wide.png has \d+ tokens, tested takes 60: lower"
        ) as caught:
            fails(query(Image(qwen_media / "wide.png")))
        assert "\n" not in str(caught.value)


HEAD = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
TAIL = "<|im_end|>\n<|im_start|>assistant\n<emb>.<|im_end|>\n<|im_start|>assistant\n"
IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
MARKED = f"<instruction_start>{ASK}<instruction_end>"
SUMMARIZE = "\nSummarize above {} in one word: "


@pytest.fixture(scope="module")
def plain(tiny_qwen: Mapping[str, Path]) -> Callable[[str], Plain]:
    made = {architecture: Plain(folder, architecture) for architecture, folder in tiny_qwen.items()}
    return made.__getitem__


GOLDEN = {
    "text": ((Text("a red square"),), "{ask} a red square", "sentence"),
    "image": ((Image(Path("p.png")),), IMAGE + "{ask}{period}", "image and sentence"),
    "image,text": (
        (Image(Path("q.png")), Text("the same in red")),
        IMAGE + "{ask} the same in red",
        "image and sentence",
    ),
    "interleaved": (
        (Text("first"), Image(Path("p.png")), Text("then"), Image(Path("q.png"))),
        "{ask} first" + IMAGE + "then" + IMAGE,
        "images and sentences",
    ),
    "video": ((Video(Path("12.mp4")),), "{clip}{ask}{period}", "video and sentence"),
    "video,text": (
        (Video(Path("12.mp4")), Text("a moving square")),
        "{clip}{ask} a moving square",
        "video and sentence",
    ),
}


def placed(parts: Sequence[Part], media: Path) -> tuple[Part, ...]:
    return tuple(p if isinstance(p, Text) else replace(p, path=media / p.path) for p in parts)


def paths(parts: Sequence[Part], kind: type) -> list[Path]:
    return [p.path for p in parts if isinstance(p, kind)]


@pytest.mark.parametrize("name", GOLDEN)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("attention", ["bidirectional", "causal"])
def test_the_masked_mean_is_a_plain_forward(tiny_qwen, plain, qwen_media, name, architecture, attention):
    parts, content, _ = GOLDEN[name]
    parts, reference = placed(parts, qwen_media), plain(architecture)
    text = HEAD + content.format(ask=MARKED, period=".", clip=reference.clip) + TAIL
    inputs = reference.inputs(text, paths(parts, Image), paths(parts, Video))
    length = inputs["input_ids"].shape[1]
    how: dict[str, Any] = {"position_ids": torch.arange(length).expand(3, 1, -1)}
    if attention == "bidirectional":
        how["attention_mask"] = torch.zeros(1, 1, length, length)
    start, end = reference.processor.tokenizer.convert_tokens_to_ids(
        ["<instruction_start>", "<instruction_end>"]
    )
    ids = inputs["input_ids"][0].tolist()
    kept = [i for i in range(length) if not ids.index(start) <= i <= ids.index(end)]
    if architecture == "qwen3_vl":  # U-MARVEL leaves DeepStack's features out
        how["deepstack"] = False
    expected = unstacked(reference, inputs, **how)[kept].mean(0)

    frontend = opened(tiny_qwen, architecture, replace(PLAIN, attention=attention))
    item = query(*parts, instruction=ASK)
    assert frontend.prepare([item])["ids"][0].tolist() == ids
    assert cosine(rows(frontend, [item, *items_of(qwen_media)])[0], expected) > 0.99999


@pytest.mark.parametrize("name", GOLDEN)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("rope", ["1d", "mrope"])
def test_the_state_before_emb_is_a_plain_forward(tiny_qwen, plain, qwen_media, name, architecture, rope):
    parts, content, what = GOLDEN[name]
    parts, reference = placed(parts, qwen_media), plain(architecture)
    content = content.format(ask=ASK, period="", clip=reference.clip) + SUMMARIZE.format(what)
    inputs = reference.inputs(HEAD + content + TAIL, paths(parts, Image), paths(parts, Video))
    ids = inputs["input_ids"][0].tolist()
    how = {"position_ids": torch.arange(len(ids)).expand(3, 1, -1)} if rope == "1d" else {}
    at = ids.index(reference.processor.tokenizer.convert_tokens_to_ids("<emb>")) - 1
    expected = reference.states(inputs, **how)[at]

    deepstack = architecture == "qwen3_vl"
    spec = replace(LAMRA, rope=rope, deepstack=deepstack, dtype="float32")
    frontend = opened(tiny_qwen, architecture, spec)
    item = query(*parts, instruction=ASK)
    assert frontend.prepare([item])["ids"][0].tolist() == ids
    assert cosine(rows(frontend, [item, *items_of(qwen_media)])[0], expected) > 0.99999


def test_deepstack_reaches_pictures_and_clips_in_one_batch(tiny_qwen, qwen_media):
    with_, without = (opened(tiny_qwen, "qwen3_vl", replace(PLAIN, deepstack=on)) for on in (True, False))
    items = items_of(qwen_media)
    got, plain = rows(with_, items), rows(without, items)
    alone = torch.cat([rows(with_, [item]) for item in items])
    assert cosine(got, alone).min() > 1 - 1e-5
    seen = torch.tensor([item.modality != "text" for item in items])
    assert cosine(got, plain)[seen].max() < 0.9999
    assert torch.allclose(got[~seen], plain[~seen], atol=1e-5)


SWITCHES = {
    "attention": "causal",
    "pool": "last_token",
    "suffix": "summarize",
    "generation_prompt": False,
    "instruction_in_pool": True,
    "instruction_place": "nowhere",
    "lone_period": False,
    "rope": "mrope",
    "max_pixels": 4 * 28 * 28,
    "frames": 2,
    "system": None,
    "answer": None,
}


@pytest.mark.parametrize("name", SWITCHES)
def test_every_switch_changes_a_vector_and_the_identity(tiny_qwen, qwen_media, name):
    base = opened(tiny_qwen, "qwen2_vl")
    other = opened(tiny_qwen, "qwen2_vl", replace(PLAIN, **{name: SWITCHES[name]}))
    assert dict(base.identity) != dict(other.identity)
    items = [*items_of(qwen_media), query(Image(qwen_media / "wide.png"))]
    assert cosine(rows(base, items), rows(other, items)).min() < 0.99999


def test_the_side_of_the_padding_changes_nothing(tiny_qwen, qwen_media):
    items = items_of(qwen_media)
    left, right = (
        rows(opened(tiny_qwen, "qwen2_5_vl", replace(PLAIN, rope="mrope", padding=side)), items)
        for side in ("left", "right")
    )
    assert cosine(left, right).min() > 1 - 1e-6


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("companion", [None, "a longer text beside it, so that the row is padded"])
def test_the_last_token_reaches_the_first_only_where_attention_is_bidirectional(
    tiny_qwen, architecture, companion
):

    frontend = opened(tiny_qwen, architecture)
    embedder = frontend.load("cpu")
    items = [query(Text("a cat"))] + ([query(Text(companion))] if companion else [])
    batch = frontend.prepare(items)
    changed = {**batch, "ids": batch["ids"].copy()}
    changed["ids"][0, -1] += 1
    first = int(batch["real"][0].argmax())
    for attention, moves in (("bidirectional", True), ("causal", False), ("bidir_legacy", bool(companion))):
        how = {"attention": attention, "rope": "1d", "deepstack": False}
        before, after = (
            last_states(embedder.model, b, frontend.vision, **how)[0, first] for b in (batch, changed)
        )
        assert bool((before - after).abs().max() > 1e-3) == moves, attention


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("attention", ["bidirectional", "causal"])
def test_no_state_of_the_padding_is_without_a_number(tiny_qwen, qwen_media, attention, dtype):
    frontend = opened(tiny_qwen, "qwen3_vl", replace(PLAIN, attention=attention, dtype=dtype))
    batch = frontend.prepare(items_of(qwen_media))
    assert not batch["real"].all()
    how = {"attention": attention, "rope": "1d", "deepstack": False}
    assert last_states(frontend.load("cpu").model, batch, frontend.vision, **how).isfinite().all()


def test_legacy_attention_is_causal_where_no_row_is_padded(tiny_qwen, qwen_media):
    items = items_of(qwen_media)
    legacy, causal, full = (
        opened(tiny_qwen, "qwen2_vl", replace(PLAIN, attention=attention))
        for attention in ("bidir_legacy", "causal", "bidirectional")
    )
    assert torch.allclose(rows(legacy, items[:1]), rows(causal, items[:1]), atol=1e-6)
    assert torch.allclose(rows(legacy, items), rows(full, items), atol=1e-6)
    assert cosine(rows(legacy, items[:1]), rows(full, items[:1])) < 0.999
    assert legacy.identity["attention"] == "bidir_legacy"


def test_the_mask_by_hand():
    real = torch.tensor([[False, True, True], [True, True, True]])
    low = torch.finfo(torch.float32).min
    # rows: what token i sees; a padded token sees itself too
    assert additive_mask(real, "causal", torch.float32)[0, 0].tolist() == [
        [0, low, low],
        [low, 0, low],
        [low, 0, 0],
    ]
    assert additive_mask(real, "bidirectional", torch.float32)[0, 0].tolist() == [
        [0, 0, 0],
        [low, 0, 0],
        [low, 0, 0],
    ]
    assert (additive_mask(real[1:], "bidirectional", torch.float32) == 0).all()


def test_texts_alone_never_reach_the_vision_tower(tiny_qwen):
    frontend = opened(tiny_qwen, "qwen2_vl")
    embedder = frontend.load("cpu")
    embedder.model.visual = None
    assert rows(frontend, [query(Text("a")), query(Text("b"))], embedder).shape == (2, 64)
    assert not hasattr(embedder.model, "lm_head")


@pytest.mark.parametrize("spec", MODELS, ids=lambda s: s.name)
def test_in_bfloat16_a_row_hardly_depends_on_its_batch(spec, tmp_path, qwen_media):
    frontend = spec.open({**spec.tiny(tmp_path), "dtype": "bfloat16"})
    embedder = frontend.load("cpu")
    items = items_of(qwen_media)
    together = rows(frontend, items, embedder)
    alone = torch.cat([rows(frontend, [item], embedder) for item in items])
    assert together.dtype == torch.float32
    assert torch.allclose(together.norm(dim=1), torch.ones(len(items)), atol=1e-6)
    assert (1 - cosine(together, alone)).max() < 5e-3
    different = cosine(together[:, None], together[None]).fill_diagonal_(0)
    assert different.max() < 0.999


def test_the_released_models_differ_where_their_code_does():
    shown = {spec.name: spec.input_spec for spec in MODELS}
    assert shown["umarvel"]["attention"] == "bidirectional"
    assert shown["umarvel-qwen3vl-4b"]["system"] == "none"
    assert shown["umarvel-qwen3vl-4b"]["deepstack"] == "false"
    assert shown["lamra-ret"]["pool"] == "pre_emb_token"
    assert shown["lamra-ret"]["rope"] == "1d"
    assert shown["lamra-ret-qwen2.5vl"]["rope"] == "mrope"
    for spec in MODELS:
        assert "M-BEIR" in spec.trained_on["COCO"]
        assert not set(spec.trained_on) & set(spec.held_out)
    assert "CC3M" in UMARVEL.trained_on
    assert "CC3M" in LAMRA_RET.held_out
