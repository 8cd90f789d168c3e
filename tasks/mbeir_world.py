"""A miniature of M-BEIR in the layout of the original: every file, every oddity, under 3 MB.

It is made of 72 concepts, each a colour, a shape and a number. A picture draws one, a text names
it, and a query asks for what shows or names it:

    {"did": "2:7", "txt": "An encyclopedia speaks of two green rings by the sea.", "modality": "text", …}
    {"qid": "2:3", "query_txt": "Where are two green rings found?", "pos_cand_list": ["2:7", "2:9"], …}

The concepts of an item stand in its `src_content` where the original has that field, and in `WORLD`.
Within one modality the concept of a test query belongs to its task alone (OVEN and InfoSeek share,
as in the original), so that a model that knows concepts and modalities ranks perfectly, but for
what is there on purpose:

    VisualNews, task 0   six pictures of equal bytes, one of them asked for: a tie across rank 5
    WebQA, task 1        two equal texts, one of them relevant
    NIGHTS               the picture voted for and the other one show the same
    OVEN, task 6         the own candidate of the last query shows something else: what answers it
                         lies in InfoSeek's pool
    InfoSeek, task 6     the last query has one positive, and that is OVEN's
"""

from __future__ import annotations

import gzip
import io
import json
import random
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import cycle, islice, zip_longest
from pathlib import Path
from typing import Any

from harness.errors import DataInvalid

from .mbeir_layout import BY_NAME, DATASETS, IMAGES, INSTRUCTIONS, ROOT, ROWS, Row
from .mbeir_verify import MINIATURE
from .miniature import CONCEPTS, PLACES, described, picture

SEED = 2023

SIZES = {
    "visualnews_task0": (8, 24),
    "mscoco_task0": (29, 10),
    "fashion200k_task0": (6, 20),
    "webqa_task1": (8, 30),
    "edis_task2": (8, 30),
    "webqa_task2": (8, 24),
    "visualnews_task3": (8, 24),
    "mscoco_task3": (10, 29),
    "fashion200k_task3": (8, 12),
    "nights_task4": (6, 16),
    "oven_task6": (12, 64),
    "infoseek_task6": (10, 40),
    "fashioniq_task7": (6, 16),
    "cirr_task7": (6, 14),
    "oven_task8": (8, 30),
    "infoseek_task8": (8, 30),
}
"""Test queries and pool of every task: 149 and 413 in all."""

POSITIVES = {
    "fashion200k_task0": (5, 3, 2, 1, 1, 1),
    "webqa_task1": (2, 3, 4, 2, 2, 3, 2, 2),
    "edis_task2": (1, 2, 3, 4, 1, 2, 1, 1),
}
"""How many candidates answer each test query; one elsewhere."""

_LINKS = {"oven_task6": (6, 4, 3, 3, 2, 2, 2, 2, 2, 2, 2, 2), "oven_task8": (6, 3, 2, 2, 2, 2, 2, 2)}
"""How many InfoSeek candidates answer each OVEN query besides its own one."""
_PARTNERS = {"oven_task6": "infoseek_task6", "oven_task8": "infoseek_task8"}
_SHARED = {"infoseek_task6": 5, "infoseek_task8": 4}
"""The first InfoSeek queries ask for concepts of OVEN queries, and OVEN's candidate answers them too."""
_OTHERS = {"val": 4, "train": 6}
"""Queries of every other split, for what no test query asks for."""
_COCO = {"test": 10, "val": 4, "train": 6}
"""COCO's pictures; each has three captions, and in the test split two share one."""

_TEXTS = {
    "VisualNews": "Reporters saw {} {}.",
    "Fashion200K": "Dress with {}, seen {}.",
    "WebQA": "An encyclopedia speaks of {} {}.",
    "EDIS": "The evening news shows {} {}.",
    "OVEN": "Entity: {}, known {}. It is told apart by its colour.",
    "InfoSeek": "Passage about {}, written {}. It has a long history.",
    "MSCOCO": "a photo of {} {}",
}
_ASKS = {
    "VisualNews": "{} appear in the news of the day.",
    "Fashion200K": "dress with {}",
    "WebQA": "Where are {} found?",
    "EDIS": "Officials spoke about {} on Monday.",
    "OVEN": "Which entity has {}?",
    "InfoSeek": "When were {} first described?",
    "FashionIQ": "has {} and is shorter",
    "CIRR": "show {} instead",
}
_NOUNS = {"text": "text", "image": "picture", "image,text": "picture with its text"}


