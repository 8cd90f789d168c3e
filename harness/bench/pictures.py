"""Pictures beside Pillow and transformers' processor."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from harness.compat import allow_torchvision
from harness.content import Image, Item
from harness.errors import HarnessError
from harness.media import Size, by_shorter_side, decoding_scaled, open_picture
from harness.model import ModelSpec

from .timing import Peer, Row, Timing, threads

if TYPE_CHECKING:
    import PIL.Image

_SIDE = 224
_PIXELS = (4 * 28 * 28, 300 * 28 * 28)
"""The least and the most of a picture, U-MARVEL's."""
_NEAR = 1.5
"""Grey levels by which scaled decoding may be off in the mean."""


@dataclass(frozen=True, slots=True)
class ImageSizes:
    pictures: tuple[Size, ...] = ((396, 265), (640, 480), (1920, 1080))
    """Width and height: M-BEIR's mean, and two common ones."""
    count: int = 8
    """of each size"""


def bench_images(spec: ModelSpec, sizes: ImageSizes, timing: Timing) -> list[Row]:
    """Pictures prepared for a Qwen-VL model with U-MARVEL's pixels, beside Pillow and transformers' own
    processor; decoded for a shorter side of 224, beside Pillow alone; and that at a fraction of their
    size, where they are at least twice as large, beside the exact way.

    `identical`: equal grey levels; at a fraction, a mean difference of at most 1.5 of 255. The model
    leaves normalising to its device, the processor does it. Raises HarnessError without scikit-image.
    """
    from PIL import Image as Pil

    rows = []
    with threads(timing.threads), tempfile.TemporaryDirectory() as folder:
        frontend = spec.open(spec.tiny(Path(folder) / "tiny"))
        processor = _processor()
        for number, size in enumerate(sizes.pictures):
            paths = [_collage(Path(folder) / f"{number}-{i}.jpg", size, i) for i in range(sizes.count)]
            items = [Item("candidate", (Image(path),)) for path in paths]
            place = f"{sizes.count} JPEGs of {size[0]} × {size[1]}"

            def decoded(paths: list[Path] = paths) -> tuple[float, str]:
                taken = min(timing.seconds(lambda: [Pil.open(p).load() for p in paths]) for _ in range(3))
                return taken, "decoding alone, by Pillow"

            rows += timing.rows(
                f"prepared for {spec.name}, {place}",
                partial(frontend.prepare, items),
                [Peer("Pillow and Qwen2VLImageProcessor", partial(_processed, processor, paths))],
                identical=partial(_as_processed, processor, paths, frontend.prepare(items)["pictures"]),
                floor=decoded,
            )
            rows += timing.rows(
                f"decoded to a side of {_SIDE}, {place}",
                partial(_exact, paths),
                [Peer("Pillow alone", partial(_by_pillow, paths))],
                identical=partial(_alike, _exact, _by_pillow, paths, 0.0),
                floor=decoded,
            )
            if min(size) >= 2 * _SIDE:
                rows += timing.rows(
                    f"decoded at a fraction to a side of {_SIDE}, {place}",
                    partial(_scaled, paths),
                    [Peer("exact", partial(_exact, paths))],
                    identical=partial(_alike, _scaled, _exact, paths, _NEAR),
                    floor=decoded,
                )
    return rows


def _photographs() -> list[npt.NDArray[np.uint8]]:
    """Real ones, [H, W, 3] each. Raises HarnessError where they are not installed."""
    from PIL import Image as Pil

    found = importlib.util.find_spec("skimage")
    if found is None or found.origin is None:
        raise HarnessError("bench takes its photographs from scikit-image: pip install 'umr-harness[demo]'")
    folder = Path(found.origin).parent / "data"
    names = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg")
    return [np.asarray(Pil.open(folder / name).convert("RGB")) for name in names]


def _collage(path: Path, size: Size, first: int) -> Path:
    """A JPEG of this size of photographs side by side, which keep their pixels: enlarged, they would have
    no detail to lose."""
    from PIL import Image as Pil

    photographs = _photographs()
    photographs = photographs[first % len(photographs) :] + photographs[: first % len(photographs)]
    height = min(len(photograph) for photograph in photographs)
    strip = np.concatenate([photograph[:height] for photograph in photographs], axis=1)
    deep, wide = (-(-wanted // given) for wanted, given in zip(size[::-1], strip.shape[:2], strict=True))
    Pil.fromarray(np.tile(strip, (deep, wide, 1))[: size[1], : size[0]]).save(path, quality=88)
    return path


def _processor() -> Any:
    allow_torchvision()
    from transformers import Qwen2VLImageProcessor

    return Qwen2VLImageProcessor(size={"shortest_edge": _PIXELS[0], "longest_edge": _PIXELS[1]})


def _processed(processor: Any, paths: list[Path]) -> Any:
    """The patches of all pictures, as the model's page has them made: resized by Pillow first."""
    from PIL import Image as Pil
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

    pictures = []
    for path in paths:
        picture = Pil.open(path).convert("RGB")
        high, wide = smart_resize(picture.height, picture.width, 28, *_PIXELS)
        pictures.append(picture.resize((wide, high), Pil.Resampling.BICUBIC))
    return processor(pictures, return_tensors="pt")["pixel_values"]


def _as_processed(processor: Any, paths: list[Path], patches: npt.NDArray[np.uint8]) -> bool:
    """Whether the processor's values, back in grey levels, are these; its second frame repeats the first."""
    values = _processed(processor, paths).numpy()
    planes = values.reshape(len(values), 3, 2, -1)[:, :, 0]
    mean, std = (np.array(each, np.float32)[:, None] for each in (processor.image_mean, processor.image_std))
    levels = np.rint((planes * std + mean) * 255).astype(np.uint8)
    return np.array_equal(levels.reshape(len(levels), -1), patches)


Seen = list[npt.NDArray[np.uint8]]


def _to_side(image: Image, size: Size) -> Size:
    return by_shorter_side(size, _SIDE)


def _by_pillow(paths: list[Path]) -> Seen:
    from PIL import Image as Pil

    return [_shrunk(Pil.open(path).convert("RGB")) for path in paths]


def _exact(paths: list[Path]) -> Seen:
    return [_shrunk(open_picture(Image(path))) for path in paths]


def _scaled(paths: list[Path]) -> Seen:
    with decoding_scaled(_to_side):
        return _exact(paths)


def _shrunk(picture: PIL.Image.Image) -> npt.NDArray[np.uint8]:
    from PIL import Image as Pil

    return np.asarray(picture.resize(by_shorter_side(picture.size, _SIDE), Pil.Resampling.BICUBIC))


def _alike(ours: Callable[[list[Path]], Seen], theirs: Callable[[list[Path]], Seen], paths: list[Path],
            most: float) -> bool:  # fmt: skip
    """Whether the mean difference is at most so many grey levels."""
    pairs = zip(ours(paths), theirs(paths), strict=True)
    return float(np.mean([np.abs(a.astype(np.float32) - b).mean() for a, b in pairs])) <= most
