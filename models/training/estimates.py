"""What a stage costs, from its settings: steps, sequences, hours of a GPU and its memory.

M-BEIR at batch 3,840: 347 steps, 2,664,960 sequences, 26 hours of an H100 and 25 GiB. What is assumed
stands in the constants: published rows, tokens as our frontends count them, an H100 at 40 % of its peak.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase

from harness.recipe import Estimate, Settings

FLOPS = 0.4 * 989e12
"""A second of an H100: NVIDIA's data sheet, dense bfloat16, and the share that a padded step reaches."""
GIB = 2**30

ROWS = {
    "nli/entailment": 275_601,
    "cc3m/text-to-image": 595_375,
    "sharegpt4v-train/text-to-image": 1_246_901,
    **{
        f"{place}/{task}": rows
        for place in ("mbeir-local", "mbeir-global")
        for task, rows in {
            **{"visualnews_task0": 99_903, "visualnews_task3": 100_000, "mscoco_task0": 100_000},
            **{"mscoco_task3": 113_287, "fashion200k_task0": 15_370, "fashion200k_task3": 15_370},
            **{"webqa_task1": 50_000, "webqa_task2": 50_000, "edis_task2": 50_000, "nights_task4": 50_000},
            **{"oven_task6": 150_000, "oven_task8": 157_000, "infoseek_task6": 141_000},
            **{"infoseek_task8": 143_000, "fashioniq_task7": 50_000, "cirr_task7": 50_000},
        }.items()
    },
}
"""Rows that are trained on, as published or, of a part of the published 1,332,790 of M-BEIR, about."""
TOKENS = {"nli/*": 65, "stamps/*": 60, "*": 215}
"""Of a sequence, template and all; about half of the sequences have a picture of 64 to 300 tokens."""
TRAIN_POOL = 5_000_000
"""Documents of M-BEIR's training pool, about."""


@dataclass(frozen=True, slots=True)
class Size:
    """Parameters of a language model, of a vision tower, and of an adapter per dimension of its rank."""

    language: float
    vision: float
    adapter: float


SIZES = {
    "Qwen/Qwen2-VL-7B-Instruct": Size(7.6e9, 0.68e9, 2.5e6),
    "Qwen/Qwen2.5-VL-7B-Instruct": Size(7.6e9, 0.68e9, 2.5e6),
    "Qwen/Qwen3-VL-4B-Instruct": Size(4.0e9, 0.42e9, 2.1e6),
    "Qwen/Qwen3-VL-8B-Instruct": Size(8.2e9, 0.58e9, 2.7e6),
}
_SMALL = Size(5e6, 1e6, 0)
"""A model from scratch."""


def examples(settings: Settings) -> int:
    """The rows of the tasks that the settings name; 0 of one whose size nobody published."""
    return round(sum(ROWS[name] for name in _named(settings)) * float(settings.get("share", 1.0) or 1.0))


def contrastive_cost(settings: Settings) -> Estimate:
    """A query, its positive and its negatives in each example; all of them forward without a graph, then
    forward, again within the checkpoints, and back: 2 + 2 + 2 + 2 operations a parameter and token."""
    return _trained(settings, sequences=2 + int(settings.get("negatives", 0) or 0), operations=8)


def distilled_cost(settings: Settings) -> Estimate:
    """A query and its list in each example."""
    return _trained(settings, sequences=1 + int(settings["depth"] or 0), operations=8)


def answered_cost(settings: Settings) -> Estimate:
    """A sequence for Yes and one for No, and one for a list where it is learned, of two items and more."""
    lists = settings.get("form") == "pointwise+listwise"
    return _trained(settings, sequences=3 if lists else 2, operations=6, longer=3 if lists else 2)


def mined_cost(settings: Settings) -> Estimate:
    """Queries and pool are encoded once, 2 operations a parameter and token, and every query is compared
    with every document."""
    size = _size(settings)
    queries = examples(settings)
    pool = TRAIN_POOL if queries > 1_000_000 else 2 * queries
    operations = (queries + pool) * _tokens(settings) * 2 * (size.language + size.vision)
    operations += 2 * queries * pool * 3584
    return Estimate(0, queries + pool, operations / FLOPS / 3600, _memory(size, settings, training=False))


def scored_cost(settings: Settings) -> Estimate:
    """The reranker reads every candidate of every list behind its query."""
    size = _size(settings)
    pairs = examples(settings) * int(settings["depth"] or 0)
    operations = pairs * _tokens(settings) * 2 * (size.language + size.vision)
    return Estimate(0, pairs, operations / FLOPS / 3600, _memory(size, settings, training=False))


def _trained(settings: Settings, *, sequences: int, operations: int, longer: int = 1) -> Estimate:
    size = _size(settings)
    batch, most = int(settings["batch"] or 1), settings["most_steps"]
    steps = examples(settings) * int(settings["epochs"] or 1) // batch if most is None else int(most)
    passed = steps * batch * sequences
    work = passed * longer * _tokens(settings) * (operations * size.language + 4 * size.vision)
    return Estimate(steps, passed, work / FLOPS / 3600, _memory(size, settings, training=True))


def _named(settings: Settings) -> list[str]:
    found: dict[str, None] = {}
    for glob in str(settings["tasks"]).split(","):
        names = [name for name in ROWS if fnmatchcase(name, glob.strip().removeprefix("!"))]
        if glob.strip().startswith("!"):
            found = {name: None for name in found if name not in names}
        else:
            found |= dict.fromkeys(names)
    return list(found)


def _tokens(settings: Settings) -> float:
    """The mean over the named tasks' rows."""
    names = _named(settings)
    total = sum(ROWS[name] for name in names)
    glob = {name: next(t for g, t in TOKENS.items() if fnmatchcase(name, g)) for name in names}
    return sum(ROWS[name] * glob[name] for name in names) / total if total else TOKENS["*"]


def _size(settings: Settings) -> Size:
    return SIZES.get(str(settings.get("base")), _SMALL)


def _memory(size: Size, settings: Settings, *, training: bool) -> float:
    """GiB: weights in two bytes; of what is trained the weight, its gradient and two moments in four;
    of 32 sequences the states of each layer, and one layer's own activations."""
    weights = 2 * (size.language + size.vision)
    if not training:
        return (weights + 4e9) / GIB
    rank = settings.get("lora_rank")
    learned = 16 * (size.adapter * int(rank) if rank is not None else size.language)
    states = 32 * 400 * (28 * 3584 * 2 + 12 * 18_944)
    return (weights + learned + states) / GIB
