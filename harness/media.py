"""Reading pictures and clips: what a worker decodes, and what their headers say without decoding.

Pixels are those that the data sets' official loaders see: no EXIF rotation, transparency on white.
"""

from __future__ import annotations

import importlib.util
import math
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from fractions import Fraction
from functools import cache, partial, wraps
from importlib import metadata
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import numpy as np
import numpy.typing as npt

from harness.content import Image, Video
from harness.errors import DataInvalid, HarnessError

if TYPE_CHECKING:
    import PIL.Image

P = ParamSpec("P")
T = TypeVar("T")
Pixels = npt.NDArray[np.uint8]
Size = tuple[int, int]
"""(width, height) in pixels."""
SeenAt = Callable[[Image, Size], Size | None]
"""From a picture and its size to the one that a model brings it to by bicubic resizing; None: by none."""
Choose = Callable[[int, float], list[int]]
"""From a clip's frame count and rate to the indices of the frames wanted."""

MAX_ASPECT = 200
"""Published sets hold pictures 51,200 pixels wide and 1 high; beyond 200:1 the long side shrinks."""

DEFAULT_FRAMES = 8
RATE_FRAMES = (4, 768)
"""The least and the most frames that a rate gives."""
DECORD_FORMATS = frozenset({"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm"})
DECORD_CODECS = frozenset({"h264", "vp9"})
"""What decord 0.6 reads right, as long as every key frame starts anew."""


_spent: ContextVar[list[float] | None] = ContextVar("spent", default=None)


@contextmanager
def decoding() -> Iterator[list[float]]:
    """Collects the seconds of every picture and clip that is decoded inside."""
    seconds: list[float] = []
    token = _spent.set(seconds)
    try:
        yield seconds
    finally:
        _spent.reset(token)


def _timed(decode: Callable[P, T]) -> Callable[P, T]:
    @wraps(decode)
    def timed(*args: P.args, **kwargs: P.kwargs) -> T:
        start = perf_counter()
        try:
            return decode(*args, **kwargs)
        finally:
            seconds = _spent.get()
            if seconds is not None:
                seconds.append(perf_counter() - start)

    return timed


_seen_at: ContextVar[SeenAt | None] = ContextVar("seen_at", default=None)


@contextmanager
def decoding_scaled(seen_at: SeenAt) -> Iterator[None]:
    """Inside, `open_picture` decodes a JPEG that is at least twice as large as its model sees it at a
    half, quarter or eighth of its size, and brings it to what `seen_at` says."""
    token = _seen_at.set(seen_at)
    try:
        yield
    finally:
        _seen_at.reset(token)


@_timed
def open_picture(image: Image, *, bounded: bool = True) -> PIL.Image.Image:
    """The picture as RGB: cropped, at most 200:1, within `max_pixels` where `bounded`; first frame if
    animated.

    EXIF rotation is ignored, as the official loaders ignore it. Raises DataInvalid.
    """
    from PIL import Image as Pil

    with _picture(image.path) as file:
        left, upper, right, lower = box = _box(image, file.size)
        whole = right - left, lower - upper
        size = _fit(whole, image.max_pixels if bounded else None)
        if image.crop is None and (small := _scaled(file, image, size)) is not None:
            return small
        picture = _rgb(file.crop(box) if image.crop else file)
    return picture if size == whole else picture.resize(size, Pil.Resampling.BICUBIC)


def _scaled(file: PIL.Image.Image, image: Image, size: Size) -> PIL.Image.Image | None:
    """A JPEG decoded at a fraction, at the size that it is resized to next: `size`, or what the model
    says; None where that is not asked for or it is too small to be worth it."""
    from PIL import Image as Pil

    seen_at = _seen_at.get()
    if seen_at is None:
        return None
    wanted = size if size != file.size else seen_at(image, size)
    if wanted is None or file.width < 2 * wanted[0] or file.height < 2 * wanted[1]:
        return None
    drafted = file.draft("RGB", wanted)
    # The box is that of the whole picture: its last pixel may be of a block that it fills in part.
    return None if drafted is None else _rgb(file).resize(wanted, Pil.Resampling.BICUBIC, box=drafted[1])


