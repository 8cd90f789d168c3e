"""Tux Paint's stamps: 538 pictures with captions in many languages, and folders that say what is alike.

A stamp is a picture with a text file beside it, `animals/birds/penguin.png` and `penguin.txt`:

    A penguin.
    de.utf8=Ein Pinguin.
    fr.utf8=Un manchot.

from which come, with the path below the collection as the picture's id,

    text-to-image-en   "A penguin."  ->  every picture with exactly that caption
    text-to-image-de   "Ein Pinguin."  ->  the same, among the same pictures
    image-to-text-en   animals/birds/penguin  ->  "A penguin."
    image-to-category  animals/birds/penguin  ->  grade 2: the other animals/birds; grade 1: other animals
    category-to-image  "Animals, birds."  ->  all animals/birds
    translation        "Ein Pinguin."  ->  "A penguin." among the English captions

Debian's package 2022.06.04 has 498 distinct English captions. Letters and signs (`symbols/`) are
left out, as are stamps that exist as drawings only (.svg) and mirrored pictures without a text. A
picture without a caption in a language stays in the pool of that language and is asked for by
nobody. One picture lies in two categories (`fireman240a` in `military` and `people`).

The split `all` is the published one. `train` and `test` cut the pictures about four to one, each with
its own queries and pool: pictures whose captions are equal in any language, but for case and
punctuation, stay together, so that no caption is asked for in both. There an instruction is drawn
from several wordings; the whole is asked with the first.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from pathlib import Path

from harness.collection import Collection, Pool
from harness.content import Candidate, Image, Part, Query, Text
from harness.errors import DataInvalid
from harness.metrics import MAP, MRR, NDCG, Hit, Metric, Recall
from harness.task import Column, Need, Protocol, Suite, Task, choose, draw, only

_REMEDY = "apt-get install tuxpaint-stamps-default, or put its usr/share/tuxpaint/stamps there"
_NEED = Need(Path("stamps"), _REMEDY, otherwise=(Path("/usr/share/tuxpaint/stamps"),))
_STYLES = frozenset({"cartoon", "plastic", "toys"})
"""Folders that say how a thing is drawn, not what it is."""

SPLITS = ("all", "train", "test")
_HELD_OUT = 5
"""One group of captions in so many is held out for `test`."""

_TO_IMAGE, _TO_TEXT, _TO_CATEGORY = "text-to-image", "image-to-text-en", "image-to-category"
_FROM_CATEGORY, _TRANSLATION = "category-to-image", "translation"
_WORDINGS = {
    _TO_IMAGE: (
        "Find a picture of what the caption names.",
        "Show me a picture that goes with this caption.",
        "Which picture shows the thing that is named here?",
    ),
    _TO_TEXT: (
        "Find the caption that names what the picture shows.",
        "Say in a few words what is to be seen.",
        "Which caption belongs to this picture?",
    ),
    _TO_CATEGORY: (
        "Find a picture of something of the same kind.",
        "Show me another picture of this category.",
        "What else belongs to the same group of things?",
    ),
    _FROM_CATEGORY: (
        "Find a picture of something that belongs to this category.",
        "Show me an example of this kind of thing.",
        "Which picture shows a member of the group that is named here?",
    ),
    _TRANSLATION: (
        "Find the English caption that says the same.",
        "How is this said in English?",
        "Retrieve the English translation of this caption.",
    ),
}
"""By kind of task; the first of them is the instruction of the split `all`."""

LANGUAGES = {
    "en": "English",
    "ach": "Acholi",
    "af": "Afrikaans",
    "am": "Amharic",
    "an": "Aragonese",
    "ast": "Asturian",
    "be": "Belarusian",
    "bg": "Bulgarian",
    "ca": "Catalan",
    "ca@valencia": "Valencian",
    "cs": "Czech",
    "da": "Danish",
    "de": "German",
    "el": "Greek",
    "eo": "Esperanto",
    "es": "Spanish",
    "eu": "Basque",
    "ff": "Fula",
    "fi": "Finnish",
    "fr": "French",
    "ga": "Irish",
    "gd": "Scottish Gaelic",
    "gl": "Galician",
    "gu": "Gujarati",
    "hi": "Hindi",
    "hr": "Croatian",
    "hu": "Hungarian",
    "hy": "Armenian",
    "id": "Indonesian",
    "is": "Icelandic",
    "it": "Italian",
    "iu": "Inuktitut",
    "ja": "Japanese",
    "ka": "Georgian",
    "ko": "Korean",
    "lv": "Latvian",
    "ml": "Malayalam",
    "nb": "Norwegian Bokmål",
    "nl": "Dutch",
    "nn": "Norwegian Nynorsk",
    "pl": "Polish",
    "pt": "Portuguese",
    "pt_BR": "Brazilian Portuguese",
    "ro": "Romanian",
    "ru": "Russian",
    "sk": "Slovak",
    "sl": "Slovenian",
    "son": "Songhai",
    "sq": "Albanian",
    "sr": "Serbian",
    "sr@latin": "Serbian (Latin)",
    "sv": "Swedish",
    "tr": "Turkish",
    "uk": "Ukrainian",
    "vec": "Venetian",
    "vi": "Vietnamese",
    "zh_TW": "Chinese (traditional)",
}
"""English, and the languages with captions for 500 or more of the 538 pictures in 2022.06.04.

