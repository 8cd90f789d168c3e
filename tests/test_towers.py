"""CLIP and SigLIP through transformers: its forward, the official tokens and pictures, errors in a line."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from harness.content import Image, Item, Part, Text, Video
from harness.errors import CheckpointMissing, HarnessError, UnknownName
from harness.models.tiny_towers import LETTERS
from harness.models.towers import CLIP_L, SIGLIP, Inputs
from harness.testing import write_clip
from hub import Hub

SPECS = [CLIP_L, SIGLIP]
SENTENCES = ["A tabby-cat, isn't it?", "", "two   cups of COFFEE " * 40]


def _ask(*parts: Part) -> Item:
    return Item("query", parts)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    return {s.name: Path(s.tiny(tmp_path_factory.mktemp(s.name))["path"]) for s in SPECS}


@pytest.fixture(scope="module")
def photographs() -> list[Path]:
    data = pytest.importorskip("skimage.data")
    return [Path(data.__file__).parent / name for name in ("chelsea.png", "coffee.png", "rocket.jpg")]


def _rows(spec: Any, folder: Path, items: list[Item], **given: str) -> torch.Tensor:
    frontend = pickle.loads(pickle.dumps(spec.open({"path": str(folder), **given})))
    rows: torch.Tensor = frontend.load("cpu").embed(frontend.prepare(items))
    return rows


def _normalised(pixels: Any, mean: list[float], std: list[float]) -> torch.Tensor:
    values = (np.asarray(pixels, np.float32) / 255 - np.array(mean)) / np.array(std)
    return torch.from_numpy(values).float().permute(2, 0, 1)


def test_clip_is_transformers_forward_over_openais_pictures(
    tiny: Mapping[str, Path], photographs: list[Path]
) -> None:
    from PIL import Image as Pil
    from transformers import AutoTokenizer, CLIPModel

    model = CLIPModel.from_pretrained(tiny["clip-l"]).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny["clip-l"])
    expected = []
    with torch.inference_mode():
        for text in SENTENCES:
            tokens = tokenizer(text, truncation=True, max_length=LETTERS, return_tensors="pt")
            states = model.text_model(**tokens).last_hidden_state[0]
            expected.append(model.text_projection(states[-1]))  # alone: the last is the end's
        for path in photographs:
            photo = Pil.open(path).convert("RGB")
            scale = 32 / min(photo.size)
            wide, high = (int(side * scale) for side in photo.size)
            small = photo.resize((wide, high), Pil.Resampling.BICUBIC)
            left, top = (wide - 32) // 2, (high - 32) // 2
            pixels = _normalised(
                small.crop((left, top, left + 32, top + 32)),
                [0.48145466, 0.4578275, 0.40821073],
                [0.26862954, 0.26130258, 0.27577711],
            )
            expected.append(model.visual_projection(model.vision_model(pixels[None]).pooler_output)[0])
    items = [*(_ask(Text(s)) for s in SENTENCES), *(_ask(Image(p)) for p in photographs)]
    got = _rows(CLIP_L, tiny["clip-l"], items)
    assert torch.allclose(got, normalize(torch.stack(expected), dim=-1), atol=1e-5)
    frontend = CLIP_L.open({"path": str(tiny["clip-l"])})
    assert [frontend.cost(i) for i in items[1:4]] == [2, LETTERS, 16]
    assert sum(frontend.prepare(items)["cut"]) == 1


def test_siglip_is_transformers_forward_over_padded_texts(
    tiny: Mapping[str, Path], photographs: list[Path]
) -> None:
    import sentencepiece
    from PIL import Image as Pil
    from transformers import SiglipModel

    model = SiglipModel.from_pretrained(tiny["siglip"]).eval()
    pieces = sentencepiece.SentencePieceProcessor(str(tiny["siglip"] / "spiece.model"))
    bare = ["a tabbycat isnt it", "", ("two cups of coffee " * 40).strip()]  # lower case, no punctuation
    ids = torch.ones(3, LETTERS, dtype=torch.long)  # </s> ends a text and fills it up
    for row, text in zip(ids, bare, strict=True):
        found = pieces.encode(text)[: LETTERS - 1]
        row[: len(found)] = torch.tensor(found)
    with torch.inference_mode():
        photos = [Pil.open(p).convert("RGB").resize((32, 32), Pil.Resampling.BICUBIC) for p in photographs]
        pixels = torch.stack([_normalised(photo, [0.5] * 3, [0.5] * 3) for photo in photos])
        texts = model.text_model.head(model.text_model(ids).last_hidden_state[:, -1])
        expected = normalize(torch.cat([texts, model.vision_model(pixels).pooler_output]), dim=-1)
    items = [*(_ask(Text(s)) for s in SENTENCES), *(_ask(Image(p)) for p in photographs)]
    assert torch.allclose(_rows(SIGLIP, tiny["siglip"], items), expected, atol=1e-5)
    frontend = SIGLIP.open({"path": str(tiny["siglip"])})
    assert [frontend.cost(i) for i in items[1:4]] == [LETTERS, LETTERS, 16]
    assert sum(frontend.prepare(items)["cut"]) == 1


def test_clips_tokens_are_openais(tmp_path: Path) -> None:
    import open_clip
    from transformers import CLIPTokenizer

    official = open_clip.tokenizer.SimpleTokenizer()
    merges = sorted(official.bpe_ranks, key=official.bpe_ranks.__getitem__)
    openais = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    vocabulary = {openais.get(piece, piece): at for piece, at in official.encoder.items()}
    CLIPTokenizer(vocab=vocabulary, merges=merges).save_pretrained(tmp_path)
    texts = [*SENTENCES, "Zwei Täßchen Kaffee, 12.50 €: it's hot!", "a_b <b> #tag"]
    got = Inputs(tmp_path, 77).tokens(texts)["ids"]
    expected = official(texts).numpy()[:, : got.shape[1]]
    for row, wanted in zip(got, expected, strict=True):
        upto = wanted.tolist().index(vocabulary["<|endoftext|>"]) + 1
        assert row[:upto].tolist() == wanted[:upto].tolist()


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: s.name)
def test_parts_are_fused_by_score_and_options_count(
    spec: Any, tiny: Mapping[str, Path], media: Path, tmp_path: Path
) -> None:
    from harness.media import frames

    clip = Video(write_clip(tmp_path / "clip.mp4", seed=3))
    stills = []
    for i, frame in enumerate(frames(clip, count=2)):
        frame.save(tmp_path / f"{i}.png")
        stills.append(_ask(Image(tmp_path / f"{i}.png")))
    text, picture = Text("a red square"), Image(media / "p0.png")
    mixed = [_ask(text), _ask(picture), _ask(picture, text), _ask(clip)]
    t, p, both, v = _rows(spec, tiny[spec.name], mixed, **{"video-frames": "2"})
    whole = _rows(spec, tiny[spec.name], stills)
    assert torch.allclose(both, normalize(t + p, dim=-1), atol=1e-5)
    assert torch.allclose(v, normalize(whole.mean(0), dim=-1), atol=1e-5)
    half = _rows(spec, tiny[spec.name], mixed[:2], dtype="bfloat16")
    assert half.dtype == torch.float32
    assert (half * torch.stack([t, p])).sum(1).min() > 0.99
    path = {"path": str(tiny[spec.name])}
    ids = [
        spec.open({**path, **more}).identity for more in ({}, {"dtype": "bfloat16"}, {"video_frames": "2"})
    ]
    assert len({json.dumps(dict(each)) for each in ids}) == 3


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: s.name)
def test_the_fingerprint_is_of_tokenizer_and_pictures_too(
    spec: Any, tiny: Mapping[str, Path], tmp_path: Path
) -> None:
    prints = {spec.open({"path": str(tiny[spec.name])}).identity["weights"]}
    for name in ("preprocessor_config.json", "tokenizer_config.json"):
        folder = shutil.copytree(tiny[spec.name], tmp_path / name)
        (folder / name).write_text(json.dumps({**json.loads((folder / name).read_text()), "note": 1}))
        prints.add(spec.open({"path": str(folder)}).identity["weights"])
    assert len(prints) == 3


def _cut(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def _without_layer(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    save_file(
        {n: t for n, t in tensors.items() if n != "text_model.encoder.layers.1.mlp.fc1.bias"},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )


class Evil:
    def __reduce__(self) -> Any:
        return print, ("unpickled",)


def _pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"a": Evil()}, folder / "pytorch_model.bin")


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: s.name)
@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (
            lambda f: (f / "config.json").write_text('{"model_type": "bert"}'),
            "holds a model of type 'bert', not",
        ),
        (_cut, r"model.safetensors has [\d,]+ bytes, not [\d,]+: download it again"),
        (_without_layer, r"lacks 1 of the weights of \w+: text_model.encoder.layers.1.mlp.fc1.bias"),
        (_pickled, "does not hold weights of"),
        (lambda f: (f / "model.safetensors").unlink(), "holds no weights: model.safetensors or"),
        (lambda f: (f / "preprocessor_config.json").unlink(), "lacks preprocessor_config.json: copy it"),
    ],
)
def test_a_broken_checkpoint_is_one_line(
    spec: Any,
    tiny: Mapping[str, Path],
    tmp_path: Path,
    capsys: Any,
    harm: Callable[[Path], None],
    message: str,
) -> None:
    folder = shutil.copytree(tiny[spec.name], tmp_path / "broken")
    harm(folder)
    with pytest.raises(CheckpointMissing, match=message) as caught:
        spec.open({"path": str(folder)}).load("cpu")
    assert "\n" not in str(caught.value)
    assert "unpickled" not in capsys.readouterr().out


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: s.name)
@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"path": "/nowhere"}, CheckpointMissing, "there is no checkpoint at /nowhere"),
        ({"dtype": "int8"}, UnknownName, "unknown dtype of model .* 'int8'"),
        ({"video-frames": "0"}, HarnessError, "video-frames of model .* is a whole number from 1"),
        (
            {},
            CheckpointMissing,
            r"cannot get (openai|google)/\S+ from the model hub .* --model-arg path=PATH",
        ),
    ],
)
def test_what_cannot_be_opened_is_one_line(
    spec: Any, given: dict[str, str], error: type[HarnessError], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        spec.open(given)
    assert "\n" not in str(caught.value)


def test_a_folder_without_a_tokenizer_is_one_line(
    tiny: Mapping[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(tiny["siglip"], tmp_path / "broken")
    (folder / "spiece.model").unlink()
    with pytest.raises(CheckpointMissing, match="holds no tokenizer that transformers can make") as caught:
        SIGLIP.open({"path": str(folder)}).prepare([_ask(Text("a"))])
    assert "\n" not in str(caught.value)
    folder = shutil.copytree(tiny["siglip"], tmp_path / "whole")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(HarnessError, match=r"needs sentencepiece: pip install 'umr-harness\[clip\]'"):
        SIGLIP.open({"path": str(folder)}).prepare([_ask(Text("a"))])


def test_a_model_of_the_hub_is_opened_without_its_weights_and_pinned(
    tiny: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from huggingface_hub import constants

    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "hf/token"))
    items = [_ask(Text("a red square"))]
    with Hub() as served:
        monkeypatch.setenv("HF_ENDPOINT", served.url)
        files = {f.name: f.read_bytes() for f in tiny["siglip"].iterdir() if f.is_file()}
        commit = served.commit("models/team/siglip", {**files, "flax_model.msgpack": b"no"})
        frontend = SIGLIP.open({"path": "team/siglip"})
        assert frontend.identity["weights"] == f"team/siglip@{commit}"
        assert "model.safetensors" not in served.downloads()
        rows = frontend.load("cpu").embed(frontend.prepare(items))
        assert "flax_model.msgpack" not in served.downloads()
    assert torch.allclose(rows, _rows(SIGLIP, tiny["siglip"], items), atol=1e-6)
