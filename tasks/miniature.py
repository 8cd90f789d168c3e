"""What miniatures are made of: 72 concepts that can be drawn, filmed and named, and files written once.

A concept is a colour, a shape and a number: picture(7) shows what described(7) names, "two red rings".
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import DataInvalid
from harness.task import MINIATURE

if TYPE_CHECKING:
    import PIL.Image

COLOURS = {
    "red": (200, 30, 30),
    "green": (30, 150, 40),
    "blue": (40, 60, 200),
    "yellow": (230, 210, 40),
    "black": (20, 20, 20),
    "purple": (130, 40, 150),
}
SHAPES = ("circle", "square", "ring", "triangle")
NUMBERS = ("one", "two", "three")
CONCEPTS = len(COLOURS) * len(SHAPES) * len(NUMBERS)
PLACES = (
    "by the sea", "at noon", "in the park", "on a wall", "under a lamp", "near the bridge", "after rain",
    "behind glass", "in a hall", "at the market", "on the roof", "in the snow",
)  # fmt: skip


def _features(concept: int) -> tuple[str, str, int]:
    rest, number = divmod(concept, len(NUMBERS))
    return tuple(COLOURS)[rest // len(SHAPES)], SHAPES[rest % len(SHAPES)], number


def described(concept: int) -> str:
    """ "two green rings" """
    colour, shape, number = _features(concept)
    return f"{NUMBERS[number]} {colour} {shape}{'s' if number else ''}"


@cache
def picture(
    concept: int,
    *,
    variant: int = 0,
    size: tuple[int, int] = (48, 40),
    format: str = "JPEG",
    grey: bool = False,
) -> bytes:
    """The file of a picture of the concept; variants differ in a ground that is hardly seen."""
    drawn = _drawn(concept, variant, size)
    out = io.BytesIO()
    (drawn.convert("L") if grey else drawn).save(out, format, quality=80)
    return out.getvalue()


@cache
def clip(concept: int, *, suffix: str = ".mp4", frames: int = 30, fps: int = 10) -> bytes:
    """The file of a clip in which the concept moves to the right: H.264 in .mp4, MPEG-4 in .avi."""
    import av
    import numpy as np

    out = io.BytesIO()
    with av.open(out, "w", format=suffix[1:]) as container:
        stream = container.add_stream("libx264" if suffix == ".mp4" else "mpeg4", rate=fps)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        still = np.asarray(_drawn(concept, 0, (48, 40)))
        for t in range(frames):
            x = t * 15 // max(1, frames - 1)
            shown = np.full((48, 64, 3), 250, np.uint8)
            shown[4:44, x : x + 48] = still
            container.mux(stream.encode(av.VideoFrame.from_ndarray(shown, format="rgb24")))
        container.mux(stream.encode())
    return out.getvalue()


def _drawn(concept: int, variant: int, size: tuple[int, int]) -> PIL.Image.Image:
    from PIL import Image, ImageDraw

    colour, shape, number = _features(concept)
    light = 255 - variant % 40
    drawn = Image.new("RGB", size, (light, light, 255 - variant // 40 * 5))
    draw = ImageDraw.Draw(drawn)
    step = size[0] / (number + 1)
    for at in range(number + 1):
        box = (at * step + step * 0.15, size[1] * 0.2, (at + 1) * step - step * 0.15, size[1] * 0.8)
        _SHAPERS[shape](draw, box, COLOURS[colour])
    return drawn


_SHAPERS: Mapping[str, Any] = {
    "circle": lambda draw, box, colour: draw.ellipse(box, fill=colour),
    "square": lambda draw, box, colour: draw.rectangle(box, fill=colour),
    "ring": lambda draw, box, colour: draw.ellipse(box, outline=colour, width=3),
    "triangle": lambda draw, box, colour: draw.polygon(
        [(box[0], box[3]), (box[2], box[3]), ((box[0] + box[2]) / 2, box[1])], fill=colour
    ),
}


def write(folder: Path, files: Mapping[str, Any]) -> None:
    """Write a data set's files below its `folder`, and the marker of a miniature last.

    Bytes and strings are written as they are, anything else as JSON. A miniature that is there is
    left alone; raises DataInvalid where the real data set is there.
    """
    if (folder / MINIATURE).exists():
        return
    if folder.exists() and any(folder.iterdir()):
        raise DataInvalid(f"{folder} is there and no miniature: choose another folder")
    for name, content in {**files, MINIATURE: {}}.items():
        place = folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        if not isinstance(content, bytes | str):
            content = json.dumps(content)
        place.write_bytes(content.encode() if isinstance(content, str) else content)


def write_file(path: Path, content: str) -> None:
    """Write a data set that is one file, and the marker of a miniature beside it; see `write`."""
    marker = path.with_name(f"{path.name}.{MINIATURE}")
    if marker.exists():
        return
    if path.exists():
        raise DataInvalid(f"{path} is there and no miniature: choose another folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode())
    marker.write_text("{}", encoding="utf-8")


def pickled(value: Any, *, python2: bool = False) -> bytes:
    """A pickle (protocol 2) of dicts, lists, texts, whole numbers and None, made by hand so that nothing
    here imports what can read one too. Python 2 wrote texts as byte strings."""
    return b"\x80\2" + _opcodes(value, b"T" if python2 else b"X") + b"."


def _opcodes(value: Any, text: bytes) -> bytes:
    if value is None:
        return b"N"
    if isinstance(value, int):
        return b"J" + value.to_bytes(4, "little", signed=True)
    if isinstance(value, str):
        return text + len(value.encode()).to_bytes(4, "little") + value.encode()
    if isinstance(value, Mapping):
        return b"}(" + b"".join(_opcodes(v, text) for item in value.items() for v in item) + b"u"
    return b"](" + b"".join(_opcodes(v, text) for v in value) + b"e"
