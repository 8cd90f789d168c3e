"""Pictures and clips are read as the data sets' official loaders see them, or refused in one line."""

from __future__ import annotations

import pickle
import struct
import sys
from pathlib import Path

import numpy as np
import PIL.Image as Pil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.content import Image, Video
from harness.errors import DataInvalid, HarnessError
from harness.media import (
    ClipInfo,
    clip_info,
    decoding,
    frame_count,
    frames,
    open_picture,
    picture_size,
    sample_indices,
)


def _saved(path: Path, picture: Pil.Image) -> Path:
    picture.save(path)
    return path


def _palette_with_a_hole() -> Pil.Image:
    picture = Pil.new("P", (2, 2), 1)
    picture.putpalette([9, 9, 9, 0, 0, 255])
    picture.info["transparency"] = 1
    return picture


PICTURES = {
    "1.png": (Pil.new("1", (2, 2), 1), (255, 255, 255)),
    "L.png": (Pil.new("L", (2, 2), 77), (77, 77, 77)),
    "P.png": (
        Pil.new("RGB", (2, 2), (10, 200, 30)).convert("P", palette=Pil.Palette.ADAPTIVE),
        (10, 200, 30),
    ),
    "LA.png": (Pil.new("LA", (2, 2), (0, 0)), (255, 255, 255)),
    "LA51.png": (Pil.new("LA", (2, 2), (0, 51)), (204, 204, 204)),  # 255 * (1 - 51/255)
    "RGBA.png": (Pil.new("RGBA", (2, 2), (255, 0, 0, 51)), (255, 204, 204)),
    "transparent-P.png": (_palette_with_a_hole(), (255, 255, 255)),
    "CMYK.tif": (Pil.new("CMYK", (2, 2), (0, 255, 255, 0)), (255, 0, 0)),
    "I16.png": (Pil.fromarray(np.full((2, 2), 128 * 257, np.uint16)), (128, 128, 128)),  # 65535 = 255 * 257
    "I16.pgm": (Pil.fromarray(np.full((2, 2), 128 * 257, np.uint16)), (128, 128, 128)),
}


@pytest.mark.parametrize("name", PICTURES)
def test_every_mode_becomes_rgb_with_transparency_on_white(name: str, tmp_path: Path) -> None:
    picture, colour = PICTURES[name]
    opened = open_picture(Image(_saved(tmp_path / name, picture)))
    assert (opened.mode, opened.getpixel((1, 1))) == ("RGB", colour)