def by_shorter_side(size: Size, side: int) -> Size:
    """The size with a shorter side of `side`, as torchvision and transformers round it."""
    width, height = size
    long = int(side * max(size) / min(size))
    return (side, long) if width <= height else (long, side)


def picture_size(image: Image) -> tuple[int, int]:
    """(width, height) of `open_picture(image)`, from the header alone. Raises DataInvalid."""
    with _picture(image.path) as file:
        left, upper, right, lower = _box(image, file.size)
    return _fit((right - left, lower - upper), image.max_pixels)


@contextmanager
def _picture(path: Path) -> Iterator[PIL.Image.Image]:
    from PIL import Image as Pil

    try:
        with Pil.open(path) as file:
            yield file
    except DataInvalid:
        raise
    except Exception as error:  # decoders raise a dozen types on broken files: SyntaxError, struct.error, …
        raise DataInvalid(f"picture {path} cannot be read: {_reason(path, error)}") from error


def _reason(path: Path, error: Exception) -> str:
    from PIL import UnidentifiedImageError

    if isinstance(error, UnidentifiedImageError):
        return "it is not a picture" if path.stat().st_size else "the file is empty"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


def _box(image: Image, size: tuple[int, int]) -> tuple[int, int, int, int]:
    if image.crop is None:
        return (0, 0, *size)
    left, upper, right, lower = image.crop
    if not (0 <= left < right <= size[0] and 0 <= upper < lower <= size[1]):
        raise DataInvalid(
            f"picture {image.path} cannot be cropped to {image.crop}: it is {size[0]}x{size[1]} pixels"
        )
    return image.crop


def _rgb(picture: PIL.Image.Image) -> PIL.Image.Image:
    from PIL import Image as Pil

    if picture.mode.startswith("I"):  # I;16 and kin; PIL's own conversion would clip at 255
        values = np.clip(np.asarray(picture).astype(np.int64), 0, 65535)
        return Pil.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8)).convert("RGB")
    if not picture.has_transparency_data:
        if picture.mode != "RGB":
            return picture.convert("RGB")
        picture.load()  # conversion would copy it
        return picture
    layer = picture.convert("RGBA")
    return Pil.alpha_composite(Pil.new("RGBA", layer.size, "white"), layer).convert("RGB")