@dataclass(frozen=True, slots=True)
class Thing:
    """A candidate. `concepts` are what it shows: one, or two for a caption of two pictures."""

    did: str
    concepts: tuple[int, ...]
    text: str | None
    image: str | None


@dataclass(frozen=True, slots=True)
class Asked:
    """A query and what answers it."""

    qid: str
    concepts: tuple[int, ...]
    text: str | None
    image: str | None
    positives: tuple[str, ...]
    negatives: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Drawing:
    """A picture; equal drawings have equal bytes."""

    concept: int
    variant: int
    size: tuple[int, int]
    grey: bool = False


@dataclass(frozen=True, slots=True)
class World:
    """All that the files are made from. Pools and queries by task and split; pictures by path."""

    pools: Mapping[tuple[str, str], tuple[Thing, ...]]
    queries: Mapping[tuple[str, str], tuple[Asked, ...]]
    pictures: Mapping[str, Drawing]

    def candidates(self) -> dict[str, Thing]:
        """All candidates of all splits by did."""
        return {thing.did: thing for pool in self.pools.values() for thing in pool}


@dataclass(frozen=True, slots=True, eq=False)
class _Plan:
    """A candidate before it has an id."""

    concept: int
    text: str | None = None
    image: str | None = None
    second: int | None = None
    """The other concept of a caption of two pictures."""

    @property
    def concepts(self) -> tuple[int, ...]:
        return (self.concept,) if self.second is None else (self.concept, self.second)


@dataclass(frozen=True, slots=True)
class _Ask:
    """A query before it has an id."""

    concepts: tuple[int, ...]
    text: str | None
    image: str | None
    positives: tuple[_Plan, ...]
    negatives: tuple[_Plan, ...] = ()


@dataclass(frozen=True, slots=True)
class _Draft:
    """A task before ids: the candidates and the queries of every split."""

    pools: Mapping[str, Sequence[_Plan]]
    asks: Mapping[str, Sequence[_Ask]]


class _Maker:
    """Hands out pictures and texts, no text twice for a data set and concept."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.pictures: dict[str, Drawing] = {}
        self.told: dict[tuple[str, int], int] = {}

    def picture(
        self, row: Row, concept: int, *, size: tuple[int, int] | None = None, grey: bool = False
    ) -> str:
        drawn = self.rng.randint(28, 96), self.rng.randint(28, 96)
        return self.again(row, Drawing(concept, len(self.pictures), size or drawn, grey))

    def again(self, row: Row, drawing: Drawing) -> str:
        """One more file of a drawing."""
        path = _picture_path(row.dataset, len(self.pictures) + 1)
        self.pictures[path] = drawing
        return path

    def text(self, row: Row, concept: int) -> str:
        at = self.told.get((row.dataset, concept), 0)
        self.told[row.dataset, concept] = at + 1
        return _sentence(_TEXTS[row.dataset], concept, PLACES[at])

    def plan(self, row: Row, concept: int, **how: Any) -> _Plan:
        return _Plan(
            concept,
            self.text(row, concept) if "text" in row.wanted else None,
            self.picture(row, concept, **how) if "image" in row.wanted else None,
        )

    def ask(
        self,
        row: Row,
        concept: int,
        positives: Iterable[_Plan],
        negatives: Iterable[_Plan],
        image: str | None,
    ) -> _Ask:
        """A query; composed ones start from a picture of something else, all others from one of this."""
        text = _sentence(_ASKS[row.dataset], concept) if "text" in row.asked else None
        if "image" in row.asked and image is None:
            image = self.picture(row, concept)
        return _Ask((concept,), text, image, tuple(positives), tuple(negatives))


def _sentence(template: str, concept: int, place: str = "") -> str:
    text = template.format(described(concept), place)
    return text[0].upper() + text[1:] if template[0] == "{" else text


@cache
def world() -> World:
    """The one miniature; what it is made of is drawn from SEED."""
    rng = random.Random(SEED)
    maker = _Maker(rng)
    own, free = _concepts(rng.sample(range(CONCEPTS), CONCEPTS))
    drafts = dict(_coco(maker, own["mscoco_task0"], free["image"]))
    for row in ROWS:
        if row.dataset == "OVEN":
            drafts |= _linked(maker, row, BY_NAME[_PARTNERS[row.name]], own, free[row.wanted])
        elif row.name not in drafts and row.dataset != "InfoSeek":
            drafts[row.name] = _ordinary(maker, row, own[row.name], free[row.wanted])
    return _with_ids(rng, {row.name: drafts[row.name] for row in ROWS}, maker.pictures)


def _concepts(order: Sequence[int]) -> tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]]:
    """The concepts of each task's test queries; and for each modality those of none."""
    coco = tuple(order[: _COCO["test"]])
    left = {kind: [c for c in order if kind == "image,text" or c not in coco] for kind in _NOUNS}
    own: dict[str, tuple[int, ...]] = {}
    for row in ROWS:
        shared: tuple[int, ...] = ()
        if row.name in _SHARED:
            shared = own[f"oven_task{row.task_id}"][: _SHARED[row.name]]
        if row.dataset == "MSCOCO":
            own[row.name] = coco
        else:
            new = SIZES[row.name][0] - len(shared)
            own[row.name] = (*shared, *left[row.wanted][:new])
            del left[row.wanted][:new]
    return own, {kind: tuple(concepts) for kind, concepts in left.items()}