@pytest.mark.parametrize("name", ["p.jpg", "p.png"])
def test_a_picture_outlives_its_file_and_crosses_to_another_process(name: str, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    path = _saved(tmp_path / name, Pil.fromarray(pixels))
    expected = np.asarray(Pil.open(path).convert("RGB"))
    opened = open_picture(Image(path))
    path.unlink()
    assert np.array_equal(np.asarray(opened), expected)
    assert np.array_equal(np.asarray(pickle.loads(pickle.dumps(opened))), expected)


def test_exif_rotation_is_ignored(tmp_path: Path) -> None:
    exif = Pil.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    path = tmp_path / "turned.jpg"
    Pil.new("RGB", (30, 10)).save(path, exif=exif)
    assert open_picture(Image(path)).size == picture_size(Image(path)) == (30, 10)


def test_a_crop_is_cut_out_of_the_stored_pixels(tmp_path: Path) -> None:
    pixels = np.arange(6 * 8 * 3, dtype=np.uint8).reshape(6, 8, 3)
    path = _saved(tmp_path / "p.png", Pil.fromarray(pixels))
    assert np.array_equal(np.asarray(open_picture(Image(path, crop=(2, 1, 7, 5)))), pixels[1:5, 2:7])


@pytest.mark.parametrize("box", [(0, 0, 9, 6), (-1, 0, 4, 4), (4, 0, 4, 6), (5, 0, 2, 6), (0, 3, 8, 7)])
def test_a_box_outside_the_picture_is_refused(box: tuple[int, int, int, int], tmp_path: Path) -> None:
    path = _saved(tmp_path / "p.png", Pil.new("RGB", (8, 6)))
    for read in (open_picture, picture_size):
        with pytest.raises(DataInvalid, match=r"p\.png cannot be cropped to .*: it is 8x6 pixels"):
            read(Image(path, crop=box))


@pytest.mark.parametrize(
    ("size", "max_pixels", "expected"),
    [
        ((51200, 1), None, (200, 1)),
        ((2, 1000), None, (2, 400)),
        ((200, 1), None, (200, 1)),
        ((100, 50), 1250, (50, 25)),
        ((100, 50), 5000, (100, 50)),
        ((200, 1), 50, (50, 1)),
        ((3, 3), 1, (1, 1)),
    ],
)
def test_extreme_and_large_pictures_shrink_in_aspect(
    size: tuple[int, int], max_pixels: int | None, expected: tuple[int, int], tmp_path: Path
) -> None:
    image = Image(_saved(tmp_path / "p.png", Pil.new("1", size)), max_pixels=max_pixels)
    assert picture_size(image) == open_picture(image).size == expected


@settings(max_examples=60, deadline=None)
@given(
    size=st.tuples(st.integers(1, 900), st.integers(1, 900)),
    max_pixels=st.one_of(st.none(), st.integers(1, 5000)),
    data=st.data(),
)
def test_the_header_tells_the_size_that_is_decoded(
    size: tuple[int, int],
    max_pixels: int | None,
    data: st.DataObject,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    left, upper = (data.draw(st.integers(0, n - 1)) for n in size)
    right, lower = data.draw(st.integers(left + 1, size[0])), data.draw(st.integers(upper + 1, size[1]))
    path = _saved(tmp_path_factory.getbasetemp() / "sized.png", Pil.new("1", size))
    image = Image(path, crop=(left, upper, right, lower), max_pixels=max_pixels)
    width, height = picture_size(image)
    assert open_picture(image).size == (width, height)
    assert width <= 200 * height
    assert height <= 200 * width
    assert max_pixels is None or width * height <= max_pixels


def test_the_size_needs_no_pixels(tmp_path: Path) -> None:
    path = _saved(
        tmp_path / "p.png", Pil.fromarray(np.random.default_rng(0).integers(0, 255, (64, 80, 3), np.uint8))
    )
    path.write_bytes(path.read_bytes()[:200])
    assert picture_size(Image(path)) == (80, 64)
    with pytest.raises(DataInvalid, match=r"picture .*p\.png cannot be read: .*truncated"):
        open_picture(Image(path))


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "the file is empty"), (b"no picture at all", "it is not a picture"), (None, "No such")],
)
def test_what_is_no_picture_is_named(content: bytes | None, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.jpg"
    if content is not None:
        path.write_bytes(content)
    for read in (open_picture, picture_size):
        with pytest.raises(DataInvalid, match=rf"^picture .*bad\.jpg cannot be read: {reason}"):
            read(Image(path))


def test_a_decompression_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _saved(tmp_path / "bomb.png", Pil.new("1", (100, 100)))
    monkeypatch.setattr(Pil, "MAX_IMAGE_PIXELS", 4000)
    with pytest.raises(DataInvalid, match=r"bomb\.png cannot be read: .*decompression bomb"):
        open_picture(Image(path))


@pytest.mark.parametrize(
    ("total", "native", "count", "fps", "expected"),
    [
        (8, 25.0, 4, None, [0, 2, 5, 7]),  # 7/3 i = 0, 2.33, 4.67, 7
        (100, 25.0, 8, None, [0, 14, 28, 42, 57, 71, 85, 99]),  # 99/7 i = 14.14 i
        (30, 25.0, 3, None, [0, 14, 29]),  # 14.5: halves to the even neighbour
        (3, 25.0, 8, None, [0, 1, 2]),
        (9, 25.0, 1, None, [4]),
        (100, 25.0, None, 1.0, [0, 33, 66, 99]),  # 4 seconds
        (10, 30.0, None, 20.0, [0, 2, 4, 5, 7, 9]),  # 6.67 frames: 6; 9/5 i
        (10, 25.0, None, 0.1, [0, 3, 6, 9]),  # never fewer than 4
        (3, 25.0, None, 60.0, [0, 2]),  # an even number
        (1, 25.0, None, 2.0, [0]),
        (10, 0.0, None, 2.0, [0, 3, 6, 9]),  # the rate is not known
    ],
)
def test_frames_are_sampled_evenly_and_never_twice(
    total: int, native: float, count: int | None, fps: float | None, expected: list[int]
) -> None:
    assert sample_indices(total, native, frames=count, fps=fps) == expected


@pytest.mark.parametrize("total", [12, 13, 100, 301, 1799])
@pytest.mark.parametrize("n", [2, 8, 12])
def test_sampling_is_that_of_the_released_code(total: int, n: int) -> None:
    # U-MARVEL and LamRA: torch.linspace(0, total - 1, n).round().long()
    torch = pytest.importorskip("torch")
    official = torch.linspace(0, total - 1, n).round().long().tolist()
    assert sample_indices(total, 25.0, frames=n, fps=None) == official


@pytest.mark.parametrize(("count", "fps"), [(None, None), (4, 1.0), (0, None), (None, 0.0)])
def test_sampling_needs_exactly_one_positive_rule(count: int | None, fps: float | None) -> None:
    with pytest.raises(DataInvalid, match="positive number of frames or fps"):
        sample_indices(10, 25.0, frames=count, fps=fps)


TOTAL, RATE = 30, 10
GROUPS = {"g": "4", "bf": "2"}
"""Key frames every 4, frames reordered: seeking must find its way."""


def _numbered(path: Path, codec: str, options: dict[str, str]) -> Path:
    """30 frames, 10 a second; frame i is grey 8 i, with a white stripe at the left."""
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=RATE, options=options)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for i in range(TOTAL):
            pixels = np.full((48, 64, 3), 8 * i, np.uint8)
            pixels[:, :8] = 255
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path


