"""The Qwen-VL rerankers are plain transformers forwards, however asks share, are cut and are batched."""

from __future__ import annotations

import fnmatch
import json
import pickle
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import qwen_plain
from harness.content import Ask, Image, Item, Part, Text, Video
from harness.errors import CheckpointMissing, DataInvalid, HarnessError, UnknownName
from harness.models import qwen_rerank
from harness.models.checkpoint import quietly
from harness.models.input_spec import FILE, InputSpec, text_of
from harness.models.qwen_pictures import look
from harness.models.qwen_rerank import (
    CHOSEN,
    QwenReranker,
    QwenRerankFrontend,
    open_reranker,
)
from harness.models.qwen_tokens import Vocabulary
from harness.models.qwen_vl import tiny_options
from harness.models.rerankers import LAMRA_RANK, LAMRA_RANK_QWEN25VL, UMARVEL_RERANK
from harness.registry import load_catalog
from harness.rerank import Fusion
from harness.result import read_results
from harness.testing import check_reranker, write_picture
from qwen_plain import Plain
from qwen_tokenizer import reference, saved
from qwen_toys import ARCHITECTURES, ASK

SPECS = (LAMRA_RANK, LAMRA_RANK_QWEN25VL, UMARVEL_RERANK)
MODES = ("pointwise", "listwise")
SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
JUDGE = (
    "I will provide you with a query and a candidate. Please evaluate whether the candidate"
    "                        meets the requirements of the query. If it does, respond with 'Yes'; "
    "if it doesn't, responed with 'No'."
)
CHOOSE = (
    "I will provide you with a query followed by multiple candidates in the format: (1) cand1 (2) cand2, "
    "etc. Each candidate is independent of the others. "
    "                        Evaluate each candidate against the query, and respond with the number "
    "corresponding to the candidate that best meets the requirements of the query."
)
IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"


def opened(tiny: Mapping[str, Path], architecture: str = "qwen2_vl", **given: str) -> QwenRerankFrontend:
    return open_reranker("tested", "", None, {"path": str(tiny[architecture]), "dtype": "float32", **given})


def ask(query: Sequence[Part], *candidates: Sequence[Part], instruction: str | None = ASK) -> Ask:
    return Ask(
        Item("query", tuple(query), instruction), tuple(Item("candidate", tuple(c)) for c in candidates)
    )


def scores(frontend: QwenRerankFrontend, asks: Sequence[Ask], reranker: QwenReranker | None = None) -> Any:
    batch = pickle.loads(pickle.dumps(frontend.prepare(asks)))
    return (reranker or frontend.load("cpu")).score(batch)


@pytest.fixture(scope="module")
def plain(tiny_qwen: Mapping[str, Path]) -> Callable[[str], Plain]:
    made = {architecture: Plain(folder, architecture) for architecture, folder in tiny_qwen.items()}
    return made.__getitem__


P, Q, CLIP = Image(Path("p.png")), Image(Path("q.png")), Video(Path("12.mp4"))
GOLDEN: dict[str, tuple[tuple[Part, ...], str, tuple[tuple[Part, ...], ...], tuple[str, ...]]] = {
    "a text and pictures": ((Text("a red square"),), "{ask} a red square", ((P,), (Q,)), (IMAGE, IMAGE)),
    "a picture and texts": ((P,), IMAGE + "{ask}", ((Text("red"),), (Text(""),)), ("red", "")),
    "both and both": (
        (Q, Text("the same in red")),
        IMAGE + "{ask} the same in red",
        ((P, Text("a red square")), (Q, Text("a blue one"))),
        (IMAGE + "a red square", IMAGE + "a blue one"),
    ),
    "a story": (
        (Text("first"), P, Text("then"), Q, Text("last")),
        "{ask} first" + IMAGE + "then" + IMAGE + "last",
        ((Q,), (Text("a red square"),)),
        (IMAGE, "a red square"),
    ),
    "a text and clips": (
        (Text("a moving square"),),
        "{ask} a moving square",
        ((CLIP,), (CLIP, Text("red"), P)),
        ("{clip}", "{clip}red" + IMAGE),
    ),
    "a clip and texts": (
        (CLIP,),
        "{clip}{ask}",
        ((Text("a moving square"),), (P,)),
        ("a moving square", IMAGE),
    ),
}


def placed(parts: Sequence[Part], media: Path) -> tuple[Part, ...]:
    return tuple(p if isinstance(p, Text) else replace(p, path=media / p.path) for p in parts)


