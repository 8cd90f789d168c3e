"""Pictures and clips as a Qwen-VL vision tower takes them: a grid of patches, known from headers alone.

Image(480x360 pixels)   ->   Seen(grid=(1, 26, 34)) and patches [26 · 34, 3 · 14 · 14] uint8, 221 tokens
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from harness.content import Image, Video
from harness.errors import CheckpointMissing
from harness.media import ClipInfo, Size, clip_info, frames, open_picture, picture_size, sample_indices

from .input_spec import InputSpec, Piece
from .qwen_tokens import IMAGE_PAD, VIDEO_PAD, VISION_END, VISION_START

if TYPE_CHECKING:
    from torch import Tensor

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Vision:
    """How a checkpoint's processors and vision tower see."""

    patch: int
    merge: int
    """So many patches, in both directions, are one token."""
    temporal: int
    """So many frames are one patch deep; a picture is repeated."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    picture_pixels: tuple[int, int]
    """Least and most of a picture."""
    clip_pixels: tuple[int, int]
    """Least and most of a frame, or of a whole clip where it is `stamped`."""
    stamped: bool
    """Qwen3-VL: the frames that are one patch deep stand under their time, each group by itself."""

    @classmethod
    def of(
        cls, config: Mapping[str, Any], pictures: Mapping[str, Any], clips: Mapping[str, Any] | None
    ) -> Vision:
        """From config.json and the image and video processors' settings; without the latter a clip is
        seen as pictures are. Raises CheckpointMissing."""
        tower = config["vision_config"]
        stamped = config["model_type"] == "qwen3_vl"
        try:
            return cls(
                patch=int(tower.get("patch_size", 16 if stamped else 14)),
                merge=int(tower.get("spatial_merge_size", 2)),
                temporal=int(tower.get("temporal_patch_size", 2)),
                mean=tuple(map(float, pictures["image_mean"])),
                std=tuple(map(float, pictures["image_std"])),
                picture_pixels=_bounds(pictures),
                clip_pixels=_bounds(clips if clips is not None else pictures),
                stamped=stamped,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointMissing(f"the image processor's settings are not Qwen-VL's: {error!r}") from error

    @property
    def factor(self) -> int:
        """Pixels on a side of a token."""
        return self.patch * self.merge


def _bounds(processor: Mapping[str, Any]) -> tuple[int, int]:
    """Least and most pixels, under the names of older and of newer processors."""
    size = processor.get("size") or {}
    least = processor.get("min_pixels") or size.get("shortest_edge") or size["min_pixels"]
    most = processor.get("max_pixels") or size.get("longest_edge") or size["max_pixels"]
    return int(least), int(most)


@dataclass(frozen=True, slots=True)
class Seen:
    """What a picture or clip becomes: its grid in patches (deep, high, wide)."""

    grid: tuple[int, int, int]
    moments: tuple[float, ...] = ()
    """Of a clip: the second at which each patch in the depth stands."""
    seconds: float = 0.0
    """Of a clip: how many a patch is deep."""

    def pieces(self, vision: Vision) -> list[Piece]:
        """Its placeholders in the input."""
        deep, high, wide = self.grid
        tokens = high * wide // vision.merge**2
        if not self.moments:
            return _framed(IMAGE_PAD, deep * tokens)
        if not vision.stamped:
            return _framed(VIDEO_PAD, deep * tokens)
        return [
            piece
            for moment in self.moments
            for piece in (Piece(f"<{moment:.1f} seconds>"), *_framed(VIDEO_PAD, tokens))
        ]


def _framed(token: str, times: int) -> list[Piece]:
    return [
        Piece(VISION_START, token=True),
        Piece(token, token=True, times=times),
        Piece(VISION_END, token=True),
    ]


def look(vision: Vision, spec: InputSpec, part: Image | Video) -> Seen:
    """From headers. Raises DataInvalid."""
    if isinstance(part, Image):
        return _picture(vision, _picture_sizes(vision, spec, part)[-1])
    sampled, info = _sampled(spec, part), clip_info(part.path)
    count = len(sample_indices(info.frames, info.fps, frames=sampled.frames, fps=sampled.fps))
    return _clip(vision, info, count, _clip_sizes(vision, spec, (info.width, info.height), count)[-1])


def see(vision: Vision, spec: InputSpec, part: Image | Video) -> tuple[Seen, Bytes]:
    """Decoded: also its patches, [deep · high · wide, 3 · frames of a patch · side · side]; of a picture's
    equal frames only one. Raises DataInvalid."""
    if isinstance(part, Image):
        first, last = _picture_sizes(vision, spec, part)
        picture = open_picture(part, bounded=False)  # shrunk once, to its final size
        if picture.size != first:
            from PIL import Image as Pil

            picture = picture.resize(first, Pil.Resampling.BICUBIC)
        pixels = _resized(np.asarray(picture)[None], last)
        return _picture(vision, last), _patches(vision, pixels, 1)
    shown = np.stack([np.asarray(frame) for frame in frames(_sampled(spec, part))])
    count, height, width = shown.shape[:3]
    for size in _clip_sizes(vision, spec, (width, height), count):
        shown = _resized(shown, size)
    filled = np.concatenate([shown, shown[-1:].repeat(-count % vision.temporal, 0)])
    return _clip(vision, clip_info(part.path), count, size), _patches(vision, filled, vision.temporal)


def normalised(vision: Vision, patches: Tensor, *, still: bool) -> Tensor:
    """[N, 3 · temporal · side · side] float32, as the vision tower takes them, from `see`'s bytes."""
    import torch

    mean, std = (
        torch.tensor(values, device=patches.device).view(1, 3, 1, 1) for values in (vision.mean, vision.std)
    )
    values = patches.view(len(patches), 3, -1, vision.patch**2).float()
    values.sub_(mean * 255).div_(std * 255)
    if still:
        values = values.expand(-1, -1, vision.temporal, -1)
    return values.reshape(len(patches), -1)


