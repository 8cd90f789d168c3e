"""What a Qwen-VL embedder is shown, to the letter and to the token."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import qwen_tokenizer
from harness.content import Image, Item, Part, Text, Video
from harness.errors import CheckpointMissing, HarnessError, UnknownName
from harness.models.input_spec import InputSpec, Piece, option, render, text_of, turn
from harness.models.lamra import SPEC as LAMRA
from harness.models.qwen_tokens import Row, Vocabulary

UMARVEL = InputSpec()
PICTURE, CLIP = Image(Path("a.png")), Video(Path("a.mp4"))
HEAD = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
TAIL = "<|im_end|>\n<|im_start|>assistant\n<emb>.<|im_end|>\n<|im_start|>assistant\n"
ASK = "Find it."
MARKED = f"<instruction_start>{ASK}<instruction_end>"


def show(part: Image | Video) -> list[Piece]:
    return [Piece("[image]" if isinstance(part, Image) else "[video]", token=True)]


def shown(spec: InputSpec, *parts: Part, instruction: str | None = None, separator: str = " ") -> str:
    return text_of(render(spec, Item("query", parts, instruction, separator), show))


@pytest.mark.parametrize(
    ("parts", "instruction", "separator", "content"),
    [
        ((Text("A cat."),), None, " ", "A cat."),
        ((Text("A cat."),), ASK, " ", f"{MARKED} A cat."),
        ((Text("A cat."),), ASK, "", f"{MARKED}A cat."),
        ((Text(""),), None, " ", ""),
        ((PICTURE,), None, " ", "[image]"),
        ((PICTURE,), ASK, " ", f"[image]{MARKED}."),  # M-BEIR: format_string ends it with a full stop
        ((PICTURE, Text("")), ASK, " ", f"[image]{MARKED}."),
        ((PICTURE,), ASK, "", f"[image]{MARKED}"),
        ((PICTURE, Text("A cat.")), ASK, " ", f"[image]{MARKED} A cat."),
        ((Text("A cat."), PICTURE), ASK, " ", f"[image]{MARKED} A cat."),
        ((CLIP, Text("A cat.")), None, " ", "[video]A cat."),
        ((CLIP,), ASK, "", f"[video]{MARKED}"),
        ((Text("a"), PICTURE, Text("b"), PICTURE), ASK, " ", f"{MARKED} a[image]b[image]"),
        ((PICTURE, Text("a"), PICTURE, Text("b")), ASK, " ", f"{MARKED}[image]a[image]b"),
        ((Text("a"), Text("b")), None, " ", "ab"),
        ((PICTURE, Text(f"{{'{MARKED}'}}")), None, " ", f"[image]{{'{MARKED}'}}"),
    ],
)
def test_umarvel_is_shown_what_its_collators_render(parts, instruction, separator, content):
    assert shown(UMARVEL, *parts, instruction=instruction, separator=separator) == HEAD + content + TAIL


@pytest.mark.parametrize(
    ("parts", "instruction", "content"),
    [
        ((Text("A cat."),), None, "A cat.\nSummarize above sentence in one word: "),
        ((Text("A cat."),), ASK, f"{ASK} A cat.\nSummarize above sentence in one word: "),
        ((PICTURE,), None, "[image]\nSummarize above image in one word: "),
        ((PICTURE,), ASK, f"[image]{ASK}\nSummarize above image and sentence in one word: "),
        ((PICTURE, Text("")), None, "[image]\nSummarize above image and sentence in one word: "),
        (
            (PICTURE, Text("Red.")),
            ASK,
            f"[image]{ASK} Red.\nSummarize above image and sentence in one word: ",
        ),
        ((CLIP,), None, "[video]\nSummarize above video in one word: "),
        ((CLIP, Text("A")), None, "[video]A\nSummarize above video and sentence in one word: "),
        (  # VIST
            (Text("a"), PICTURE, Text("b")) * 2,
            ASK,
            f"{ASK} a[image]ba[image]b\nSummarize above images and sentences in one word: ",
        ),
        (  # multi-turn FashionIQ
            (PICTURE, Text("a"), PICTURE, Text("b")),
            ASK,
            f"{ASK}[image]a[image]b\nSummarize above image and sentence in one word: ",
        ),
    ],
)
def test_lamra_is_asked_for_one_word(parts, instruction, content):
    assert shown(LAMRA, *parts, instruction=instruction) == HEAD + content + TAIL


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"system": None}, HEAD.partition("<|im_end|>\n")[2] + MARKED + " A" + TAIL),
        ({"generation_prompt": False}, HEAD + MARKED + " A" + TAIL.removesuffix("<|im_start|>assistant\n")),
        ({"answer": None}, HEAD + MARKED + " A<|im_end|>\n<|im_start|>assistant\n"),
        ({"instruction_place": "nowhere"}, HEAD + "A" + TAIL),
        (  # GME
            {
                "instruction_place": "system",
                "instruction_tokens": False,
                "answer": None,
                "ending": "<|endoftext|>",
            },
            f"<|im_start|>system\n{ASK}<|im_end|>\n<|im_start|>user\nA<|im_end|>\n"
            "<|im_start|>assistant\n<|endoftext|>",
        ),
        ({"chat": False, "instruction_tokens": False, "ending": "\n"}, f"{ASK} A\n"),
    ],
)
def test_other_embedders_are_other_values(changes, expected):
    assert shown(replace(UMARVEL, **changes), Text("A"), instruction=ASK) == expected


SPECS = [
    UMARVEL,
    LAMRA,
    replace(
        UMARVEL, system=None, answer=None, frames=12, fps=0.5, special_tokens=(), instruction_tokens=False
    ),
]


@pytest.mark.parametrize("spec", SPECS)
def test_a_spec_comes_back_from_json_and_from_options(spec):
    assert InputSpec.from_json(spec.to_json()) == spec
    given = {option(name): value for name, value in spec.shown().items()}
    assert UMARVEL.with_options("m", given) == spec
    assert set(given) == {f.name.replace("_", "-") for f in fields(InputSpec)}
    assert UMARVEL.with_options("m", {"path": "elsewhere"}) == UMARVEL


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"pool": "max"}, UnknownName, "unknown pool of model 'm' 'max': did you mean mean"),
        ({"dtype": "int8"}, UnknownName, "unknown dtype of model 'm' 'int8'"),
        ({"deepstack": "yes"}, UnknownName, "unknown deepstack of model 'm' 'yes': known: false, true"),
        ({"max-pixels": "many"}, HarnessError, "max-pixels of model 'm' is a whole number, not 'many'"),
        ({"fps": "fast"}, HarnessError, "fps of model 'm' is a number, not 'fast'"),
        ({"text-tokens": "0"}, HarnessError, "text_tokens must be greater than 0, not 0"),
        ({"fps": "nan"}, HarnessError, "fps must be greater than 0, not nan"),
        ({"frames": "-1"}, HarnessError, "frames must be greater than 0, not -1"),
        ({"pool": "pre_emb_token", "answer": "none"}, HarnessError, "needs <emb> in the answer"),
        ({"special-tokens": "<emb>"}, HarnessError, "needs <instruction_start> and <instruction_end>"),
    ],
)
def test_a_wrong_option_is_one_line(given, error, message):
    with pytest.raises(error, match=message):
        UMARVEL.with_options("m", given)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "an object is wanted"),
        ('{"pool": "max"}', "pool cannot be 'max'"),
        ('{"chat": 1}', "chat cannot be 1"),
        ('{"special_tokens": "<emb>"}', "special_tokens cannot be '<emb>'"),
        ('{"colour": "red"}', "unknown field 'colour'"),
        ("{", "Expecting property name"),
    ],
)
def test_a_saved_spec_of_something_else_is_refused(text, message):
    with pytest.raises((ValueError, UnknownName), match=message):
        InputSpec.from_json(text)


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Vocabulary:
    return Vocabulary.at(qwen_tokenizer.saved(tmp_path_factory.mktemp("qwen")), UMARVEL.special_tokens)


@pytest.fixture(scope="module")
def small(tiny_qwen: dict[str, Path]) -> Vocabulary:
    return Vocabulary.at(tiny_qwen["qwen2_vl"] / "tokenizer.json", UMARVEL.special_tokens)


def test_the_ids_are_qwens(real):
    known = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"]
    assert [real.id(token) for token in known] == [151643, 151644, 151645, 151652, 151653]
    assert [real.id(token) for token in ("<|image_pad|>", "<|video_pad|>")] == [151655, 151656]
    assert [real.id(token) for token in UMARVEL.special_tokens] == [151657, 151658, 151659]
    assert real.rows == 151660
    system = turn("system", [Piece("You are a helpful assistant.")])
    assert real.row(system).ids == [151644, 8948, 198, 2610, 525, 264, 10950, 17847, 13, 151645, 198]


def test_a_query_of_umarvel_to_the_token(real):
    """The whole string written out, tokenised by tiktoken; the three added tokens by hand."""

    def placeholders(part: Image | Video) -> list[Piece]:
        pads = Piece("<|image_pad|>", token=True, times=3)
        return [Piece("<|vision_start|>", token=True), pads, Piece("<|vision_end|>", token=True)]

    instruction = "Find me an everyday image that matches the given caption."
    row = real.row(
        render(
            UMARVEL,
            Item("query", (PICTURE, Text("Zwei Katzen — 两只猫, it's 12°.")), instruction),
            placeholders,
        )
    )
    expected = (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\n<|vision_start|><|image_pad|><|image_pad|><|image_pad|><|vision_end|>",
        "Find me an everyday image that matches the given caption.",
        " Zwei Katzen — 两只猫, it's 12°.<|im_end|>\n<|im_start|>assistant\n",
        ".<|im_end|>\n<|im_start|>assistant\n",
    )
    before, asked, text, end = (
        qwen_tokenizer.reference().encode(stretch, allowed_special="all") for stretch in expected
    )
    assert row.ids == [*before, 151658, *asked, 151659, *text, 151657, *end]
    masked = [False] * (len(asked) + 2)
    assert row.pooled == [True] * len(before) + masked + [True] * (len(text) + 1 + len(end))


@pytest.mark.parametrize("text", ["  two  blanks\n\nlines \t", "ÅΩ é é", "don't WE'LL 123 4.5", "🐈‍⬛ 東京…"])
def test_the_tokenizer_is_that_of_tiktoken(real, text):
    import unicodedata

    assert real.ids(text) == qwen_tokenizer.reference().encode(unicodedata.normalize("NFC", text))


def test_plain_pieces_side_by_side_are_one_string(small):
    pieces = [Piece("user\n"), Piece("the red", pooled=False), Piece(" square")]
    row = small.row(pieces)
    assert row.ids == small.ids("user\nthe red square")
    tokens = [small._tokenizer.id_to_token(i) for i in row.ids]
    assert [t for t, pooled in zip(tokens, row.pooled, strict=True) if not pooled] == ["t", "h", "e", "Ġred"]


@given(
    st.lists(
        st.sampled_from(
            ["<|im_end|>", "<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<emb>", "a", " "]
        ),
        max_size=6,
    )
)
def test_no_text_becomes_a_special_token(small, pieces):
    special = {small.id(token) for token in ("<|im_end|>", "<|image_pad|>", "<|video_pad|>", "<emb>")}
    text = "".join(pieces)
    assert special.isdisjoint(small.ids(text))
    row = small.row(render(UMARVEL, Item("query", (Text(text),), text), show))
    assert row.ids.count(small.id("<emb>")) == 1
    assert row.ids.count(small.id("<|im_end|>")) == 3


def test_only_a_whole_pair_of_markers_is_read_in_a_text(small):
    def ids(spec: InputSpec, text: str) -> Row:
        return small.row(render(spec, Item("query", (Text(text),)), show))

    start = small.id("<instruction_start>")
    row = ids(UMARVEL, f"a {MARKED} b")
    assert start in row.ids
    assert row.pooled.count(False) == len(small.ids(ASK)) + 2
    assert start not in ids(UMARVEL, "a <instruction_start> b").ids
    assert start not in ids(LAMRA, f"a {MARKED} b").ids
    assert all(ids(replace(UMARVEL, instruction_in_pool=True), f"a {MARKED} b").pooled)


@given(st.text(max_size=40), st.integers(1, 12))
def test_a_text_is_cut_to_its_limit_and_not_before(small, text, limit):
    spec = replace(LAMRA, text_tokens=limit)
    cut = small.shortened(spec, text)
    assert text.startswith(cut)
    assert len(small.ids(cut)) <= limit
    if len(small.ids(text)) <= limit:
        assert cut == text
    elif len(text) == len(text.encode()):  # a token of another letter may be a part of it
        assert len(small.ids(cut)) == limit or text[len(cut) - 1 :].isspace()


def test_markers_are_not_cut_through(small):
    spec = replace(UMARVEL, text_tokens=4)
    assert small.shortened(spec, f"abcdef{MARKED}ghi") == f"abcd{MARKED}"
    assert small.shortened(spec, f"ab{MARKED}cdef") == f"ab{MARKED}cd"


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "is no saved tokenizer: Expecting property"), ('{"added_tokens": []}', "is no saved tokenizer")],
)
def test_a_file_of_something_else_is_no_tokenizer(tmp_path, content, message):
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(CheckpointMissing, match=message) as caught:
        Vocabulary.at(tmp_path / "tokenizer.json", ())
    assert "\n" not in str(caught.value)