def example(name: str, media: Path) -> Ask:
    query, _, candidates, _ = GOLDEN[name]
    return ask(placed(query, media), *(placed(c, media) for c in candidates))


def logits(reference: Plain, text: str, parts: Sequence[Part]) -> torch.Tensor:
    """Of the token that comes next: by a forward, and by generate."""
    inputs = reference.inputs(
        text,
        [p.path for p in parts if isinstance(p, Image)],
        [p.path for p in parts if isinstance(p, Video)],
    )
    with torch.inference_mode():
        found: torch.Tensor = reference.model(**inputs).logits[0, -1]
        (generated,) = reference.model.generate(
            **inputs, max_new_tokens=1, do_sample=False, output_scores=True, return_dict_in_generate=True
        ).scores
    assert torch.allclose(found, generated[0], atol=1e-5)
    return found


def first_tokens(reference: Plain, answers: Sequence[str]) -> list[int]:
    return [reference.processor.tokenizer.encode(answer)[0] for answer in answers]


@pytest.mark.parametrize("name", GOLDEN)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_pair_scores_what_a_plain_forward_says(tiny_qwen, plain, qwen_media, architecture, name):
    query, said, candidates, shown = GOLDEN[name]
    transformers, frontend = plain(architecture), opened(tiny_qwen, architecture)
    expected = []
    for candidate, text in zip(candidates, shown, strict=True):
        user = f"<|im_start|>user\n{JUDGE}Query:{said}Candidate:{text}<|im_end|>\n<|im_start|>assistant\n"
        row = ("" if architecture == "qwen3_vl" else SYSTEM) + user.format(ask=ASK, clip=transformers.clip)
        found = logits(transformers, row, placed((*query, *candidate), qwen_media))
        expected.append(found[first_tokens(transformers, ["Yes", "No"])].softmax(-1)[0])
    got = scores(frontend, [example(name, qwen_media)])
    assert torch.allclose(got, torch.stack(expected), atol=1e-5)
    assert 0 < got.min() < got.max() < 1


@pytest.mark.parametrize("name", GOLDEN)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_list_scores_what_a_plain_forward_says(tiny_qwen, plain, qwen_media, architecture, name):
    query, said, candidates, shown = GOLDEN[name]
    transformers, frontend = plain(architecture), opened(tiny_qwen, architecture, mode="listwise")
    user = f"<|im_start|>user\n{CHOOSE}Query:{said}Candidates:(1) {shown[0]}(2) {shown[1]}<|im_end|>\n"
    user += "<|im_start|>assistant\nAns: ("
    row = ("" if architecture == "qwen3_vl" else SYSTEM) + user.format(ask=ASK, clip=transformers.clip)
    found = logits(transformers, row, placed([*query, *candidates[0], *candidates[1]], qwen_media))
    expected = found[first_tokens(transformers, ["1", "2"])].softmax(-1)
    assert torch.allclose(scores(frontend, [example(name, qwen_media)]), expected, atol=1e-5)


HAND = {
    "pointwise": [
        f"{SYSTEM}<|im_start|>user\n{JUDGE}Query:Find it. A red one.Candidate:{text}<|im_end|>\n"
        "<|im_start|>assistant\n"
        for text in ("A red\nsquare", "...")
    ],
    "listwise": [
        f"{SYSTEM}<|im_start|>user\n{CHOOSE}Query:Find it. A red one.Candidates:(1) A red\nsquare(2) ..."
        "<|im_end|>\n<|im_start|>assistant\nAns: ("
    ],
}


@pytest.mark.parametrize("mode", MODES)
def test_a_row_is_what_was_written_by_hand_in_qwens_tokens(tiny_qwen, tmp_path, mode):
    frontend = opened(tiny_qwen, mode=mode)
    vocabulary = Vocabulary.at(saved(tmp_path), ())
    pair = ask([Text("A red one.")], [Text("A red\nsquare")], [Text("...")], instruction="Find it.")
    rows = frontend.pieces(pair, {}, frontend.opening)
    assert [text_of(row) for row in rows] == HAND[mode]
    real = replace(frontend, source=replace(frontend.source, vocabulary=vocabulary))
    batch = real.prepare([pair])
    for ids, length, text in zip(batch["ids"], batch["lengths"], HAND[mode], strict=True):
        assert ids[:length].tolist() == reference().encode(text, allowed_special="all")
    # Qwen2's own ids; a digit is a token, and goes on from "Ans: (" as if it had been written at once
    assert real.answers == ((9454, 2753) if mode == "pointwise" else tuple(range(16, 25)))
    assert reference().encode("Ans: (2)") == [*reference().encode("Ans: ("), 17, 8]


