"""Speed: how long a model takes on a device, from what earlier runs took, a probe, or a rule of thumb."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ENCODING = ("wait", "embed", "store")
"""The stages of a run that together are its encoding; preparation runs beside them, or within wait."""
RECENT = 20
"""So many of the newest runs are looked at."""
TOKENS = {"cpu": 2_000.0, "cuda": 29_000.0}
"""Tokens a second: a small text encoder on two cores; Qwen2-VL-7B at 57 % of an H200's matrix product."""
MULTIPLY_ADDS = {"cpu": 1.8e11, "cuda": 1.5e14}
"""Of the search, a second: measured on two cores, assumed of a GPU."""


@dataclass(frozen=True, slots=True)
class Speed:
    """What to expect of the next run. `within` is the factor by which it may err either way.

    tokens: a second, by modality. load: seconds. search: multiply-adds a second, and never less
    than `search_least` seconds in all. dim: columns of a row, None where not known.
    """

    source: str
    within: float
    tokens: Mapping[str, float]
    search: float
    search_least: float = 0.0
    load: float = 0.0
    dim: int | None = None
    batch_tokens: int | None = None
    """The budget that a probe found best, None where there was none."""

    def seconds(self, tokens: Mapping[str, int], multiply_adds: int, *, load: bool) -> dict[str, float]:
        """Seconds of one device by stage; a modality never seen goes at the slowest known rate."""
        slowest = min(self.tokens.values())
        return {
            "load": self.load if load else 0.0,
            "encode": sum(n / self.tokens.get(modality, slowest) for modality, n in tokens.items()) + 0.0,
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


def recorded(folder: Path, device: str) -> Speed | None:
    """The speed of the newest runs on a device that results below `folder`, one identity's, tell of.

    None where no such run has encoded anything. What ran on other machines does not count.
    """
    runs = [run for run in _newest(folder) if run.get("device") == device and "encoded_on" not in run]
    encoded = [(run["work"]["tokens"], actual(run["seconds"])["encode"]) for run in runs]
    rates = _rates([(tokens, seconds) for tokens, seconds in encoded if tokens and seconds > 0])
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
        load=sum(loads) / len(loads) if loads else 0.0,
        dim=next((run["work"]["dim"] for run in runs), None),
        batch_tokens=next((run["batch_tokens"] for run in runs if "batch_tokens_found" in run), None),
    )


def probed(
    parts: Sequence[tuple[Mapping[str, int], float]], *, load: float, dim: int | None, device: str
) -> Speed:
    """The speed that a few items showed: tokens by modality and the seconds that they took."""
    search = assumed(device).search
    return Speed("a probe of this device", 1.5, _rates(parts), search, load=load, dim=dim)


def _rates(parts: Iterable[tuple[Mapping[str, int], float]]) -> dict[str, float]:
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
