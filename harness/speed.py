"""Speed: how long a model takes on a device, from what earlier runs took, a probe, or a rule of thumb."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

Part = tuple[Mapping[str, int], float]
"""What was encoded by itself: tokens by modality, and the seconds that they took."""

ENCODING = ("wait", "embed", "store")
"""The stages of a run that together are its encoding; preparation runs beside them, or within wait."""
PULL = 0.2
"""How much a speed is held to where its fit begins, beside a part whose time is off by its all."""
FAR = 10.0
"""A fit moves a speed by no greater factor."""
RECENT = 20
"""So many of the newest runs are looked at."""
TOKENS = {"cpu": 2_000.0, "cuda": 29_000.0}
"""Tokens a second: a small text encoder on two cores; Qwen2-VL-7B at 57 % of an H200's matrix product."""
MULTIPLY_ADDS = {"cpu": 1.8e11, "cuda": 1.5e14}
"""Of the search, a second: measured on two cores, assumed of a GPU."""


@dataclass(frozen=True, slots=True)
class Speed:
    """What to expect of the next run. `within` is the factor by which it may err either way.

    tokens: a second, by modality. part: seconds of each list of items beside its tokens. load: seconds.
    search: multiply-adds a second, and never less than `search_least` seconds in all. dim: columns of a
    row, None where not known.
    """

    source: str
    within: float
    tokens: Mapping[str, float]
    search: float
    search_least: float = 0.0
    part: float = 0.0
    load: float = 0.0
    dim: int | None = None
    batch_tokens: int | None = None
    """The budget that a probe found best, None where there was none."""

    def seconds(
        self, tokens: Mapping[str, int], multiply_adds: int, *, parts: int, load: bool
    ) -> dict[str, float]:
        """Seconds of one device by stage; a modality never seen goes at the slowest known rate."""
        slowest = min(self.tokens.values())
        encode = parts * self.part + sum(n / self.tokens.get(m, slowest) for m, n in tokens.items())
        return {
            "load": self.load if load else 0.0,
            "encode": encode,
            "search": max(self.search_least, multiply_adds / self.search) if multiply_adds else 0.0,
        }


def assumed(device: str) -> Speed:
    """A rule of thumb, for models of which nothing is known."""
    kind = "cuda" if device.startswith("cuda") else "cpu"
    return Speed("assumed, nothing measured yet", 10.0, {"any": TOKENS[kind]}, MULTIPLY_ADDS[kind])


def actual(seconds: Mapping[str, float]) -> dict[str, float]:
    """What a run took, in the stages of `Speed.seconds`."""
    encode = sum(seconds.get(stage, 0.0) for stage in ENCODING)
    return {"load": seconds.get("load", 0.0), "encode": encode, "search": seconds.get("search", 0.0)}


def recorded(folder: Path, device: str, *, compiled: bool = False) -> Speed | None:
    """The speed of the newest runs on a device that results below `folder`, one identity's, tell of.

    None where no such run has encoded anything. What ran on other machines does not count, nor what was
    compiled where this is not.
    """
    runs = [
        run
        for run in _newest(folder)
        if run.get("device") == device and "encoded_on" not in run and run.get("compiled", False) == compiled
    ]
    rates, part = _fitted([each for run in runs for each in _parts(run) if each[0] and each[1] > 0])
    if not rates:
        return None
    loads = [run["seconds"]["load"] for run in runs if "load" in run["seconds"]]
    searches = [
        (run["work"]["multiply_adds"], run["seconds"]["search"])
        for run in runs
        if run["seconds"].get("search") and run["work"]["multiply_adds"]
    ]
    largest = max(searches, default=(MULTIPLY_ADDS["cpu"], 1.0))
    return Speed(
        source="previous runs",
        within=1.25,
        tokens=rates,
        search=largest[0] / largest[1],
        search_least=min((seconds for _, seconds in searches), default=0.0),
        part=part,
        load=median(loads) if loads else 0.0,
        dim=next((run["work"]["dim"] for run in runs), None),
        batch_tokens=next((run["batch_tokens"] for run in runs if "batch_tokens_found" in run), None),
    )


def probed(parts: Sequence[Part], *, load: float, dim: int | None, device: str) -> Speed:
    """The speed that a few items showed: tokens by modality and the seconds that they took."""
    search = assumed(device).search
    rates, part = _fitted(parts)
    return Speed("a probe of this device", 1.5, rates, search, part=part, load=load, dim=dim)


def _parts(run: Mapping[str, Any]) -> list[Part]:
    """What a run encoded, part by part; older results tell of the whole alone."""
    if "parts" not in run["work"]:
        return [(run["work"]["tokens"], actual(run["seconds"])["encode"])]
    return [(part["tokens"], part["seconds"]) for part in run["work"]["parts"]]


def _fitted(parts: Sequence[Part]) -> tuple[dict[str, float], float]:
    """Tokens a second by modality, and the seconds that any part costs, however small: those that
    err least of what each part took, from rates as if all tokens cost alike and a part nothing."""
    alike = _alike(parts)
    if not alike:
        return {}, 0.0
    names, least = sorted(alike), min(seconds for _, seconds in parts)
    rows = np.array([[*(tokens.get(m, 0) / alike[m] for m in names), least] for tokens, _ in parts])
    took = np.array([seconds for _, seconds in parts])
    start = np.array([1.0] * len(names) + [0.0])
    for used in (len(start), len(names)):  # a part that seems to cost less than nothing costs nothing
        by = np.vstack([rows[:, :used] / took[:, None], PULL * np.eye(used)])
        said = np.concatenate([np.ones(len(took)), PULL * start[:used]])
        found = start.copy()
        found[:used] = np.linalg.lstsq(by, said, rcond=None)[0]
        if found[-1] >= 0:
            break
    factors = found[:-1].clip(1 / FAR, FAR).tolist()
    return {m: alike[m] / factor for m, factor in zip(names, factors, strict=True)}, found[-1] * least


def _alike(parts: Iterable[Part]) -> dict[str, float]:
    """Tokens a second by modality: the seconds of a part go to its modalities by their tokens."""
    tokens: dict[str, float] = {}
    seconds: dict[str, float] = {}
    for counts, spent in parts:
        total = sum(counts.values())
        for modality, n in counts.items():
            tokens[modality] = tokens.get(modality, 0.0) + n
            seconds[modality] = seconds.get(modality, 0.0) + spent * n / total
    return {modality: n / seconds[modality] for modality, n in tokens.items() if seconds[modality] > 0}


def _newest(folder: Path) -> list[dict[str, Any]]:
    """The provenance of the newest results with a record of their work."""
    paths = [path for path in folder.glob("*/*.json") if "." not in path.stem]
    found = []
    for path in sorted(paths, key=lambda path: path.stat().st_mtime_ns, reverse=True)[:RECENT]:
        try:
            run = json.loads(path.read_bytes())["provenance"]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if isinstance(run, dict) and "work" in run:
            found.append(run)
    return found