@pytest.mark.parametrize(("separator", "query"), [(" ", "Find it. A red one."), ("", "Find it.A red one.")])
def test_the_separator_of_the_item_joins_its_instruction(tiny_qwen, separator, query):
    item = Item("query", (Text("A red one."),), "Find it.", separator)
    frontend = opened(tiny_qwen)
    (row,) = frontend.pieces(Ask(item, (Item("candidate", (Text("x"),)),)), {}, frontend.opening)
    assert f"Query:{query}Candidate:x<|im_end|>" in text_of(row)


def mixed(media: Path) -> list[Ask]:
    """Asks of all kinds; with one candidate, with equal ones, with pictures in place of each other."""
    p, q, clip, other = (
        Image(media / "p.png"),
        Image(media / "q.png"),
        *(Video(media / f"{n}.mp4") for n in (12, 5)),
    )
    long = Text("a much longer caption about two green circles beside a blue one")
    return [
        ask([Text("a red square")], [p], [q], [Image(media / "dot.png")]),
        ask([p, Text("in red")], [Text("red")], [Text("red square")], [Text("red")]),
        ask([Text("only one")], [q, Text("red")]),
        ask([clip], [Text("x")], [long], [p]),
        ask([Text("square")], [clip], [other], [clip, Text("x")], instruction=None),
        ask([Text("see"), p, long, q], [p], [Text("")], [q, long]),
        ask([p], [p], [p]),
    ]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_is_shared_is_run_once_and_changes_nothing(tiny_qwen, qwen_media, architecture):
    frontend = opened(tiny_qwen, architecture)
    asks, reranker = mixed(qwen_media), frontend.load("cpu")
    batch = frontend.prepare(asks)
    got = reranker.score(batch)
    whole = reranker.score({**batch, "shared": np.zeros_like(batch["shared"])})
    assert torch.allclose(got, whole, atol=1e-5)
    pairs = [Ask(a.query, (c,)) for a in asks for c in a.candidates]
    alone = torch.cat([scores(frontend, [pair], reranker) for pair in pairs])
    assert torch.allclose(got, alone, atol=1e-5)
    backwards = [Ask(a.query, a.candidates[::-1]) for a in asks[::-1]]
    assert torch.allclose(got, scores(frontend, backwards, reranker).flip(0), atol=1e-5)
    parts = [Ask(a.query, cut) for a in asks for cut in (a.candidates[:2], a.candidates[2:]) if cut]
    assert torch.allclose(got, scores(frontend, parts, reranker), atol=1e-5)
    assert len(set(got.tolist())) > len(got) - 4  # three candidates are there twice


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_list_scores_the_same_in_any_batch(tiny_qwen, qwen_media, architecture):
    frontend = opened(tiny_qwen, architecture, mode="listwise")
    asks, reranker = mixed(qwen_media), frontend.load("cpu")
    alone = torch.cat([scores(frontend, [each], reranker) for each in asks])
    assert torch.allclose(scores(frontend, asks, reranker), alone, atol=1e-5)
    sums = [part.sum() for part in alone.split([len(a.candidates) for a in asks])]
    assert torch.allclose(torch.stack(sums), torch.ones(len(asks)))


def test_pictures_in_place_of_each_other_are_not_shared(tiny_qwen, tmp_path):
    """Their placeholders are the same tokens."""
    pictures = [Image(write_picture(tmp_path / f"{seed}.png", seed=seed)) for seed in (1, 2)]
    batch = opened(tiny_qwen).prepare([ask([Text("x")], *([p] for p in pictures))])
    assert (batch["ids"][0] == batch["ids"][1]).all()
    assert batch["shared"].tolist() == [np.flatnonzero(batch["visual"][0] >= 0)[0]] * 2


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_cost_is_the_number_of_tokens_that_are_run(
    tiny_qwen, qwen_media, monkeypatch, architecture, mode
):
    frontend = opened(tiny_qwen, architecture, mode=mode)
    reranker, run, counts = frontend.load("cpu"), qwen_rerank._run, []

    def counted(model: Any, rows: Any, *more: Any) -> torch.Tensor:
        counts.append(int(rows.real.sum()))
        return run(model, rows, *more)

    monkeypatch.setattr(qwen_rerank, "_run", counted)
    asks = mixed(qwen_media)
    for each in asks:
        counts.clear()
        reranker.score(frontend.prepare([each]))
        assert frontend.cost(each) == sum(counts)
    counts.clear()
    reranker.score(frontend.prepare(asks))
    assert sum(map(frontend.cost, asks)) == sum(counts)