def _fit(size: tuple[int, int], max_pixels: int | None) -> tuple[int, int]:
    width, height = size
    width, height = min(width, MAX_ASPECT * height), min(height, MAX_ASPECT * width)
    if max_pixels is None or width * height <= max_pixels:
        return width, height
    scale = math.sqrt(max_pixels / (width * height))
    short = max(1, int(min(width, height) * scale))
    long = max(1, min(int(max(width, height) * scale), max_pixels // short))
    return (long, short) if width >= height else (short, long)


@dataclass(frozen=True, slots=True)
class ClipInfo:
    """What a clip's index says: frames in presentation order, frames a second, pixels."""

    frames: int
    fps: float
    width: int
    height: int


def sample_indices(total: int, native_fps: float, *, frames: int | None, fps: float | None) -> list[int]:
    """Which of `total` frames to look at: evenly spaced from the first to the last.

    As Qwen-VL, LamRA and U-MARVEL sample: frame i of n is round(i (total - 1)/(n - 1)), halves to
    the even neighbour; a rate gives n = duration · fps, within RATE_FRAMES and the clip, rounded to
    an even number. One frame is the middle one. Never a frame twice: asking for more than there
    are gives all. Exactly one of `frames` and `fps` must be given (DataInvalid).
    """
    if (frames is None) == (fps is None) or (frames or fps or 0) <= 0:
        raise DataInvalid(f"a clip is sampled by a positive number of frames or fps, not {frames=}, {fps=}")
    if fps is None:
        assert frames is not None
        count = min(frames, total)
    else:
        least, most = RATE_FRAMES[0], min(RATE_FRAMES[1], total) // 2 * 2
        asked = total / native_fps * fps if native_fps else least
        count = max(1, round(min(max(asked, least), most) / 2) * 2)
    if count == 1:
        return [total // 2]
    return [round(Fraction(i * (total - 1), count - 1)) for i in range(count)]


def frame_count(video: Video, *, count: int = DEFAULT_FRAMES) -> int:
    """At most how many frames `frames` gives; reads the file only where a rate is pinned."""
    if video.fps is None:
        return video.frames or count
    info = clip_info(video.path)
    return len(_wanted(info.frames, info.fps, video, count))


@_timed
def frames(video: Video, *, count: int = DEFAULT_FRAMES) -> list[PIL.Image.Image]:
    """The sampled frames as RGB pictures, in order; `count` counts where the clip pins nothing.

    Only the sampled frames are kept in memory. decord reads them where it is right, up to twice as
    fast: it has no AV1, and without a word gives wrong frames of AVI, MPEG-PS, MPEG-4 with reordered
    frames, open groups and clips that are stored turned. All these PyAV reads. Raises DataInvalid.
    """
    from PIL import Image as Pil

    def choose(total: int, fps: float) -> list[int]:
        return _wanted(total, fps, video, count)

    readers = (_by_decord_where_right, _by_pyav, _by_decord)
    pixels = _by_installed(video.path, [partial(reader, choose) for reader in readers])
    return [Pil.fromarray(frame) for frame in pixels]


@cache
def decoder() -> str:
    """The libraries that read clips here, and their versions: part of a clip's key in the store, so
    that installing one leaves the vectors of texts and pictures alone."""
    there = [name for name in ("decord", "av") if importlib.util.find_spec(name) is not None]
    return ", ".join(f"{name} {metadata.version(name)}" for name in there) or "none"


def clip_info(path: Path) -> ClipInfo:
    """Frame count, rate and size, from the index without decoding. Raises DataInvalid."""
    return _by_installed(path, (_info_by_pyav, _info_by_decord))


def _wanted(total: int, fps: float, video: Video, count: int) -> list[int]:
    number = count if video.frames is None and video.fps is None else video.frames
    return sample_indices(total, fps, frames=number, fps=video.fps)


def _by_installed(path: Path, readers: Sequence[Callable[[Path], T]]) -> T:
    """The answer of the first reader whose library is installed."""
    if not path.is_file():
        raise DataInvalid(f"clip {path} cannot be read: No such file")
    for reader in readers:
        try:
            return reader(path)
        except ImportError:
            continue
        except DataInvalid:
            raise
        except Exception as error:  # both libraries have trees of their own, and decord's is internal
            said = str(error).strip().partition("\n")[0]  # decord appends a stack trace
            reason = getattr(error, "strerror", None) or said or type(error).__name__
            raise DataInvalid(f"clip {path} cannot be read: {reason}") from error
    raise HarnessError("reading clips needs PyAV or decord: pip install 'umr-harness[video]'")


def _by_decord_where_right(choose: Choose, path: Path) -> list[Pixels]:
    """decord's frames where PyAV's index of the clip says that they are the right ones, else PyAV's."""
    import av
    import decord  # noqa: F401

    with av.open(str(path)) as container:
        stream = _stream(path, container)
        total, fps = _frames_of_instant_groups(container, stream), float(stream.average_rate or 0)
        size = (stream.height, stream.width, 3)
    if total:
        reader = _decord(path)
        if len(reader) == total and reader[0].shape == size:  # a turned clip has another shape
            return list(reader.get_batch(choose(total, fps)).asnumpy())
    return _by_pyav(choose, path)


def _frames_of_instant_groups(container: Any, stream: Any) -> int:
    """How many frames a clip has in which no frame needs what lies before its key frame: all that
    decord seeks in without fault. 0 for any other clip."""
    codec = stream.codec_context
    if container.format.name not in DECORD_FORMATS or codec.name not in DECORD_CODECS:
        return 0
    header = codec.extradata or b""
    width = (header[4] & 3) + 1 if codec.name == "h264" and len(header) > 4 else 0
    total, key = 0, None
    for packet in container.demux(stream):
        if not packet.size or packet.is_discard:
            continue
        if packet.is_keyframe:
            key = packet.pts
            if codec.name == "h264" and _INSTANT not in _unit_types(bytes(packet), width):
                return 0
        if packet.pts is None or key is None or packet.pts < key:
            return 0
        total += 1
    return total


_INSTANT = 5
"""The type of H.264's instantaneous decoding refresh (ITU-T H.264, table 7-1)."""


def _unit_types(packet: bytes, width: int) -> Iterator[int]:
    """The types of the H.264 units in a packet, each preceded by its length in `width` bytes."""
    at = 0
    while width and at + width < len(packet):
        yield packet[at + width] & 31
        at += width + int.from_bytes(packet[at : at + width], "big")


def _by_decord(choose: Choose, path: Path) -> list[Pixels]:
    reader = _decord(path)
    indices = choose(_checked(path, len(reader)), float(reader.get_avg_fps()))
    return list(reader.get_batch(indices).asnumpy()[..., :3])


def _info_by_decord(path: Path) -> ClipInfo:
    reader = _decord(path)
    total = _checked(path, len(reader))
    height, width, _ = reader[0].shape
    return ClipInfo(total, float(reader.get_avg_fps()), width, height)


def _decord(path: Path) -> Any:
    import decord

    with path.open("rb") as file:
        if file.read(12)[8:] == b"AVI ":
            raise DataInvalid(
                f"clip {path} cannot be read: AVI needs PyAV (pip install av), decord misreads it"
            )
    decord.logging.set_level(decord.logging.QUIET)
    return decord.VideoReader(str(path), num_threads=1)  # parallel already: one worker a core


def _by_pyav(choose: Choose, path: Path) -> list[Pixels]:
    import av

    with av.open(str(path)) as container:
        stream = _stream(path, container)
        fps = float(stream.average_rate or 0)
        packets = _packets(container, stream)
        times = [shown for shown, _, _ in packets]
        indices = choose(_checked(path, len(times)), fps)
        # AVI and raw streams hold no times; what FFmpeg makes up is wrong where frames are reordered
        if container.format.name != "avi" and None not in times:
            times.sort()
            keys = sorted((shown, shown if at is None else at) for shown, at, key in packets if key)
            taken = list(_by_seeking(container, stream, keys, [times[i] for i in indices]))
            if len(taken) == len(indices):
                return taken
        return _by_counting(path, lambda total: choose(total, fps), len(times))


def _info_by_pyav(path: Path) -> ClipInfo:
    import av

    with av.open(str(path)) as container:
        stream = _stream(path, container)
        total = _checked(path, len(_packets(container, stream)))
        return ClipInfo(total, float(stream.average_rate or 0), stream.width, stream.height)


def _stream(path: Path, container: Any) -> Any:
    if not container.streams.video:
        raise DataInvalid(f"clip {path} cannot be read: it has no picture track")
    return container.streams.video[0]


def _packets(container: Any, stream: Any) -> list[tuple[Any, Any, bool]]:
    """(presentation time, decoding time, is a key frame) of every frame: the container's own
    frame count is missing in some formats and wrong in others."""
    return [(p.pts, p.dts, p.is_keyframe) for p in container.demux(stream) if p.size and not p.is_discard]


def _by_seeking(
    container: Any, stream: Any, keys: Sequence[tuple[int, int]], times: Sequence[int]
) -> Iterator[Pixels]:
    """The frames shown at `times` (ascending), each [H, W, 3], decoded from the key frames before
    them; ends where one of them is not found."""
    at: int | None = None  # the presentation time of the frame last decoded
    decoded: Iterator[Any] = iter(())
    for time in times:
        before = bisect_right(keys, time, key=lambda key: key[0]) - 1
        start, seek_to = keys[max(before, 0)]
        if at is None or start > at:
            container.seek(seek_to, stream=stream)  # by decoding time: demuxers order their index by it
            decoded = container.decode(stream)
        frame = next((f for f in decoded if f.pts is None or f.pts >= time), None)
        if frame is None or frame.pts != time:
            return
        at = time
        yield _pixels(frame)


def _by_counting(path: Path, choose: Callable[[int], list[int]], total: int) -> list[Pixels]:
    """The frames counted as they come, [H, W, 3] each; twice where `total` was not their number."""
    import av

    wanted, taken, seen = choose(total), [], 0
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            if seen in wanted:
                taken.append(_pixels(frame))
            seen += 1
    return taken if seen == total else _by_counting(path, choose, _checked(path, seen))


def _pixels(frame: Any) -> Pixels:
    return np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90)


def _checked(path: Path, total: int) -> int:
    if not total:
        raise DataInvalid(f"clip {path} cannot be read: it has no frames")
    return total
