"""Pictures and clips become the patches that transformers' own processors make of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as Pil

from harness.content import Image, Video
from harness.media import frames
from harness.models.qwen_pictures import fit, look, normalised, see
from harness.testing import write_clip
from qwen_plain import processors
from qwen_toys import ARCHITECTURES, PLAIN, opened


@pytest.fixture(scope="module")
def photographs() -> list[Path]:
    data = pytest.importorskip("skimage.data")
    return [Path(data.__file__).parent / name for name in ("chelsea.png", "coffee.png", "rocket.jpg")]


FIRST_RESIZE = {"chelsea.png": (448, 308), "coffee.png": (588, 392), "rocket.jpg": (588, 392)}
"""451x300, 600x400 and 640x427 to multiples of 28, the last within 235,200 pixels: by hand."""


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_pictures_are_those_of_transformers(tiny_qwen, photographs, architecture):
    frontend = opened(tiny_qwen, architecture)
    image, _ = processors(tiny_qwen[architecture], architecture)
    for path in photographs:
        first = Pil.open(path).convert("RGB").resize(FIRST_RESIZE[path.name], Pil.Resampling.BICUBIC)
        expected = image(first, return_tensors="pt")
        seen, patches = see(frontend.vision, PLAIN, Image(path))
        assert list(seen.grid) == expected["image_grid_thw"][0].tolist()
        assert seen == look(frontend.vision, PLAIN, Image(path))
        got = normalised(frontend.vision, torch.from_numpy(patches), still=True)
        assert torch.allclose(got, expected["pixel_values"], atol=2e-6)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("count", [12, 5, 1])
def test_clips_are_those_of_transformers(tiny_qwen, qwen_media, architecture, count):
    frontend = opened(tiny_qwen, architecture)
    clip = Video(qwen_media / f"{count}.mp4", frames=count)
    stills = [torch.from_numpy(np.array(f)).permute(2, 0, 1) for f in frames(clip)]
    _, clips = processors(tiny_qwen[architecture], architecture)
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.v2.functional import resize

    # 64x48 to at least 128 · 28² pixels: sqrt(100352/3072) = 5.716; 365.8 and 274.3 to multiples of 28
    first = resize(torch.stack(stills), [280, 392], interpolation=InterpolationMode.BICUBIC, antialias=True)
    if count == 1 and architecture == "qwen3_vl":
        first = first.repeat(2, 1, 1, 1)  # which does not take a single frame
    expected = clips([first], return_tensors="pt")
    seen, patches = see(frontend.vision, PLAIN, clip)
    assert list(seen.grid) == expected["video_grid_thw"][0].tolist()
    assert seen == look(frontend.vision, PLAIN, clip)
    got = normalised(frontend.vision, torch.from_numpy(patches), still=False)
    assert torch.allclose(got, expected["pixel_values_videos"], atol=2e-6)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((640, 480), (560, 420)),  # zeroshot facts of LamRA and U-MARVEL
        ((1, 1), (56, 56)),
        ((20_000, 100), (6832, 28)),  # 200:1
        ((28, 28), (56, 56)),
    ],
)
def test_the_first_resize_is_that_of_the_released_code(size, expected):
    assert fit(size, factor=28, least=4 * 28 * 28, most=300 * 28 * 28) == expected


@pytest.mark.parametrize(
    ("size", "expected"), [((320, 240), (392, 280)), ((480, 360), (476, 364)), ((1280, 720), (1008, 560))]
)
def test_a_clip_gets_the_pixels_of_the_released_code(tiny_qwen, tmp_path, size, expected):
    clip = Video(write_clip(tmp_path / "clip.mp4", seed=1, frames=4, size=size))
    deep, high, wide = look(opened(tiny_qwen, "qwen2_vl").vision, PLAIN, clip).grid
    assert (deep, wide * 14, high * 14) == (2, *expected)


def test_a_long_clip_shares_its_pixels(tiny_qwen, qwen_media):
    # 12 frames share 6 · 2 · 28² pixels by pairs: 2 · 28² a frame; sqrt(64 · 48 / 1568) = 1.4, so 45x34
    tight = replace(PLAIN, frame_min_pixels=28 * 28, video_pixels=28 * 28 * 2 * 6)
    seen = look(opened(tiny_qwen, "qwen2_vl").vision, tight, Video(qwen_media / "12.mp4", frames=12))
    assert seen.grid == (6, 2, 2)


@pytest.mark.parametrize(
    ("pinned", "tokens"),
    [
        (None, 20 * 14),  # 701x500 to 235,200 pixels is 574x410
        (28 * 28 * 20, 5 * 3),  # 148x106
        (16_384 * 28 * 28, 25 * 18),
    ],
)
def test_a_pinned_budget_replaces_the_models(tiny_qwen, qwen_media, pinned, tokens):
    seen = look(
        opened(tiny_qwen, "qwen2_vl").vision, PLAIN, Image(qwen_media / "wide.png", max_pixels=pinned)
    )
    assert seen.grid[1] * seen.grid[2] == 4 * tokens