def _ordinary(maker: _Maker, row: Row, concepts: Sequence[int], free: Sequence[int]) -> _Draft:
    """A task whose queries find all of their answers in its own pool."""
    counts = POSITIVES.get(row.name, (1,) * len(concepts))
    answers = [[maker.plan(row, c) for _ in range(n)] for c, n in zip(concepts, counts, strict=True)]
    extras = _extras(maker, row, answers)
    composed = row.task_id == 7
    references = [maker.plan(row, c) for c in free[-len(concepts) :]] if composed else []
    made = sum(map(len, answers)) + len(extras) + len(references)
    others = _distractors(maker, row, free, SIZES[row.name][1] - made)
    negatives = {"EDIS": others[:2], "CIRR": others[:1]}.get(row.dataset, [])
    starts = [r.image for r in references] if composed else [None] * len(concepts)
    asks = [
        maker.ask(row, c, found, extras[i : i + 1] if row.dataset == "NIGHTS" else negatives, start)
        for i, (c, found, start) in enumerate(zip(concepts, answers, starts, strict=True))
    ]
    if row.name == "visualnews_task0":
        asks[1:] = [_edged(ask, edge) for ask, edge in zip(asks[1:], (*_EDGES, None, None), strict=True)]
    start = references[0].image if composed else None
    later = {split: _later(maker, row, others, n, start) for split, n in _OTHERS.items()}
    pool = [*(plan for found in answers for plan in found), *extras, *references, *others]
    return _Draft({"test": pool}, {"test": asks, **later})


def _extras(maker: _Maker, row: Row, answers: Sequence[Sequence[_Plan]]) -> list[_Plan]:
    """What shows the same as an answer and is none."""
    first = answers[0][0]
    if row.name == "visualnews_task0":
        drawing = maker.pictures[str(first.image)]
        return [_Plan(first.concept, None, maker.again(row, drawing)) for _ in range(5)]
    if row.name == "webqa_task1":
        return [_Plan(first.concept, first.text)]
    if row.name == "nights_task4":
        return [maker.plan(row, found[0].concept) for found in answers]
    return []


_EDGES = (
    '"{}" was the headline',
    "{}\rand\r more",
    "{} without a stop",
    "is it {}, or not?",
    "überall {}",
)
"""Texts that `formatted` changes, or must not."""


def _edged(ask: _Ask, edge: str | None) -> _Ask:
    return ask if edge is None else replace(ask, text=edge.format(described(ask.concepts[0])))


