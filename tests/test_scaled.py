"""decode=scaled: near the exact pixels, faster, and never taken for them."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pil

from harness.content import Ask, Candidate, Image, Item, Query, Text
from harness.digest import Digests
from harness.encode import EngineOptions, Local, encode, key_items
from harness.errors import HarnessError
from harness.evaluate import open_frontend, open_model, open_reranker
from harness.media import by_shorter_side, decoding_scaled, open_picture
from harness.models.clip import CLIP
from harness.models.conse import CONSE
from harness.models.minilm import MINILM
from harness.models.rerankers import LAMRA_RANK
from harness.models.towers import CLIP_L, SIGLIP
from harness.models.umarvel import UMARVEL
from harness.models.uniir import UNIIR_BLIP_FF
from harness.rerank import Fusion
from harness.store import Store
from toys import Toy
from toys import spec as toy_spec

SIZES = ((1920, 1080), (1333, 1001), (901, 677))
FUSION = Fusion({"*": 1}, {"*": 1.0})
PICTURE_MODELS = (CLIP, CLIP_L, SIGLIP, UNIIR_BLIP_FF, CONSE, UMARVEL)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Real ones as JPEG, in three sizes each."""
    science = Path(pytest.importorskip("skimage.data").__file__).parent
    learning = Path(pytest.importorskip("sklearn.datasets").__file__).parent / "images"
    sources = [science / n for n in ("chelsea.png", "coffee.png", "rocket.jpg")]
    sources += [learning / "china.jpg", learning / "flower.jpg"]
    folder = tmp_path_factory.mktemp("photographs")
    made = []
    for source in sources:
        for width, height in SIZES:
            made.append(folder / f"{source.stem}-{width}.jpg")
            picture = Pil.open(source).convert("RGB").resize((width, height), Pil.Resampling.LANCZOS)
            picture.save(made[-1], quality=88)
    return made


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Mapping[str, str]]:
    return {s.name: s.tiny(tmp_path_factory.mktemp(s.name)) for s in PICTURE_MODELS}


def _at_224(image: Image, size: tuple[int, int]) -> tuple[int, int]:
    return by_shorter_side(size, 224)


def test_photographs_differ_by_a_grey_level_and_a_half_at_most_in_the_mean(photographs):
    differences = []
    for path in photographs:
        exact = open_picture(Image(path))
        exact = exact.resize(by_shorter_side(exact.size, 224), Pil.Resampling.BICUBIC)
        with decoding_scaled(_at_224):
            near = open_picture(Image(path))
        assert near.size == exact.size
        differences.append(np.abs(np.asarray(near, np.float32) - np.asarray(exact, np.float32)).mean())
    assert min(differences) > 0
    assert np.mean(differences) <= 1.5


def test_what_is_not_a_large_whole_jpeg_is_exact(photographs, tmp_path):
    picture = Pil.open(photographs[0])
    picture.save(tmp_path / "p.png")
    picture.resize((447, 447)).save(tmp_path / "small.jpg")
    box = (100, 100, 1100, 1000)
    for image in (Image(tmp_path / "p.png"), Image(tmp_path / "small.jpg"), Image(photographs[0], crop=box)):
        exact = open_picture(image)
        with decoding_scaled(_at_224):
            assert np.array_equal(open_picture(image), exact)
    with decoding_scaled(lambda image, size: None):
        assert np.array_equal(open_picture(Image(photographs[0])), picture)
    assert np.array_equal(open_picture(Image(photographs[0])), picture)


def test_pinned_pixels_are_what_a_picture_is_brought_to(photographs):
    pinned = Image(photographs[0], max_pixels=100_000)
    exact = open_picture(pinned)
    with decoding_scaled(lambda image, size: (4000, 4000)):
        near = open_picture(pinned)
    assert near.size == exact.size
    assert 0 < np.abs(np.asarray(near, np.float32) - np.asarray(exact, np.float32)).mean() < 1.5


