"""Tasks, the protocols they are scored under, and the suites that put them in columns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from harness.collection import Collection, Qrels
from harness.errors import DataInvalid, DataMissing
from harness.metrics import Metric
from harness.run import Run


@dataclass(frozen=True, slots=True)
class Protocol:
    """The task-side choices under which a task is scored; every deviation is one of these."""

    split: str | None = None
    """None: the split that the task is published on."""
    profile: str = "default"
    """Whose prompts: the task's own, or those of a named code base."""
    instructions: str = "hash"
    """hash, first, none or 1 to 4: which of several instructions a query gets."""
    seed: int = 0
    limit: int | None = None
    skip_broken: bool = False
    compat: tuple[str, ...] = ()


def only(
    task: str,
    protocol: Protocol,
    *,
    splits: Sequence[str] = ("test",),
    profiles: Sequence[str] = ("default",),
) -> str:
    """The split that the protocol asks for (the first, where it names none).

    Raises DataInvalid for a split or profile that the task does not have, instead of scoring
    another one under that name.
    """
    split = splits[0] if protocol.split is None else protocol.split
    asked = (("split", "--split", split, splits), ("profile", "--prompt-profile", protocol.profile, profiles))
    for kind, flag, value, known in asked:
        if value not in known:
            raise DataInvalid(f"{task} has no {kind} {value!r}: use {flag} {' or '.join(known)}")
    return split


@dataclass(frozen=True, slots=True)
class Need:
    """A file or folder that a task reads, and where to get it.

    `path` is relative to the data root; an absolute one (inside an installed package) stands for
    itself. `otherwise` are further places that serve as well.
    """

    path: Path
    source: str
    otherwise: tuple[Path, ...] = ()
    media: bool = False
    """A folder of pictures or clips: it must be there, but only what is used of it is read."""

    def find(self, data_root: Path) -> Path | None:
        """Where it lies, or None. The case of the name does not matter where it is not exact."""
        for place in (data_root / self.path, *self.otherwise):
            if place.exists():
                return place
        if not self.path.is_absolute():
            return _any_case(data_root, self.path.parts)
        return None

    def require(self, data_root: Path) -> Path:
        """Where it lies; raises DataMissing."""
        found = self.find(data_root)
        if found is None:
            raise DataMissing(f"{data_root / self.path} is missing: {self.source}")
        return found


def _any_case(folder: Path, parts: Sequence[str]) -> Path | None:
    for part in parts:
        try:
            matches = sorted(p for p in folder.iterdir() if p.name.lower() == part.lower())
        except OSError:
            return None
        if not matches:
            return None
        folder = matches[0]
    return folder


@dataclass(frozen=True, slots=True)
class Task:
    """One retrieval problem. `metrics[0]` is the headline; scores follow the `ties` rule.

    `load(data_root, protocol)` builds the collection without decoding media. `needs(protocol)`
    lists the files it reads: their content fixes the task's side of a score. `mini(folder)`
    writes a faithful miniature of the original layout into an empty data root, and returns the
    true qrels where `load` hides them.
    """

    name: str
    title: str
    load: Callable[[Path, Protocol], Collection]
    metrics: tuple[Metric, ...]
    needs: Callable[[Protocol], Sequence[Need]]
    mini: Callable[[Path], Qrels | None]
    source: str
    licence: str
    version: int = 1
    derived_from: tuple[str, ...] = ()
    ties: Literal["pessimistic", "pool-order"] = "pessimistic"
    verify: Callable[[Path, Protocol, bool], Iterator[str]] | None = None
    """`verify(data_root, protocol, deep)` gives a line for each thing wrong with the files; deep
    reads everything and looks for every picture."""
    analyse: Callable[[Collection, Run], Mapping[str, Any]] | None = None
    """What else a run of this task tells, kept as `analysis` in the result."""

    @property
    def headline(self) -> Metric:
        return self.metrics[0]

    def fingerprint(self, protocol: Protocol, files: Mapping[str, str]) -> dict[str, Any]:
        """The task's side of a score, whose digest is the protocol_id.

        `files` are the digests of what the task reads; queries, pool, qrels and their counts are
        functions of those and of `version`, so that a stored score is found without parsing.
        """
        return {
            "task": self.name,
            "version": self.version,
            "ties": self.ties,
            "split": protocol.split,
            "profile": protocol.profile,
            "instructions": protocol.instructions,
            "seed": protocol.seed,
            "limit": protocol.limit,
            "skip_broken": protocol.skip_broken,
            "compat": list(protocol.compat),
            "files": dict(files),
        }


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a leaderboard: a task's metric (None: its headline), or a mean of several."""

    title: str
    group: str
    tasks: tuple[str, ...]
    metric: Metric | None = None
    reduce: Literal["mean"] = "mean"
    in_average: bool = True


@dataclass(frozen=True, slots=True)
class Suite:
    """Columns that belong in one table."""

    name: str
    title: str
    columns: tuple[Column, ...]

    @property
    def tasks(self) -> tuple[str, ...]:
        """The names of all tasks, each once, in column order."""
        return tuple(dict.fromkeys(t for column in self.columns for t in column.tasks))