def test_every_picture_and_clip_of_a_batch_is_encoded_once(tiny_qwen, qwen_media):
    frontend = opened(tiny_qwen, "qwen3_vl")
    reranker, patches = frontend.load("cpu"), []
    reranker.model.visual.register_forward_pre_hook(lambda _, given: patches.append(len(given[0])))
    asks = mixed(qwen_media)
    reranker.score(frontend.prepare(asks))
    parts = {p for a in asks for i in (a.query, *a.candidates) for p in i.parts if not isinstance(p, Text)}
    grids = [look(frontend.source.vision, frontend.source.spec, part).grid for part in parts]
    assert len(patches) == 2  # pictures, clips
    assert sum(patches) == sum(int(np.prod(grid)) for grid in grids)


@pytest.mark.parametrize(
    ("architecture", "mode"),
    [("qwen3_vl", "pointwise"), *((architecture, "listwise") for architecture in ARCHITECTURES)],
)
def test_the_contract_holds_where_the_defaults_do_not_lead(tmp_path, architecture, mode):
    spec = replace(UMARVEL_RERANK, tiny=lambda folder: {**tiny_options(architecture, folder), "mode": mode})
    check_reranker(spec, tmp_path)


def test_in_bfloat16_a_score_hardly_depends_on_its_batch(tiny_qwen, qwen_media):
    frontend = opened(tiny_qwen, dtype="bfloat16")
    asks, reranker = mixed(qwen_media), frontend.load("cpu")
    alone = torch.cat([scores(frontend, [Ask(a.query, (c,))], reranker) for a in asks for c in a.candidates])
    got = scores(frontend, asks, reranker)
    assert got.dtype == torch.float32
    assert (got - alone).abs().max() < 0.05


# --- opening ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_checkpoint_says_what_it_is_and_every_option_is_in_the_identity(tiny_qwen, architecture):
    plainly = opened(tiny_qwen, architecture)
    assert plainly.identity["architecture"] == architecture
    assert plainly.identity["deepstack"] == str(architecture == "qwen3_vl").lower()
    assert plainly.identity["system"] == (
        "none" if architecture == "qwen3_vl" else "You are a helpful assistant."
    )
    assert (plainly.identity["attention"], plainly.identity["rope"]) == ("causal", "mrope")
    values = {"fps": "1.5", "dtype": "float16"}
    for name in ("mode", *CHOSEN):
        value = "listwise" if name == "mode" else values.get(name, "57000")
        changed = opened(tiny_qwen, architecture, **{name.replace("_", "-"): value}).identity
        assert changed[name] == value
        assert {k for k in changed if changed[k] != plainly.identity[k]} <= {name, "ending"}


def test_what_was_trained_with_is_taken_from_the_checkpoint_and_nothing_else(tiny_qwen, tmp_path):
    folder = shutil.copytree(tiny_qwen["qwen2_vl"], tmp_path / "saved")
    (folder / FILE).write_text(InputSpec(max_pixels=50_176, text_tokens=256).to_json())  # an embedder's
    spec = open_reranker("tested", "", None, {"path": str(folder)}).source.spec
    assert (spec.max_pixels, spec.text_tokens) == (50_176, 256)
    assert (spec.pool, spec.attention, spec.answer, spec.special_tokens) == ("last_token", "causal", None, ())
    given = {"path": str(folder), "text-tokens": "99"}
    assert open_reranker("tested", "", None, given).source.spec.text_tokens == 99


def test_texts_are_cut_each_in_its_field(tiny_qwen):
    frontend = opened(tiny_qwen, **{"text-tokens": "4"})
    asked = ask([Text("qqqqqqq")], [Text("ccccccc")], instruction="Find it.")
    (row,) = frontend.pieces(asked, {}, frontend.opening)
    assert "Query:Find it. qqqqCandidate:cccc<|im_end|>" in text_of(row)