British and Australian English are left out: nine captions in ten are the English ones.
"""


@dataclass(frozen=True, slots=True)
class Stamp:
    """A picture, its id (the path below the collection, without suffix) and captions by language."""

    id: str
    path: Path
    captions: Mapping[str, str]

    @property
    def category(self) -> tuple[str, ...]:
        """One or two folders: ("animals", "birds") for animals/birds/cartoon/duck."""
        return tuple(name for name in self.id.split("/")[:-1] if name not in _STYLES)[:2]

    def candidate(self) -> Candidate:
        return Candidate(self.id, (Image(self.path),))


def read(folder: Path) -> list[Stamp]:
    """All captioned pictures below a folder of stamps, in the order of their ids.

    Raises DataInvalid where there are none, or where a text cannot be read.
    """
    stamps = []
    for text in folder.rglob("*.txt"):
        id = text.relative_to(folder).with_suffix("").as_posix()
        picture = text.with_suffix(".png")
        if not id.startswith("symbols/") and picture.exists():
            stamps.append(Stamp(id, picture, _captions(text)))
    if not stamps:
        raise DataInvalid(f"{folder} holds no picture with a caption (.png and .txt): {_REMEDY}")
    return sorted(stamps, key=lambda stamp: stamp.id)


def _captions(text: Path) -> dict[str, str]:
    """Language → caption; a language without one is left out."""
    try:
        english, *lines = text.read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError as error:
        raise DataInvalid(f"{text} cannot be read ({error.strerror}): {_REMEDY}") from error
    captions = {"en": english.strip()}
    for line in lines:
        language, found, caption = line.partition(".utf8=")
        if found:
            captions[language] = caption.strip()
    return {language: caption for language, caption in captions.items() if caption}


def of_split(stamps: Sequence[Stamp], split: str) -> list[Stamp]:
    """The stamps of a split, in their order."""
    if split == "all":
        return list(stamps)
    groups = _groups(stamps)
    return [stamp for stamp in stamps if _is_held_out(groups[stamp.id]) == (split == "test")]


def _is_held_out(group: str) -> bool:
    return int.from_bytes(blake2b(f"test:{group}".encode(), digest_size=8).digest(), "big") % _HELD_OUT == 0


def _groups(stamps: Sequence[Stamp]) -> dict[str, str]:
    """Stamp → the first id of its group: stamps with near-equal captions, and those with theirs."""
    first = {stamp.id: stamp.id for stamp in stamps}

    def root(id: str) -> str:
        while first[id] != id:
            id = first[id]
        return id

    met: dict[tuple[str, str], str] = {}
    for stamp in stamps:
        for language in LANGUAGES.keys() & stamp.captions.keys():
            words = " ".join(re.findall(r"\w+", stamp.captions[language].casefold()))
            one, other = sorted((root(stamp.id), root(met.setdefault((language, words), stamp.id))))
            first[other] = one
    return {id: root(id) for id in first}


def _by_caption(stamps: Sequence[Stamp], language: str) -> dict[str, list[Stamp]]:
    """Distinct caption → the stamps that have it."""
    found: defaultdict[str, list[Stamp]] = defaultdict(list)
    for stamp in stamps:
        if language in stamp.captions:
            found[stamp.captions[language]].append(stamp)
    if not found:
        raise DataInvalid(f"no caption in {LANGUAGES[language]} ({language}.utf8=) in the stamps: {_REMEDY}")
    return dict(found)


@dataclass(frozen=True, slots=True)
class _Asked:
    """What a task is asked under a protocol: its stamps and its instructions."""

    name: str
    protocol: Protocol
    stamps: Sequence[Stamp]
    pool: str
    wordings: tuple[str, ...]

    def query(self, id: str, part: Part) -> Query:
        return Query(id, (part,), draw(self.protocol, self.name, id, self.wordings))

    def pictures(self) -> Pool:
        return Pool(self.pool, [stamp.candidate() for stamp in self.stamps])

    def captions(self, ids: Mapping[str, str]) -> Pool:
        return Pool(f"{self.pool}-en", [Candidate(id, (Text(caption),)) for caption, id in ids.items()])


def _asked(kind: str, name: str, data_root: Path, protocol: Protocol) -> _Asked:
    split = only(name, protocol, splits=SPLITS)
    stamps = of_split(read(_NEED.require(data_root)), split)
    if not stamps:
        raise DataInvalid(f"{name} has no picture in its split {split!r}: {_REMEDY}")
    pool = "stamps" if split == "all" else f"stamps-{split}"
    return _Asked(name, protocol, stamps, pool, wordings(kind, name, data_root, protocol))


def wordings(kind: str, name: str, data_root: Path, protocol: Protocol) -> tuple[str, ...]:
    split = only(name, protocol, splits=SPLITS)
    texts = _WORDINGS[kind]
    return choose(name, protocol, texts[:1] if split == "all" else texts)


def _text_to_image(language: str, data_root: Path, protocol: Protocol) -> Collection:
    asked = _asked(_TO_IMAGE, f"stamps/text-to-image-{language}", data_root, protocol)
    found = {f"{language}:{same[0].id}": (c, same) for c, same in _by_caption(asked.stamps, language).items()}
    return Collection(
        queries=[asked.query(id, Text(caption)) for id, (caption, _) in found.items()],
        pool=asked.pictures(),
        qrels={id: {stamp.id: 1 for stamp in same} for id, (_, same) in found.items()},
    )


def _english(stamps: Sequence[Stamp]) -> dict[str, str]:
    """Distinct English caption → its id, named after the first picture."""
    return {caption: f"en:{same[0].id}" for caption, same in _by_caption(stamps, "en").items()}


def _image_to_text(data_root: Path, protocol: Protocol) -> Collection:
    asked = _asked(_TO_TEXT, "stamps/image-to-text-en", data_root, protocol)
    ids = _english(asked.stamps)
    named = [stamp for stamp in asked.stamps if "en" in stamp.captions]
    return Collection(
        queries=[asked.query(stamp.id, Image(stamp.path)) for stamp in named],
        pool=asked.captions(ids),
        qrels={stamp.id: {ids[stamp.captions["en"]]: 1} for stamp in named},
    )


def _translation(data_root: Path, protocol: Protocol) -> Collection:
    asked = _asked(_TRANSLATION, "stamps/translation", data_root, protocol)
    ids = _english(asked.stamps)
    named = [stamp for stamp in asked.stamps if "en" in stamp.captions]
    found = {
        f"{language}:{same[0].id}": (caption, {ids[stamp.captions["en"]]: 1 for stamp in same})
        for language in LANGUAGES
        if language != "en"
        for caption, same in _by_caption(named, language).items()
    }
    return Collection(
        queries=[asked.query(id, Text(caption)) for id, (caption, _) in found.items()],
        pool=asked.captions(ids),
        qrels={id: positives for id, (_, positives) in found.items()},
    )


def _image_to_category(data_root: Path, protocol: Protocol) -> Collection:
    asked = _asked(_TO_CATEGORY, "stamps/image-to-category", data_root, protocol)
    qrels = _alike(asked.stamps)
    return Collection(
        queries=[asked.query(s.id, Image(s.path)) for s in asked.stamps if s.id in qrels],
        pool=asked.pictures(),
        qrels=qrels,
        exclude={id: [id] for id in qrels},
    )


def _category_to_image(data_root: Path, protocol: Protocol) -> Collection:
    """Top folders and the categories in them: "Animals." and "Animals, birds." """
    asked = _asked(_FROM_CATEGORY, "stamps/category-to-image", data_root, protocol)
    members: defaultdict[tuple[str, ...], dict[str, int]] = defaultdict(dict)
    for stamp in asked.stamps:
        for category in {stamp.category[:1], stamp.category}:
            members[category][stamp.id] = 1
    qrels = {"/".join(category): dict(found) for category, found in sorted(members.items())}
    return Collection(
        queries=[
            asked.query(id, Text(f"{id.replace('/', ', ').replace('_', ' ').capitalize()}.")) for id in qrels
        ],
        pool=asked.pictures(),
        qrels=qrels,
    )


def _alike(stamps: Sequence[Stamp]) -> dict[str, dict[str, int]]:
    """For each picture the others of its top folder: grade 2 in its category, 1 beside it.

    A picture that is alone in its top folder has nothing to find and is left out.
    """
    categories = {stamp.id: stamp.category for stamp in stamps}
    beside: defaultdict[tuple[str, ...], list[str]] = defaultdict(list)
    for id, category in categories.items():
        beside[category[:1]].append(id)
    return {
        id: {other: 1 + (categories[other] == category) for other in beside[category[:1]] if other != id}
        for id, category in categories.items()
        if len(beside[category[:1]]) > 1
    }


def _needs(protocol: Protocol) -> tuple[Need, ...]:
    return (_NEED,)


_MINI = (
    ("animals/birds/penguin", "A penguin."),
    ("animals/birds/robin", "A robin."),
    ("animals/birds/cartoon/duck", "A duck."),
    ("animals/fish/shark", "A shark."),
    ("animals/mammals/cats/lion", "A lion."),
    ("animals/mammals/cats/lion2", "A lion."),
    ("food/fruit/apple", "An apple."),
    ("food/fruit/cartoon/apple", "An apple."),
    ("food/vegetables/carrot", " A carrot. "),
    ("plants/flowers/rose", "A rose."),
    ("plants/trees/oak", "An oak tree."),
    ("town/street lamp", ""),
    ("vehicles/flight/planes/glider", "A glider."),
)
_MINI_OTHERS = {"de": {"A lion.": "Ein Löwe.", "A rose.": ""}, "fr": {"A shark.": "Un requin."}}
"""Real translations, and a missing one; the rest are the English caption with the language's code."""


