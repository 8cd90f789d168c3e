"""UniIR's models compute what its code does, from files as it saved them; others are refused in a line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import gelu, layer_norm, linear, normalize

from harness.content import Image, Item, Part, Text, Video
from harness.errors import CheckpointMissing
from harness.models.tiny_towers import SIDE, write_bert_tokenizer, write_tiny_clip
from harness.models.uniir import UNIIR_BLIP_FF, UNIIR_CLIP_SF, sentence
from harness.models.uniir_convert import convert, main
from harness.testing import write_clip

Tensors = dict[str, torch.Tensor]
WIDTH, LAYERS = 64, 2
MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)


class Config:
    """Stands for the object that UniIR's training saved beside the weights."""

    def __init__(self) -> None:
        self.content = {"lr": 1e-5}


def _save(weights: Tensors, path: Path, **beside: Any) -> Path:
    torch.save({"model": weights, "optimizer": {"state": {0: torch.zeros(2)}}, "epoch": 3, **beside}, path)
    return path


@pytest.fixture(scope="module")
def clip_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip_tokenizer")
    write_tiny_clip(folder)
    return folder


@pytest.fixture(scope="module")
def bert_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bert_tokenizer")
    write_bert_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def clip_model(clip_tokenizer: Path) -> torch.nn.Module:
    """OpenAI's architecture under OpenAI's names, as open_clip writes it out."""
    import open_clip
    from transformers import AutoTokenizer

    vision = {"image_size": SIDE, "layers": LAYERS, "width": WIDTH, "head_width": 64, "patch_size": 8}
    tokens = len(AutoTokenizer.from_pretrained(clip_tokenizer))
    text = {"context_length": 77, "vocab_size": tokens, "width": WIDTH, "heads": 1, "layers": LAYERS}
    torch.manual_seed(1)
    model = open_clip.CLIP(embed_dim=16, vision_cfg=vision, text_cfg=text, quick_gelu=True).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.05)
    return model


@pytest.fixture(scope="module")
def clip_sf(tmp_path_factory: pytest.TempPathFactory, clip_model: Any, clip_tokenizer: Path) -> Path:
    folder = tmp_path_factory.mktemp("clip_sf")
    weights = {f"clip_model.{name}": t for name, t in clip_model.state_dict().items() if name != "attn_mask"}
    path = _save(weights, folder / "clip_sf_large.pth", config=Config())
    convert(path, folder / "converted", str(clip_tokenizer))
    return folder / "converted"


