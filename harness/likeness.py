"""Whether two items show the same to a reader, though their files differ."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from harness.content import Image, Part, Text, Video
from harness.errors import HarnessError
from harness.media import frames, open_picture

ALIKE = 8.0
"""Pictures are alike where their 16 × 16 thumbnails differ by at most so many of 255 levels on average."""


def near_duplicates(one: Sequence[Part], other: Sequence[Part]) -> bool:
    """Whether two items show the same, part for part: texts that are equal but for case, punctuation and
    space, and pictures (of a clip its middle frame) that are ALIKE."""
    return len(one) == len(other) and all(map(_alike, one, other))


def _alike(one: Part, other: Part) -> bool:
    if isinstance(one, Text) and isinstance(other, Text):
        return _folded(one.text) == _folded(other.text)
    if isinstance(one, Text) or isinstance(other, Text) or type(one) is not type(other):
        return False
    if one == other:
        return True
    try:
        return float(np.abs(_thumbnail(one) - _thumbnail(other)).mean()) <= ALIKE
    except HarnessError:
        return False


def _folded(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.casefold()))


def _thumbnail(part: Image | Video) -> npt.NDArray[np.float32]:
    """[16, 16, 3] float32 in 0 to 255."""
    picture = open_picture(part) if isinstance(part, Image) else frames(Video(part.path, frames=1))[0]
    return np.asarray(picture.resize((16, 16)), dtype=np.float32)