def _mini(folder: Path) -> None:
    """Thirteen drawn stamps with every oddity of the real ones."""
    root = folder / "stamps"
    for i, (id, caption) in enumerate(_MINI):
        _draw(root / f"{id}.png", i)
        _write(root / f"{id}.txt", caption)
    _draw(root / "symbols/shapes/star.png", 13)
    _write(root / "symbols/shapes/star.txt", "A star.")
    _draw(root / "animals/birds/penguin_mirror.png", 14)
    _write(root / "vehicles/ship/tug.txt", "A tug.")
    (root / "vehicles/ship/tug.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>", encoding="utf-8")
    with (root / "animals/birds/robin.txt").open("ab") as text:
        text.write(b"fr.utf8=Un rouge-gorge\xff.\n")


def _write(path: Path, caption: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    name = caption.strip()
    lines = [
        f"{language}.utf8={_MINI_OTHERS.get(language, {}).get(name, f'{name} ({language})' if name else '')}"
        for language in LANGUAGES
        if language != "en"
    ]
    path.write_text("\n".join([caption, *lines, ""]), encoding="utf-8")


def _draw(path: Path, i: int) -> None:
    """A 40 × 32 picture that no other i gives: shape, place and colour; every third without alpha."""
    from PIL import Image as Picture
    from PIL import ImageDraw

    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Picture.new("RGBA", (40, 32), (255, 255, 255, 0))
    draw = ImageDraw.Draw(picture)
    colour = (40 * i % 256, 90 * i % 256, 150 * i % 256, 255)
    box = (i, i // 2, i + 20, i // 2 + 20)
    (draw.ellipse if i % 2 else draw.rectangle)(box, fill=colour)
    (picture if i % 3 else picture.convert("RGB")).save(path)


def _task(
    kind: str,
    title: str,
    load: Callable[[Path, Protocol], Collection],
    metrics: tuple[Metric, ...],
    language: str | None = None,
) -> Task:
    name = f"stamps/{kind}-{language}" if language else f"stamps/{kind}"
    return Task(
        name=name,
        title=f"Tux Paint stamps: {title}",
        load=load,
        metrics=metrics,
        needs=_needs,
        mini=_mini,
        source="Tux Paint stamps, Debian package tuxpaint-stamps-default, tuxpaint.org",
        licence="GPL-2.0",
        wordings=partial(wordings, kind, name),
    )


_RETRIEVAL = (Hit(1), Hit(5), Hit(10), Recall(5), MRR(10), NDCG(10))

TASKS = (
    *(
        _task(_TO_IMAGE, f"{name} caption → picture", partial(_text_to_image, code), _RETRIEVAL, code)
        for code, name in LANGUAGES.items()
    ),
    _task(_TO_TEXT, "picture → English caption", _image_to_text, _RETRIEVAL),
    _task(
        _TO_CATEGORY,
        "picture → pictures of the same category",
        _image_to_category,
        (MAP(50), Hit(1), Hit(1, rel=2), Recall(10), NDCG(10)),
    ),
    _task(
        _FROM_CATEGORY, "category → its pictures", _category_to_image, (MAP(50), Hit(1), Hit(5), Recall(10))
    ),
    _task(_TRANSLATION, "caption in any language → the English one", _translation, _RETRIEVAL),
)

_IN_SUITE = ("de", "es", "fr", "it", "ja", "ko", "pl", "pt", "ru", "zh_TW")

SUITE = Suite(
    "stamps",
    "Tux Paint stamps: English, ten other languages, and categories",
    (
        Column("T→I", "English", ("stamps/text-to-image-en",)),
        Column("I→T", "English", ("stamps/image-to-text-en",)),
        Column("I→category", "Pictures", ("stamps/image-to-category",)),
        *(Column(code, "T→I", (f"stamps/text-to-image-{code}",)) for code in _IN_SUITE),
    ),
)