@pytest.mark.parametrize("of", ["RGB", "L", "CMYK"])
def test_every_kind_of_jpeg_comes_as_rgb(photographs, tmp_path, of):
    Pil.open(photographs[0]).convert(of).save(tmp_path / "p.jpg")
    with decoding_scaled(_at_224):
        near = open_picture(Image(tmp_path / "p.jpg"))
    assert (near.mode, near.size) == ("RGB", by_shorter_side(SIZES[0], 224))


def _arrays(batch: Mapping[str, Any]) -> list[Any]:
    return [value for value in batch.values() if isinstance(value, np.ndarray)]


@pytest.mark.parametrize("spec", PICTURE_MODELS, ids=lambda s: s.name)
def test_a_model_gets_nearly_the_same_pictures_under_another_identity(spec, tiny, photographs):
    given = tiny[spec.name]
    items = [Item("candidate", (Image(path),)) for path in photographs[:3]]
    exact = open_model(spec, {**given, "decode": "exact"})
    near = open_model(spec, {**given, "decode": "scaled"})
    assert exact.identity == open_model(spec, given).identity
    assert near.identity == {**exact.identity, "decode": "scaled"}
    assert near.frontend.modalities == exact.frontend.modalities
    ours, theirs = (pickle.loads(pickle.dumps(o.frontend)).prepare(items) for o in (near, exact))
    for a, b in zip(_arrays(ours), _arrays(theirs), strict=True):
        assert a.shape == b.shape
    a, b = (batch["pictures"].astype(np.float32) for batch in (ours, theirs))
    # Of bytes, or of normalised values whose deviation is at least a fifth of 255.
    bound = 1.5 if theirs["pictures"].dtype == np.uint8 else 1.5 / 255 / 0.2
    assert 0 < np.abs(a - b).mean() < bound


def test_a_reranker_takes_it_too(photographs, tmp_path):
    given = LAMRA_RANK.tiny(tmp_path)
    ask = Ask(Query("q", (Text("a cat"),)), (Candidate("c", (Image(photographs[0]),)),))
    exact, near = (
        open_reranker(LAMRA_RANK, {**given, **more}, FUSION) for more in ({}, {"decode": "scaled"})
    )
    assert near.identity == {**exact.identity, "decode": "scaled"}
    assert near.frontend.listwise == exact.frontend.listwise
    ours, theirs = (o.frontend.prepare([ask])["pictures"].astype(np.float32) for o in (near, exact))
    assert 0 < np.abs(ours - theirs).mean() < 1.5


def test_the_cache_keeps_exact_and_scaled_vectors_apart(tiny, photographs, tmp_path):
    items = [Item("candidate", (Image(path),)) for path in photographs[:3]]
    keyed = key_items(items, Digests())
    options = EngineOptions(workers=0, quiet=True)
    made = []
    for decode in ("exact", "scaled", "exact"):
        opened = open_model(CLIP, {**tiny["clip"], "decode": decode})
        store = Store(tmp_path, opened.identity)
        made.append(int(store.missing(keyed.keys).sum()))
        engine = Local(lambda frontend=opened.frontend: frontend.load("cpu"))
        encode(items, keyed, opened.frontend, engine, store, options, title="test")
    assert made == [3, 3, 0]


def test_a_model_that_does_not_say_at_what_size_it_sees_is_refused(tmp_path):
    given = MINILM.tiny(tmp_path)
    with pytest.raises(HarnessError, match="'minilm' does not say at what size it sees pictures: leave"):
        open_model(MINILM, {**given, "decode": "scaled"})
    with pytest.raises(HarnessError, match="decode is exact or scaled, not 'fast'"):
        open_model(MINILM, {**given, "decode": "fast"})


class Unversioned:
    identity = {"weights": "w"}
    modalities = frozenset({"text"})

    def prepare(self, items):
        return [part.text for item in items for part in item.parts]

    def seen_at(self, image, size):
        return None


def test_a_model_without_a_version_keeps_the_digest_of_its_code():
    spec = replace(toy_spec(Toy()), open=lambda given: Unversioned())
    frontend = open_frontend(spec, {"decode": "scaled"})
    exact = open_model(spec, {}).identity
    assert frontend.identity["version"] == exact["code"]
    assert frontend.prepare([Item("query", (Text("a"),))]) == ["a"]