def _distractors(maker: _Maker, row: Row, free: Sequence[int], count: int) -> list[_Plan]:
    """Candidates that no test query asks for: the first ten concepts once, the others in turn."""
    concepts = islice((*free[:10], *islice(cycle(free[10:]), count)), count)
    sizes = {"oven_task8": (2800, 14), "infoseek_task8": (400, 1)}
    plans = []
    for at, concept in enumerate(concepts):
        last = at == count - 1
        how = {"size": sizes[row.name]} if last and row.name in sizes else {}
        plans.append(maker.plan(row, concept, **how, grey=last and row.dataset == "Fashion200K"))
    if row.name == "visualnews_task3":
        odd = (*_EDGES, "")
        plans[-len(odd) :] = [
            replace(plan, text=text.format(described(plan.concept)))
            for plan, text in zip(plans[-len(odd) :], odd, strict=True)
        ]
    if row.name == "oven_task6":
        plans[-1] = replace(plans[-1], text=f"{plans[-1].text} {'It goes on and on. ' * 300}".strip())
    return plans


def _later(
    maker: _Maker, row: Row, plans: Sequence[_Plan], count: int, image: str | None = None
) -> list[_Ask]:
    """Queries of another split, each for all of `plans` that share a concept."""
    concepts = list(dict.fromkeys(plan.concept for plan in plans))
    # Training asks for other things than validation, where there are enough.
    start = 0 if count == _OTHERS["val"] else _OTHERS["val"]
    chosen = islice(cycle(concepts), start, start + count)
    return [
        maker.ask(row, c, found := [p for p in plans if p.concept == c], _beside(row, plans, found), image)
        for c in chosen
    ]


def _beside(row: Row, plans: Sequence[_Plan], found: Sequence[_Plan]) -> list[_Plan]:
    if row.dataset not in ("EDIS", "CIRR", "NIGHTS"):
        return []
    return [plan for plan in plans if plan not in found][:1]


def _coco(maker: _Maker, concepts: Sequence[int], free: Sequence[int]) -> Iterator[tuple[str, _Draft]]:
    """Captions ask for pictures and pictures for captions, in pools of every split."""
    to_image, to_text = BY_NAME["mscoco_task0"], BY_NAME["mscoco_task3"]
    rest = iter(free)
    shown = {split: concepts if split == "test" else list(islice(rest, n)) for split, n in _COCO.items()}
    pictures = {split: [maker.plan(to_image, c) for c in cs] for split, cs in shown.items()}
    captions: dict[str, list[tuple[_Plan, tuple[_Plan, ...]]]] = {}
    for split, plans in pictures.items():
        captions[split] = [(maker.plan(to_text, p.concept), (p,)) for p in plans for _ in range(3)]
    first, second = pictures["test"][:2]
    shared = replace(captions["test"][0][0], second=second.concept, text="a photo of some shapes")
    captions["test"][0] = (shared, (first, second))
    del captions["test"][3]
    yield (
        to_image.name,
        _Draft(
            pictures,
            {s: [_Ask(c.concepts, c.text, None, found) for c, found in told] for s, told in captions.items()},
        ),
    )
    yield (
        to_text.name,
        _Draft(
            {split: [caption for caption, _ in told] for split, told in captions.items()},
            {
                split: [
                    _Ask((p.concept,), None, p.image, tuple(c for c, of in captions[split] if p in of))
                    for p in plans
                ]
                for split, plans in pictures.items()
            },
        ),
    )