def test_an_adapter_is_of_the_architecture_of_its_base(tiny_qwen, tmp_path):
    peft = pytest.importorskip("peft")
    base = tiny_qwen["qwen3_vl"]
    model = qwen_plain.transformers.AutoModelForImageTextToText.from_pretrained(base, dtype=torch.float32)
    settings = peft.LoraConfig(r=4, target_modules=r".*language_model.*proj", task_type="CAUSAL_LM")
    settings.init_lora_weights = False
    torch.manual_seed(0)
    with quietly():
        adapted = peft.get_peft_model(model, settings)
    adapted.save_pretrained(tmp_path / "adapter")
    frontend = opened({"a": tmp_path / "adapter"}, "a", base=str(base))
    pair = ask([Text("a red square")], [Text("red")])
    (row,) = frontend.prepare([pair])["ids"]
    with torch.inference_mode():
        logits = adapted(input_ids=torch.from_numpy(row)[None]).logits[0, -1, list(frontend.answers)]
    assert torch.allclose(scores(frontend, [pair]), logits.softmax(-1)[:1], atol=1e-5)
    assert abs(scores(frontend, [pair]) - scores(opened(tiny_qwen, "qwen3_vl"), [pair])) > 1e-3


def without(letter: str, folder: Path) -> None:
    """Takes a letter out of the vocabulary."""
    saved = json.loads((folder / "tokenizer.json").read_text())
    saved["model"]["vocab"]["unused"] = saved["model"]["vocab"].pop(letter)
    (folder / "tokenizer.json").write_text(json.dumps(saved))


def alike(folder: Path) -> None:
    """Reads N as Y."""
    saved = json.loads((folder / "tokenizer.json").read_text())
    saved["normalizer"] = {"type": "Replace", "pattern": {"String": "N"}, "content": "Y"}
    (folder / "tokenizer.json").write_text(json.dumps(saved))


def cut_off(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def headless(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = {k: v for k, v in load_file(folder / "model.safetensors").items() if k != "lm_head.weight"}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def of_type(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "llava"}))


def unlink(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


@pytest.mark.parametrize(
    ("harm", "mode", "message"),
    [
        (alike, "pointwise", "tokenizer.json has no first token of its own for each of Yes, No: take the"),
        (partial(without, "Y"), "pointwise", "no first token of its own for each of Yes, No: take the"),
        (
            partial(without, "7"),
            "listwise",
            "no first token of its own for each of 1, 2, 3, 4, 5, 6, 7, 8, 9: take the",
        ),
        (cut_off, "pointwise", "model.safetensors has .* bytes, not .*: download it again"),
        (headless, "pointwise", "lacks 1 of the weights of qwen2_vl: lm_head.weight"),
        (of_type, "pointwise", "holds a model of type 'llava', which is none of qwen2_vl, qwen2_5_vl"),
        (unlink, "pointwise", "holds no weights: model.safetensors or"),
    ],
)
def test_a_checkpoint_that_cannot_rerank_is_one_line(tiny_qwen, tmp_path, harm, mode, message):
    folder = shutil.copytree(tiny_qwen["qwen2_vl"], tmp_path / "harmed")
    harm(folder)
    with pytest.raises(CheckpointMissing, match=message) as caught:
        open_reranker("tested", "", None, {"path": str(folder), "mode": mode}).load("cpu")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (
            {},
            CheckpointMissing,
            "has no public checkpoint: 'harness train umarvel --stage reranker' makes one",
        ),
        ({"path": "/nowhere"}, CheckpointMissing, "no checkpoint at /nowhere: .* --rerank-arg path=PATH"),
        ({"mode": "pairwise"}, UnknownName, "unknown mode of reranker 'umarvel-rerank' 'pairwise'"),
        ({"pool": "mean"}, UnknownName, "unknown option of model 'umarvel-rerank' 'pool'"),
        (
            {"max-pixels": "x"},
            HarnessError,
            "max-pixels of model 'umarvel-rerank' is a whole number, not 'x'",
        ),
    ],
)
def test_what_cannot_be_opened_is_one_line(tiny_qwen, given, error, message):
    somewhere = {"path": str(tiny_qwen["qwen2_vl"])} if given else {}
    with pytest.raises(error, match=message) as caught:
        UMARVEL_RERANK.open({**somewhere, **given})
    assert "\n" not in str(caught.value)


def test_a_checkpoint_of_another_generation_is_refused_where_the_model_is_of_one(tiny_qwen):
    with pytest.raises(CheckpointMissing, match="a model of type 'qwen3_vl', not 'qwen2_5_vl'"):
        LAMRA_RANK_QWEN25VL.open({"path": str(tiny_qwen["qwen3_vl"])})