def blip_weights(tokens: int) -> Tensors:
    """The names that UniIR's BLIPFeatureFusion has, momentum encoders and queues included."""
    torch.manual_seed(2)
    made: Tensors = {}

    def add(name: str, *shape: int) -> None:
        made[name] = torch.randn(*shape) * (1.0 if len(shape) == 1 else 0.2)

    def dense(name: str, out: int, inner: int) -> None:
        add(f"{name}.weight", out, inner)
        add(f"{name}.bias", out)

    def norm(name: str, width: int) -> None:
        add(f"{name}.weight", width)
        add(f"{name}.bias", width)

    vision, text = 2 * WIDTH, WIDTH
    for which in ("", "_m"):
        v, t = f"visual_encoder{which}", f"text_encoder{which}"
        add(f"{v}.cls_token", 1, 1, vision)
        add(f"{v}.pos_embed", 1, (SIDE // 8) ** 2 + 1, vision)
        add(f"{v}.patch_embed.proj.weight", vision, 3, 8, 8)
        add(f"{v}.patch_embed.proj.bias", vision)
        for i in range(LAYERS):
            for name, (out, inner) in {
                "attn.qkv": (3 * vision, vision),
                "attn.proj": (vision, vision),
                "mlp.fc1": (4 * vision, vision),
                "mlp.fc2": (vision, 4 * vision),
            }.items():
                dense(f"{v}.blocks.{i}.{name}", out, inner)
            for name in ("norm1", "norm2"):
                norm(f"{v}.blocks.{i}.{name}", vision)
        norm(f"{v}.norm", vision)
        add(f"{t}.embeddings.word_embeddings.weight", tokens, text)
        add(f"{t}.embeddings.position_embeddings.weight", 128, text)
        made[f"{t}.embeddings.position_ids"] = torch.arange(128)[None]
        norm(f"{t}.embeddings.LayerNorm", text)
        for i in range(LAYERS):
            layer = f"{t}.encoder.layer.{i}"
            for kind, seen in (("attention", text), ("crossattention", vision)):
                dense(f"{layer}.{kind}.self.query", text, text)
                dense(f"{layer}.{kind}.self.key", text, seen)
                dense(f"{layer}.{kind}.self.value", text, seen)
                dense(f"{layer}.{kind}.output.dense", text, text)
                norm(f"{layer}.{kind}.output.LayerNorm", text)
            dense(f"{layer}.intermediate.dense", 4 * text, text)
            dense(f"{layer}.output.dense", text, 4 * text)
            norm(f"{layer}.output.LayerNorm", text)
        dense(f"{t}.pooler.dense", text, text)
    made |= {"query_queue": torch.zeros(4, 8), "cand_queue": torch.zeros(4, 8), "temp": torch.tensor(0.07)}
    return made | {"idx_queue": torch.zeros(1, 8), "new_ptr_queue": torch.zeros(1, dtype=torch.long)}


@pytest.fixture(scope="module")
def blip(bert_tokenizer: Path) -> Tensors:
    from transformers import AutoTokenizer

    return blip_weights(len(AutoTokenizer.from_pretrained(bert_tokenizer)))


@pytest.fixture(scope="module")
def blip_ff(tmp_path_factory: pytest.TempPathFactory, blip: Tensors, bert_tokenizer: Path) -> Path:
    folder = tmp_path_factory.mktemp("blip_ff")
    path = _save(blip, folder / "blip_ff_large.pth", config=Config())
    convert(path, folder / "converted", str(bert_tokenizer))
    return folder / "converted"


class Plain:
    """BLIP's forward in UniIR's mode "multimodal", written out over UniIR's own weights."""

    def __init__(self, weights: Tensors) -> None:
        self.weights = weights

    def dense(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return linear(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def norm(self, name: str, x: torch.Tensor, eps: float) -> torch.Tensor:
        return layer_norm(x, x.shape[-1:], self.weights[f"{name}.weight"], self.weights[f"{name}.bias"], eps)

    @staticmethod
    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int) -> torch.Tensor:
        q, k, v = (x.unflatten(-1, (heads, -1)).transpose(0, 1) for x in (q, k, v))
        scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
        return (scores.softmax(-1) @ v).transpose(0, 1).flatten(1)

    def see(self, pixels: torch.Tensor) -> torch.Tensor:
        """[tokens, 128]"""
        w, v = self.weights, "visual_encoder"
        patches = torch.conv2d(
            pixels[None], w[f"{v}.patch_embed.proj.weight"], w[f"{v}.patch_embed.proj.bias"], stride=8
        )
        x = torch.cat([w[f"{v}.cls_token"][0], patches[0].flatten(1).T]) + w[f"{v}.pos_embed"][0]
        for i in range(LAYERS):
            block = f"{v}.blocks.{i}"
            q, k, u = self.dense(f"{block}.attn.qkv", self.norm(f"{block}.norm1", x, 1e-6)).chunk(3, -1)
            x = x + self.dense(f"{block}.attn.proj", self.attend(q, k, u, 2))
            inner = gelu(self.dense(f"{block}.mlp.fc1", self.norm(f"{block}.norm2", x, 1e-6)))
            x = x + self.dense(f"{block}.mlp.fc2", inner)
        return self.norm(f"{v}.norm", x, 1e-6)

    def read(self, ids: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        """[64] of unit length"""
        w, t = self.weights, "text_encoder"
        x = w[f"{t}.embeddings.word_embeddings.weight"][ids]
        x = x + w[f"{t}.embeddings.position_embeddings.weight"][: len(ids)]
        x = self.norm(f"{t}.embeddings.LayerNorm", x, 1e-12)
        for i in range(LAYERS):
            layer = f"{t}.encoder.layer.{i}"
            for kind in ("attention", "crossattention"):
                other = x if kind == "attention" else seen
                q, k, v = (
                    self.dense(f"{layer}.{kind}.self.{name}", of)
                    for name, of in (("query", x), ("key", other), ("value", other))
                )
                out = self.dense(f"{layer}.{kind}.output.dense", self.attend(q, k, v, 1))
                x = self.norm(f"{layer}.{kind}.output.LayerNorm", out + x, 1e-12)
            inner = gelu(self.dense(f"{layer}.intermediate.dense", x))
            x = self.norm(f"{layer}.output.LayerNorm", self.dense(f"{layer}.output.dense", inner) + x, 1e-12)
        return normalize(self.dense(f"{t}.pooler.dense", x[0]).tanh(), dim=-1)


def _pixels(picture: Any) -> torch.Tensor:
    """[3, 32, 32] of a picture of 32 x 32"""
    values = (np.asarray(picture, np.float32) / 255 - MEAN) / STD
    return torch.from_numpy(values).permute(2, 0, 1)


@pytest.fixture(scope="module")
def items(media: Path) -> list[Item]:
    p, q = (Image(media / f"p{i}.png") for i in (0, 1))
    text = Text("a red square")
    parts: list[tuple[Part, ...]] = [(text,), (p,), (p, text), (text, p, Text("and more"), q), (Text(""),)]
    queries = [Item("query", each, "find it.") for each in parts[:4]]
    return [*queries, *(Item("candidate", each) for each in parts)]


def test_an_items_text_has_its_instruction_in_front() -> None:
    two = (Text("a b"), Text(""), Text("c"))
    assert sentence(Item("query", two, "Find it.")) == "Find it. a b c"
    assert sentence(Item("query", (Text("a"),), "Find it: ", separator="")) == "Find it: a"
    assert sentence(Item("query", (Text(""),), "Find it.")) == "Find it."
    assert sentence(Item("candidate", two)) == "a b c"
    assert sentence(Item("candidate", (Text(""),))) == ""


def test_clip_sf_adds_the_vectors_that_open_clips_towers_give(
    clip_sf: Path, clip_model: Any, items: list[Item]
) -> None:
    from PIL import Image as Pil
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(clip_sf)
    expected = []
    with torch.inference_mode():
        for item in items:
            vectors = []
            if words := sentence(item):
                ids = torch.zeros(1, 77, dtype=torch.long)  # as OpenAI's code pads
                found = tokenizer(words)["input_ids"]
                ids[0, : len(found)] = torch.tensor(found)
                vectors.append(clip_model.encode_text(ids)[0])
            pictures = [
                clip_model.encode_image(_pixels(Pil.open(part.path).resize((SIDE, SIDE), 3))[None])[0]
                for part in item.parts
                if isinstance(part, Image)
            ]
            if pictures:
                vectors.append(torch.stack(pictures).mean(0))
            if not vectors:  # an empty text alone has to be something
                ids[0] = 0
                ids[0, :2] = torch.tensor(tokenizer("")["input_ids"])
                vectors.append(clip_model.encode_text(ids)[0])
            expected.append(normalize(torch.stack(vectors).sum(0), dim=-1))
    frontend = UNIIR_CLIP_SF.open({"path": str(clip_sf)})
    got = frontend.load("cpu").embed(frontend.prepare(items))
    assert torch.allclose(got, torch.stack(expected), atol=1e-5)
    assert [frontend.cost(i) for i in items[5:7]] == [17, 17 + 2 + len("aredsquare")]


def test_blip_ff_is_blips_forward_over_uniirs_weights(
    blip_ff: Path, blip: Tensors, items: list[Item]
) -> None:
    from PIL import Image as Pil
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(blip_ff)
    plain = Plain(blip)
    black = torch.zeros(3, SIDE, SIDE)
    expected = []
    for item in items:
        ids = tokenizer(sentence(item), truncation=True, max_length=100)["input_ids"]
        assert ids[0] == tokenizer.cls_token_id
        pictures = [
            _pixels(Pil.open(part.path).resize((SIDE, SIDE), 3))
            for part in item.parts
            if isinstance(part, Image)
        ]
        seen = torch.cat([plain.see(each) for each in pictures or [black]])
        expected.append(plain.read(torch.tensor(ids), seen))
    frontend = UNIIR_BLIP_FF.open({"path": str(blip_ff)})
    got = frontend.load("cpu").embed(frontend.prepare(items))
    assert torch.allclose(got, torch.stack(expected), atol=1e-5)
    assert [frontend.cost(i) for i in items[4:6]] == [2 + len("aredsquare") + 17, 2 + 17]


@pytest.mark.parametrize("spec", [UNIIR_CLIP_SF, UNIIR_BLIP_FF], ids=lambda s: s.name)
def test_texts_beyond_the_limit_are_cut_and_counted(spec: Any, clip_sf: Path, blip_ff: Path) -> None:
    folder, limit = (clip_sf, 77) if spec is UNIIR_CLIP_SF else (blip_ff, 100)
    frontend = spec.open({"path": str(folder)})
    fits, long, longer = (Item("query", (Text("a " * n),)) for n in (limit - 2, limit - 1, 300))
    batch = frontend.prepare([fits, long, longer])
    assert batch["ids"].shape == (3, limit)
    assert sum(batch["cut"]) == 2
    assert [frontend.cost(i) for i in (fits, long)] == [frontend.cost(longer)] * 2


def test_a_clip_is_the_mean_of_its_frames(clip_sf: Path, tmp_path: Path) -> None:
    from harness.media import frames

    clip = Video(write_clip(tmp_path / "clip.mp4", seed=3))
    stills: list[Part] = []
    for i, frame in enumerate(frames(clip, count=4)):
        frame.save(tmp_path / f"{i}.png")
        stills.append(Image(tmp_path / f"{i}.png"))
    frontend = UNIIR_CLIP_SF.open({"path": str(clip_sf), "video-frames": "4"})
    both = [Item("candidate", (clip, Text("a"))), Item("candidate", (*stills, Text("a")))]
    one, other = frontend.load("cpu").embed(frontend.prepare(both))
    assert torch.allclose(one, other, atol=1e-6)


def test_nothing_that_a_file_names_is_run(tmp_path: Path, capsys: Any) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return print, ("run",)

    weights = {"clip_model.x": torch.zeros(1)}
    path = _save(weights, tmp_path / "evil.pth", config=Evil())
    with pytest.raises(CheckpointMissing, match="is not CLIP_SF"):
        convert(path, tmp_path / "out")
    assert "run" not in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def _without(name: str) -> Callable[[Tensors], Tensors]:
    return lambda weights: {n: t for n, t in weights.items() if n != name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: {"a.b": torch.zeros(1)}, "is neither CLIP_SF nor BLIP_FF: it holds 'a.b'"),
        (lambda w: {}, "is neither CLIP_SF nor BLIP_FF: it holds ''"),
        (
            lambda w: {**w, "vision_proj.weight": torch.zeros(2, 2)},
            "not BLIP_FF: it holds 'vision_proj.weight'",
        ),
        (
            lambda w: {**w, "visual_encoder.head.weight": torch.zeros(2)},
            r"not BLIP_FF: it holds 'visual_encoder.head.weight'",
        ),
        (_without("text_encoder.pooler.dense.bias"), "not BLIP_FF: it lacks 'text_model.pooler.dense.bias'"),
        (
            _without("visual_encoder.pos_embed"),
            "not BLIP_FF: it lacks 'vision_model.embeddings.position_embedding'",
        ),
        (
            lambda w: {**w, "visual_encoder.norm.bias": torch.zeros(3)},
            r"not BLIP_FF: 'vision_model.post_layernorm.bias' has the shape \[3\], not \[128\]",
        ),
    ],
)
def test_another_architecture_is_refused_by_the_weights_name(
    blip: Tensors, bert_tokenizer: Path, tmp_path: Path, change: Callable[[Tensors], Tensors], message: str
) -> None:
    path = _save(change(blip), tmp_path / "other.pth")
    with pytest.raises(CheckpointMissing, match=message) as caught:
        convert(path, tmp_path / "out", str(bert_tokenizer))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"not a checkpoint", "cannot be read without running what it holds"),
        (None, "there is no file"),
    ],
)
def test_a_file_of_something_else_is_one_line(
    tmp_path: Path, capsys: Any, content: bytes | None, message: str
) -> None:
    path = tmp_path / "clip_sf_large.pth"
    if content is not None:
        path.write_bytes(content)
    assert main([str(path), str(tmp_path / "out")]) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert shown.count("\n") == 1