def _linked(
    maker: _Maker, oven: Row, infoseek: Row, own: Mapping[str, Sequence[int]], free: Sequence[int]
) -> dict[str, _Draft]:
    """OVEN and InfoSeek: each query of the one has answers in the pool of the other."""
    shared = _SHARED[infoseek.name]
    asked, new = own[oven.name], list(own[infoseek.name][shared:])
    plans = [maker.plan(oven, c) for c in asked]
    links = []
    for at, (plan, n) in enumerate(zip(plans, _LINKS[oven.name], strict=True)):
        # The same entity may stand in both pools, word for word.
        same = [_Plan(plan.concept, plan.text, plan.image)] if at < shared else []
        links.append([*same, *(maker.plan(infoseek, plan.concept) for _ in range(n - len(same)))])
    extra = []
    if oven.name == "oven_task6":
        plans[-1] = maker.plan(oven, free[-1])
        extra = [maker.plan(oven, new[-1])]
    answers = [maker.plan(infoseek, c) for c in new[: len(new) - len(extra)]]
    more = _distractors(maker, oven, free, SIZES[oven.name][1] - len(plans) - len(extra))
    linked = [plan for found in links for plan in found]
    others = _distractors(maker, infoseek, free, SIZES[infoseek.name][1] - len(linked) - len(answers))
    asks = [maker.ask(oven, c, (p, *ls), (), None) for c, p, ls in zip(asked, plans, links, strict=True)]
    asks[1] = replace(asks[1], text="")
    seeks = [
        maker.ask(infoseek, p.concept, (*ls, p), (), None)
        for p, ls in zip(plans[:shared], links[:shared], strict=True)
    ] + [maker.ask(infoseek, p.concept, (p,), (), None) for p in (*answers, *extra)]
    later = {split: _later(maker, oven, [*more, *others], n) for split, n in _OTHERS.items()}
    sought = {split: _later(maker, infoseek, others, n) for split, n in _OTHERS.items()}
    return {
        oven.name: _Draft({"test": [*plans, *extra, *more]}, {"test": asks, **later}),
        infoseek.name: _Draft({"test": [*linked, *answers, *others]}, {"test": seeks, **sought}),
    }


def _with_ids(rng: random.Random, drafts: Mapping[str, _Draft], pictures: Mapping[str, Drawing]) -> World:
    """Dids count on through all tasks and splits of a data set, qids begin anew in every split."""
    dids: dict[_Plan, str] = {}
    qids: dict[tuple[str, str, int], str] = {}
    for dataset, (number, _) in DATASETS.items():
        mine = {name: draft for name, draft in drafts.items() if BY_NAME[name].dataset == dataset}
        shuffled = [rng.sample(p, len(p)) for draft in mine.values() for p in draft.pools.values()]
        dids |= {plan: f"{number}:{n}" for n, plan in enumerate(_alternating(shuffled), 1)}
        for split in _COCO:
            places = [[(name, i) for i in range(len(draft.asks[split]))] for name, draft in mine.items()]
            qids |= {(name, split, i): f"{number}:{n}" for n, (name, i) in enumerate(_alternating(places), 1)}
    by_number = sorted(dids, key=lambda plan: int(dids[plan].partition(":")[2]))
    return World(
        {
            (name, split): tuple(
                Thing(dids[p], p.concepts, p.text, p.image) for p in by_number if p in set(plans)
            )
            for name, draft in drafts.items()
            for split, plans in draft.pools.items()
        },
        {
            (name, split): tuple(
                Asked(
                    qids[name, split, i],
                    ask.concepts,
                    ask.text,
                    ask.image,
                    tuple(dids[p] for p in ask.positives),
                    tuple(dids[p] for p in ask.negatives),
                )
                for i, ask in enumerate(asks)
            )
            for name, draft in drafts.items()
            for split, asks in draft.asks.items()
        },
        pictures,
    )


def _alternating(lists: Iterable[Sequence[Any]]) -> Iterator[Any]:
    return (value for turn in zip_longest(*lists) for value in turn if value is not None)


def _picture_path(dataset: str, n: int) -> str:
    """Where the original keeps such a picture."""
    return (
        "mbeir_images/"
        + {
            "VisualNews": f"visualnews_images/guardian/images/{n // 100:04}/{n:03}.jpg",
            "Fashion200K": f"fashion200k_images/women/dresses/{n:08}/{n:08}_0.jpeg",
            "WebQA": f"webqa_images/{30000000 + n}.jpg",
            "EDIS": f"edis_images/usa_today/{n // 100:04}/{n:06}.jpg",
            "NIGHTS": f"nights_images/distort/{n // 10:03}/{n:03}_{n % 2}.jpg",
            "OVEN": f"oven_images/{n // 10:02}/oven_{n:08}.jpg",
            "InfoSeek": f"oven_images/wikipedia_images_full/Q{n:03}/Q{n:06}.jpg",
            "FashionIQ": f"fashioniq_images/B{n:09}.jpg",
            "CIRR": f"cirr_images/train/{n % 100:02}/train-{n}-0-img0.jpg",
            "MSCOCO": f"mscoco_images/val2014/COCO_val2014_{n:012}.jpg",
        }[dataset]
    )