def test_an_ask_that_is_too_long_names_its_query(tiny_qwen, qwen_media):
    frontend = opened(tiny_qwen, context="300")
    too_long = ask([Text("a red square")], [Text("x")], [Image(qwen_media / "wide.png")])
    frontend.cost(Ask(too_long.query, too_long.candidates[:1]))
    for fails in (frontend.cost, lambda each: frontend.prepare([each])):
        with pytest.raises(
            DataInvalid, match=r"query 'a red square' and .* have \d+ tokens, tested takes 300: lower"
        ) as caught:
            fails(too_long)
        assert "\n" not in str(caught.value)


def test_a_list_of_ten_is_refused(tiny_qwen):
    frontend = opened(tiny_qwen, mode="listwise")
    ten = ask([Text("x")], *([Text(str(i))] for i in range(10)))
    assert len(scores(frontend, [Ask(ten.query, ten.candidates[:9])])) == 9
    with pytest.raises(
        HarnessError, match="tested tells 9 candidates of a list apart, not 10: add --depth 9"
    ):
        frontend.cost(ten)


# --- the three of them --------------------------------------------------------------------------------

PUBLISHED = [
    ("lamra-rank", "mbeir-local/cirr_task7", 50, 1.0),
    ("lamra-rank", "mbeir-local/mscoco_task0", 50, 0.5),
    ("lamra-rank", "mbeir-global/mscoco_task3", 50, 0.1),
    ("lamra-rank", "flickr/text-to-image", 10, 1.0),
    ("lamra-rank", "sugarcrepe/add_att", 2, 0.1),
    ("lamra-rank", "ccneg/right-caption", 2, 1.0),
    ("umarvel-rerank", "mbeir-local/mscoco_task0", 50, 0.1),
    ("umarvel-rerank", "circo/test", 50, 0.1),
    ("umarvel-rerank", "genecis/change_object", 10, 1.0),
    ("umarvel-rerank", "genecis/focus_attribute", 10, 0.1),
    ("umarvel-rerank", "ccneg/right-caption", 2, 1.0),
    ("umarvel-rerank", "sugarcrepe/add_att", 2, 0.1),
    ("umarvel-rerank", "msrvtt/text-to-video", 10, 0.2),
    ("umarvel-rerank", "msvd/text-to-video", 10, 0.1),
]


@pytest.mark.parametrize(("name", "task", "depth", "weight"), PUBLISHED)
def test_depths_and_weights_are_the_published_ones(name, task, depth, weight):
    catalog = load_catalog()
    spec = catalog.reranker(name)
    rule = Fusion(spec.depths, spec.weights)
    assert task in catalog.tasks
    assert (rule.depth(task), rule.weight(task)) == (depth, weight)


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: s.name)
def test_every_rule_is_of_a_task_that_there_is(spec):
    names = load_catalog().tasks
    for glob in (*spec.depths, *spec.weights):
        assert fnmatch.filter(names, glob), glob
    assert spec.input_spec["mode"] == "pointwise"
    assert set(spec.trained_on) >= {"COCO", "CIRR"}
    assert not set(spec.trained_on) & set(spec.held_out)


def test_a_run_is_reranked_from_the_command_line(cli, tmp_path, tiny_qwen):
    tasks = load_catalog().tasks
    chosen = ("genecis/change_object", "msrvtt/text-to-video", "ccneg/right-caption")
    (tmp_path / "data").mkdir()
    for name in chosen:
        tasks[name].mini(tmp_path / "data")
    words = ["eval", "-m", "random", "--data", "data", "-t", ",".join(chosen), "--rerank", "umarvel-rerank"]
    given = [f"path={tiny_qwen['qwen3_vl']}", "dtype=float32"]
    status, _, err = cli(*words, "--rerank-arg", *given)
    assert status == 0, err
    found = {
        r.task: r for r in read_results(tmp_path / "results" / "runs") if r.model == "random+umarvel-rerank"
    }
    assert {name: found[name].analysis["rerank"]["weight"] for name in chosen} == dict(
        zip(chosen, (1.0, 0.2, 1.0), strict=True)
    )
    status, _, err = cli(*words, "--rerank-arg", *given, "mode=listwise")
    assert status == 1
    assert "tells 9 candidates of a list apart, not 10: add --depth 9" in err
    assert cli(*words, "--depth", "2", "--rerank-arg", *given, "mode=listwise")[0] == 0