def test_a_truncated_file_and_one_without_weights_are_one_line(tmp_path: Path, blip: Tensors) -> None:
    path = _save(blip, tmp_path / "blip_ff_large.pth")
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(CheckpointMissing, match="cannot be read without running") as caught:
        convert(path, tmp_path / "out")
    assert "\n" not in str(caught.value)
    torch.save({"state_dict": {}}, path)
    with pytest.raises(CheckpointMissing, match="holds no weights under 'model'"):
        convert(path, tmp_path / "out")


def test_without_a_tokenizer_the_remedy_is_named(blip: Tensors, tmp_path: Path) -> None:
    path = _save(blip, tmp_path / "blip_ff_large.pth")
    with pytest.raises(CheckpointMissing, match=r"google-bert/bert-base-uncased .* with --tokenizer FOLDER"):
        convert(path, tmp_path / "out")


def _other_fusion(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    del config["uniir_fusion"]
    (folder / "config.json").write_text(json.dumps(config))


def _cut(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def _with_tensors(change: Callable[[Tensors], Mapping[str, torch.Tensor]]) -> Callable[[Path], None]:
    def harm(folder: Path) -> None:
        from safetensors.torch import load_file, save_file

        tensors = change(load_file(folder / "model.safetensors"))
        save_file(dict(tensors), folder / "model.safetensors", metadata={"format": "pt"})

    return harm


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (_other_fusion, "holds a blip that UniIR did not train with feature fusion"),
        (_cut, r"model.safetensors has [\d,]+ bytes, not [\d,]+: download it again"),
        (_with_tensors(_without("text_model.pooler.dense.bias")), "text_model.pooler.dense.bias is missing"),
        (
            _with_tensors(lambda t: {**t, "text_model.pooler.dense.bias": torch.zeros(2)}),
            r"text_model.pooler.dense.bias is of shape \[2\]",
        ),
        (lambda f: (f / "preprocessor_config.json").unlink(), "lacks preprocessor_config.json"),
    ],
)
def test_a_broken_conversion_is_one_line(
    blip_ff: Path, tmp_path: Path, harm: Callable[[Path], None], message: str
) -> None:
    folder = shutil.copytree(blip_ff, tmp_path / "broken")
    harm(folder)
    with pytest.raises(CheckpointMissing, match=message) as caught:
        UNIIR_BLIP_FF.open({"path": str(folder)}).load("cpu")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("spec", [UNIIR_CLIP_SF, UNIIR_BLIP_FF], ids=lambda s: s.name)
def test_without_a_conversion_the_command_is_named(spec: Any, tmp_path: Path, clip_sf: Path) -> None:
    (tmp_path / "clip_sf_large.pth").write_bytes(b"")
    for given in ({}, {"path": str(tmp_path / "clip_sf_large.pth")}):
        with pytest.raises(CheckpointMissing, match=r"python -m harness\.models\.uniir_convert"):
            spec.open(given)
    if spec is UNIIR_BLIP_FF:
        with pytest.raises(CheckpointMissing, match="holds a model of type 'clip', not 'blip'"):
            spec.open({"path": str(clip_sf)})