def mini(folder: Path) -> None:
    """Write the miniature below the data root `folder`; one that is there is left alone.

    Raises DataInvalid where the real data set is there.
    """
    if (folder / MINIATURE).exists():
        return
    pictures = folder / IMAGES  # multi-turn FashionIQ's miniature may have put some there
    if (folder / ROOT).exists() and any(p != pictures for p in (folder / ROOT).iterdir()):
        raise DataInvalid(f"{folder / ROOT} is there and no miniature: choose another folder")
    for path, content in files().items():
        place = folder / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)


@cache
def files() -> Mapping[str, bytes]:
    """The content of every file by its path below the data root; the marker comes last."""
    made = world()
    pictures = {(ROOT / path).as_posix(): _jpeg(drawing) for path, drawing in made.pictures.items()}
    return {
        **{path.as_posix(): text.encode() for path, text in _texts(made)},
        **pictures,
        **_archive(pictures),
        MINIATURE.as_posix(): json.dumps(_counts(made), indent=1).encode(),
    }


def _texts(made: World) -> Iterator[tuple[Path, str]]:
    yield INSTRUCTIONS, _instructions()
    for split in _COCO:
        every = {row: made.queries[row.name, split] for row in ROWS}
        for path in dict.fromkeys(row.query_file(split) for row in ROWS):
            yield path, _jsonl(_query_rows(every, split, path))
        for path in dict.fromkeys(row.qrels_file(split) for row in ROWS):
            yield path, "".join(_qrel_lines(every, split, path))
        if split != "test":
            yield ROOT / f"cand_pool/global/mbeir_union_{split}_cand_pool.jsonl", _jsonl(_used(made, split))
    for row in ROWS:
        yield row.pool_file("test"), _jsonl(_thing_row(row, t) for t in made.pools[row.name, "test"])
        if (row.name, "val") in made.pools:
            yield row.pool_file("val"), _jsonl(_thing_row(row, t) for t in made.pools[row.name, "val"])
    every_test = [_thing_row(row, t) for row in ROWS for t in made.pools[row.name, "test"]]
    yield ROOT / "cand_pool/global/mbeir_union_test_cand_pool.jsonl", _jsonl(sorted(every_test, key=_by_did))
    yield ROOT / "query/union_val/mbeir_union_val.jsonl", _jsonl(_union(made, "val"))
    yield ROOT / "query/union_train/mbeir_union_up_train.jsonl", _jsonl(_upsampled(made))


def _query_rows(every: Mapping[Row, Sequence[Asked]], split: str, path: Path) -> list[dict[str, Any]]:
    """The rows of one query file; in training it mixes the tasks of a data set."""
    rows = [
        _query_row(row, a) for row, asked in every.items() if row.query_file(split) == path for a in asked
    ]
    return sorted(rows, key=lambda row: int(row["qid"].partition(":")[2]))


def _query_row(row: Row, asked: Asked) -> dict[str, Any]:
    """Image-only queries of VisualNews lack the text's key, elsewhere it is null."""
    made = {
        "qid": asked.qid,
        "query_txt": asked.text,
        "query_img_path": asked.image,
        "query_modality": row.asked,
        "query_src_content": json.dumps({"concepts": asked.concepts}),
        "pos_cand_list": list(asked.positives),
        "neg_cand_list": list(asked.negatives),
        "task_id": row.task_id,
    }
    if row.name == "visualnews_task3":
        del made["query_txt"]
    if row.dataset == "WebQA":
        del made["query_img_path"]
    return made


def _thing_row(row: Row, thing: Thing) -> dict[str, Any]:
    """CIRR's pool once lacked the key of the text, VisualNews' lacks that of the source."""
    made = {
        "did": thing.did,
        "txt": thing.text,
        "img_path": thing.image,
        "modality": row.wanted,
        "src_content": json.dumps({"concepts": thing.concepts}),
    }
    if row.dataset == "CIRR":
        del made["txt"]
    if row.dataset == "VisualNews":
        del made["src_content"]
    return made