def _numbers(pictures: list[Pil.Image]) -> list[int]:
    return [round(float(np.asarray(p)[16:32, 24:56].mean()) / 8) for p in pictures]


EIGHT = [0, 4, 8, 12, 17, 21, 25, 29]  # round(29 / 7 * i)

CLIPS = {
    "h264.mp4": ("libx264", GROUPS),
    "h264.mkv": ("libx264", GROUPS),
    "h264.avi": ("libx264", GROUPS),
    "h264.ts": ("libx264", GROUPS),
    "h265.mp4": ("libx265", {"x265-params": "keyint=5:bframes=3:log-level=none"}),
    "open.mp4": ("libx264", {"x264-params": "open-gop=1:keyint=8:bframes=3:scenecut=0"}),
    "mpeg4.mp4": ("mpeg4", {**GROUPS, "qmin": "1", "qmax": "1"}),
    "vp9.webm": ("libvpx-vp9", {"g": "6"}),
    "av1.mp4": ("libsvtav1", {}),
}


@pytest.mark.parametrize("name", CLIPS)
def test_the_frames_asked_for_are_those_that_come(name: str, tmp_path: Path) -> None:
    path = _numbered(tmp_path / name, *CLIPS[name])
    assert clip_info(path) == ClipInfo(TOTAL, RATE, 64, 48)
    assert _numbers(frames(Video(path))) == EIGHT
    assert _numbers(frames(Video(path, frames=3))) == [0, 14, 29]
    assert _numbers(frames(Video(path, fps=2.0))) == [0, 6, 12, 17, 23, 29]  # 3 seconds; 29 / 5 * i