def fit(size: Size, *, factor: int, least: int, most: float, frames: int = 1, deep: int = 1) -> Size:
    """The size with sides of multiples of `factor` and so many pixels, of nearly the same shape:
    `smart_resize` of qwen_vl_utils and of transformers' Qwen2VLImageProcessor; with the number of frames
    and how deep they are rounded to, that of Qwen3VLVideoProcessor, which counts the whole clip's."""
    width, height = size
    high, wide = (max(factor, round(side / factor) * factor) for side in (height, width))
    pixels = frames * height * width
    if deep * high * wide > most:
        scale = math.sqrt(pixels / most)
        high, wide = (max(factor, math.floor(side / scale / factor) * factor) for side in (height, width))
    elif deep * high * wide < least:
        scale = math.sqrt(least / pixels)
        high, wide = (math.ceil(side * scale / factor) * factor for side in (height, width))
    return wide, high


def seen_at(spec: InputSpec, image: Image, size: Size) -> Size:
    """A picture's size after the first resize, which is qwen_vl_utils'."""
    most = spec.max_pixels if image.max_pixels is None else image.max_pixels
    return fit(size, factor=spec.image_factor, least=min(spec.min_pixels, most), most=most)


def _picture_sizes(vision: Vision, spec: InputSpec, image: Image) -> tuple[Size, Size]:
    """After the first resize, and after the processor's."""
    first = seen_at(spec, image, picture_size(replace(image, max_pixels=None)))
    least, most = vision.picture_pixels
    if not spec.checkpoint_pixels:
        least, most = 0, first[0] * first[1]
    return first, fit(first, factor=vision.factor, least=least, most=most)


def _clip_sizes(vision: Vision, spec: InputSpec, size: Size, count: int) -> tuple[Size, Size]:
    """Of `count` frames, after both resizes."""
    share = spec.video_pixels / count * 2
    most = max(min(spec.frame_max_pixels, share), int(spec.frame_min_pixels * 1.05))
    first = fit(size, factor=spec.image_factor, least=spec.frame_min_pixels, most=most)
    if not spec.checkpoint_pixels:
        return first, fit(first, factor=vision.factor, least=0, most=first[0] * first[1])
    least, whole = vision.clip_pixels
    frames, deep = (count, max(1, round(count / 2)) * 2) if vision.stamped else (1, 1)
    return first, fit(first, factor=vision.factor, least=least, most=whole, frames=frames, deep=deep)


def _sampled(spec: InputSpec, video: Video) -> Video:
    """The clip with its sampling pinned."""
    if video.frames is not None or video.fps is not None:
        return video
    return replace(video, frames=spec.frames) if spec.frames else replace(video, fps=spec.fps)


def _picture(vision: Vision, size: Size) -> Seen:
    return Seen((1, size[1] // vision.patch, size[0] // vision.patch))


def _clip(vision: Vision, info: ClipInfo, count: int, size: Size) -> Seen:
    deep, rate = vision.temporal, info.fps or 24.0
    indices = sample_indices(max(info.frames, count), rate, frames=count, fps=None)
    indices += indices[-1:] * (-count % deep)
    moments = tuple(
        (first + last) / 2 / rate
        for first, last in zip(indices[::deep], indices[deep - 1 :: deep], strict=True)
    )
    grid = (len(moments), size[1] // vision.patch, size[0] // vision.patch)
    return Seen(grid, moments, deep * info.frames / (rate * count))


def _resized(pixels: Bytes, size: Size) -> Bytes:
    """[T, H, W, 3] frames of another size, by the filter of transformers' processors, which differs from
    PIL's by a few grey levels at edges."""
    if pixels.shape[1:3] == (size[1], size[0]):
        return pixels
    import torch

    planes = torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())
    resized = torch.nn.functional.interpolate(
        planes, size=(size[1], size[0]), mode="bicubic", antialias=True, align_corners=False
    )
    result: Bytes = resized.permute(0, 2, 3, 1).numpy()
    return result


def _patches(vision: Vision, pixels: Bytes, deep: int) -> Bytes:
    """Frames [T, H, W, 3] cut up in the order of the tower: those that become one token side by side."""
    side, merge = vision.patch, vision.merge
    total, height, width, _ = pixels.shape
    high, wide = height // side // merge, width // side // merge
    cut = pixels.reshape(total // deep, deep, high, merge, side, wide, merge, side, 3)
    ordered = cut.transpose(0, 2, 5, 3, 6, 8, 1, 4, 7)
    return np.ascontiguousarray(ordered).reshape(-1, 3 * deep * side * side)