def _qrel_lines(every: Mapping[Row, Sequence[Asked]], split: str, path: Path) -> Iterator[str]:
    for row, asked in every.items():
        if row.qrels_file(split) == path:
            yield from (f"{a.qid} 0 {did} 1 {row.task_id}\n" for a in asked for did in a.positives)


def _used(made: World, split: str) -> list[dict[str, Any]]:
    """The candidates that the queries of a split name, each once."""
    asked = [a for (_, s), queries in made.queries.items() if s == split for a in queries]
    named = {did for a in asked for did in (*a.positives, *a.negatives)}
    rows = {
        thing.did: _thing_row(BY_NAME[name], thing)
        for (name, _), pool in made.pools.items()
        for thing in pool
        if thing.did in named
    }
    return sorted(rows.values(), key=_by_did)


def _by_did(row: Mapping[str, Any]) -> tuple[int, int]:
    dataset, _, n = row["did"].partition(":")
    return int(dataset), int(n)


def _union(made: World, split: str) -> list[dict[str, Any]]:
    return [_query_row(row, a) for row in ROWS for a in made.queries[row.name, split]]


def _upsampled(made: World) -> list[dict[str, Any]]:
    """All training queries, those of the five small data sets repeated with replacement, shuffled."""
    rng = random.Random(SEED)
    rows = []
    for dataset in DATASETS:
        mine = [_query_row(r, a) for r in ROWS if r.dataset == dataset for a in made.queries[r.name, "train"]]
        small = dataset in ("WebQA", "EDIS", "NIGHTS", "FashionIQ", "CIRR")
        rows += [*mine, *(rng.choices(mine, k=2 * len(mine)) if small else ())]
    return rng.sample(rows, len(rows))


def _jsonl(rows: Iterable[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _instructions() -> str:
    """Four prompts a task in words of our own, some without a capital or a stop; NIGHTS has three."""
    head = ("query_modality", "cand_modality", "dataset_name", "dataset_id")
    lines = ["\t".join((*head, *(f"prompt_{n}" for n in range(1, 5))))]
    for row in ROWS:
        asked, wanted = _NOUNS[row.asked], _NOUNS[row.wanted]
        prompts = (
            f"Find the {wanted} in {row.dataset} that answers the given {asked}.",
            f"show me a {wanted} from {row.dataset} for this {asked}",
            f"Which {wanted} of {row.dataset} belongs to the {asked}?",
            "" if row.dataset == "NIGHTS" else f"I look for a {row.dataset} {wanted} that fits my {asked}.",
        )
        lines.append("\t".join((row.asked, row.wanted, row.dataset, str(row.dataset_id), *prompts)))
    return "\n".join(lines) + "\n"


def _counts(made: World) -> dict[str, dict[str, int]]:
    """The miniature's own expected counts, for `verify`."""
    counts = {}
    for row in ROWS:
        asked, pool = made.queries[row.name, "test"], made.pools[row.name, "test"]
        positives = [did for a in asked for did in a.positives]
        there = {thing.did for thing in pool}
        counts[row.name] = {
            "queries": len(asked),
            "pool": len(pool),
            "qrels": len(positives),
            "outside": sum(did not in there for did in positives),
        }
    return counts


def _jpeg(drawing: Drawing) -> bytes:
    return picture(drawing.concept, variant=drawing.variant, size=drawing.size, grey=drawing.grey)


def _archive(pictures: Mapping[str, bytes]) -> dict[str, bytes]:
    """The pictures as the original ships them: one archive in parts, here two."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for path, content in pictures.items():
            about = tarfile.TarInfo(Path(path).relative_to(ROOT).as_posix())
            about.size = len(content)
            tar.addfile(about, io.BytesIO(content))
    archive = gzip.compress(packed.getvalue(), mtime=0)
    half = len(archive) // 2
    name = (ROOT / "mbeir_images.tar.gz").as_posix()
    return {f"{name}.part-00": archive[:half], f"{name}.part-01": archive[half:]}