@pytest.mark.parametrize("name", ["h264.mp4", "h264.mkv", "vp9.webm"])
def test_decord_alone_gives_the_same_frames(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("decord")
    path = _numbered(tmp_path / name, *CLIPS[name])
    with_both = frames(Video(path)), clip_info(path)
    monkeypatch.setitem(sys.modules, "av", None)
    pictures, info = frames(Video(path)), clip_info(path)
    assert (_numbers(pictures), info) == (_numbers(with_both[0]), with_both[1])


@pytest.mark.parametrize("name", ["h264.mp4", "h264.mkv", "vp9.webm"])
def test_either_library_gives_the_same_pixels(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decord = pytest.importorskip("decord")
    path = _numbered(tmp_path / name, *CLIPS[name])
    opened = []
    monkeypatch.setattr(
        decord, "VideoReader", lambda *a, read=decord.VideoReader, **k: opened.append(a) or read(*a, **k)
    )
    by_decord = frames(Video(path))
    assert opened
    monkeypatch.setitem(sys.modules, "decord", None)
    by_pyav = frames(Video(path))
    assert all(np.array_equal(a, b) for a, b in zip(by_decord, by_pyav, strict=True))


@pytest.mark.parametrize("name", ["h264.avi", "h264.ts", "open.mp4", "mpeg4.mp4", "turned.mp4"])
def test_what_decord_misreads_is_left_to_pyav(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("decord")
    path = tmp_path / name
    if name == "turned.mp4":
        _turned(path)
    else:
        _numbered(path, *CLIPS[name])
    with_both = frames(Video(path))
    monkeypatch.setitem(sys.modules, "decord", None)
    alone = frames(Video(path))
    assert all(np.array_equal(a, b) for a, b in zip(with_both, alone, strict=True))


def test_avi_is_not_left_to_decord_which_misreads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("decord")
    path = _numbered(tmp_path / "h264.avi", *CLIPS["h264.avi"])
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(DataInvalid, match=r"AVI needs PyAV \(pip install av\)"):
        frames(Video(path))


def _turned(path: Path) -> Path:
    """The clip as a phone stores it, with a matrix that turns it clockwise."""
    _numbered(path, *CLIPS["h264.mp4"])
    content = bytearray(path.read_bytes())
    matrix = content.index(b"tkhd") + 4 + 4 + 20 + 16  # ISO 14496-12 8.3.2, version 0
    one = 1 << 16
    content[matrix : matrix + 36] = struct.pack(">9i", 0, one, 0, -one, 0, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
    return path


def test_a_clip_that_is_stored_turned_comes_upright(tmp_path: Path) -> None:
    path = _turned(tmp_path / "turned.mp4")
    (first,) = frames(Video(path, frames=1))
    assert first.size == (48, 64)
    assert np.asarray(first)[:4].mean() > 250  # the stripe is on top now


def test_the_count_of_frames_is_known_before_they_are_decoded(tmp_path: Path) -> None:
    path = _numbered(tmp_path / "h264.mp4", *CLIPS["h264.mp4"])
    for video in (Video(path), Video(path, frames=3), Video(path, fps=2.0), Video(path, fps=100.0)):
        assert frame_count(video) == len(frames(video))


def test_a_clip_cut_short_gives_frames_of_what_is_there(tmp_path: Path) -> None:
    path = _numbered(tmp_path / "vp9.webm", *CLIPS["vp9.webm"])
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    numbers = _numbers(frames(Video(path, frames=3)))
    assert len(numbers) == 3
    assert numbers == sorted(numbers)
    assert numbers[-1] < 25


@pytest.mark.parametrize(("content", "reason"), [(b"", ""), (b"no clip" * 99, ""), (None, "No such file")])
def test_what_is_no_clip_is_named(content: bytes | None, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.mp4"
    if content is not None:
        path.write_bytes(content)
    for read in (clip_info, lambda path: frames(Video(path))):
        with pytest.raises(DataInvalid, match=rf"^clip .*bad\.mp4 cannot be read: {reason}") as caught:
            read(path)
        assert "\n" not in str(caught.value)


def test_a_clip_without_pictures_is_named(tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    path = tmp_path / "sound.wav"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
    with pytest.raises(DataInvalid, match="it has no picture track"):
        frames(Video(path))


def test_without_a_reader_the_remedy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "clip.mp4").write_bytes(b"anything")
    monkeypatch.setitem(sys.modules, "av", None)
    monkeypatch.setitem(sys.modules, "decord", None)
    with pytest.raises(HarnessError, match=r"pip install 'umr-harness\[video\]'"):
        frames(Video(tmp_path / "clip.mp4"))


def test_decoding_is_timed_where_somebody_asks(media):
    open_picture(Image(media / "p0.png"))
    with decoding() as seconds:
        open_picture(Image(media / "p0.png"))
        open_picture(Image(media / "p1.png"))
        with pytest.raises(DataInvalid):
            open_picture(Image(media / "none.png"))
    assert len(seconds) == 3
    assert sum(seconds) > 0
    open_picture(Image(media / "p2.png"))
    assert len(seconds) == 3
