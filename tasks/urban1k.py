"""Urban1K: 1,000 pictures of streets, each with one caption of a paragraph, in both directions.

The caption of Urban1k/image/17.jpg is the first line of Urban1k/caption/17.txt, stripped:

    A narrow street between brick houses. A red bus stands at the kerb, …

so that `text-to-image` asks 17#0 "A narrow street …" for 17, and `image-to-text` the reverse.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from harness.errors import DataInvalid
from harness.records import checked_text
from harness.task import Hub, Need

from .miniature import PLACES, picture, write
from .two_way import ASKED, ASKED_MARKED, FIND_CAPTION, Captioned, TwoWay, at_length, numbered, one_pass
from .wording import Wording

_FOLDER = Path("Urban1k")
_SOURCE = "unpack Urban1k.zip of huggingface.co/datasets/BeichenZhang/Urban1k in the data folder"
_HUB = Hub("BeichenZhang/Urban1k", ("Urban1k.zip",))
_CAPTIONS = Need(_FOLDER / "caption", _SOURCE, hub=_HUB)
_PICTURES = Need(_FOLDER / "image", _SOURCE, media=True, hub=_HUB)

# Both code bases embed once, with the instruction on the pictures, and pass it as a Python set: the
# model reads its braces and quotes. U-MARVEL's markers stand inside them, so that they are a suffix
# here, read by its tokenizer as they are. Only on this set are pictures not cut to 300·28·28 pixels;
# their rerankers see them as on any other.
_PIXELS = 16_384 * 28 * 28
PROFILES = {
    "default": ASKED,
    "umarvel": one_pass(
        picture=Wording(
            suffix=f"{{'<instruction_start>{FIND_CAPTION}<instruction_end>'}}", max_pixels=_PIXELS
        )
    ).reranked(ASKED_MARKED),
    "lamra": one_pass(picture=Wording(f"{{'{FIND_CAPTION}'}}", max_pixels=_PIXELS)).reranked(ASKED),
}


def read(data_root: Path) -> Sequence[Captioned]:
    texts, images = _CAPTIONS.require(data_root), _PICTURES.require(data_root)
    captions, pictures = numbered(texts, ".txt"), numbered(images, ".jpg")
    alone = sorted(captions.keys() ^ pictures.keys())
    if alone:
        both = texts / f"{alone[0]}.txt", images / f"{alone[0]}.jpg"
        there, lacking = both if alone[0] in captions else both[::-1]
        raise DataInvalid(f"{there} is there, {lacking} is not: captions and pictures are out of step")
    return [Captioned(str(n), path, (_caption(captions[n]),)) for n, path in pictures.items()]


def _caption(path: Path) -> str:
    try:
        with path.open(encoding="utf-8") as file:
            line = file.readline()
    except OSError as error:
        raise DataInvalid(f"{path} cannot be read ({(error.strerror or str(error)).lower()})") from error
    except UnicodeDecodeError as error:
        raise DataInvalid(f"{path} is not UTF-8 ({error})") from error
    return checked_text(line, f"{path}, line 1").strip()


def mini(folder: Path) -> None:
    """Twelve pictures: 10 comes after 2; a caption with blanks around it, and one with a second line."""
    captions = {n: at_length(5 + 5 * n, PLACES[n - 1]) for n in range(1, 13)}
    captions[3] = f"  {captions[3]} \r\n"
    captions[10] += "\nThis line is not read.\n"
    drawn = {f"image/{n}.jpg": picture(5 + 5 * n) for n in captions}
    write(folder / _FOLDER, {**{f"caption/{n}.txt": text for n, text in captions.items()}, **drawn})


TASKS = TwoWay(
    name="urban1k",
    title="Urban1K",
    read=read,
    needs=(_CAPTIONS, _PICTURES),
    profiles=PROFILES,
    pictures=1_000,
    captions=1_000,
    mini=mini,
    source="Zhang et al., ECCV 2024 (Long-CLIP), arxiv.org/abs/2403.15378",
    licence="CC BY-NC 4.0",
    derived_from=("Urban1K", "Visual Genome"),
).tasks()
