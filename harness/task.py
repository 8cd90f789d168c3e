"""Tasks, the protocols they are scored under, and the suites that put them in columns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal

from harness.collection import Collection, Qrels
from harness.errors import DataInvalid, DataMissing, NoSuchInstruction
from harness.metrics import Metric
from harness.run import Run

MINIATURE = "miniature.json"
"""A file of this name in a data set's folder says that it is a miniature: its counts are its own.
A data set that is one file has it beside itself, as in `pairs.csv.miniature.json`."""


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
    compat: Sequence[str] = (),
) -> str:
    """The split that the protocol asks for (the first, where it names none).

    Raises DataInvalid for a split, profile or compat switch that the task does not have, instead
    of scoring another one under that name.
    """
    split = splits[0] if protocol.split is None else protocol.split
    asked = (("split", "--split", split, splits), ("profile", "--prompt-profile", protocol.profile, profiles))
    for kind, flag, value, known in asked:
        if value not in known:
            raise DataInvalid(f"{task} has no {kind} {value!r}: use {flag} {' or '.join(known)}")
    for switch in protocol.compat:
        if switch not in compat:
            known_ones = f"known: {', '.join(compat)}" if compat else "it has none"
            raise DataInvalid(f"{task} knows no compat {switch!r}: {known_ones}")
    return split


def choose(task: str, protocol: Protocol, texts: Sequence[str]) -> tuple[str, ...]:
    """Those of a task's instructions that a query's one is drawn from under the protocol's policy.

    Raises NoSuchInstruction for a number that the task does not have, DataInvalid for an unknown policy.
    """
    policy, n = protocol.instructions, len(texts)
    numbers = "1" if n == 1 else f"1 to {n}"
    if policy == "none":
        return ()
    if policy == "hash":
        return tuple(texts)
    if policy != "first" and not policy.isdecimal():
        raise DataInvalid(
            f"{task} knows no instruction policy {policy!r}:"
            f" use --instructions hash, first, none or {numbers}"
        )
    at = 1 if policy == "first" else int(policy)
    if not 1 <= at <= n:
        has = "one instruction" if n == 1 else f"{n} instructions"
        raise NoSuchInstruction(f"{task} has {has}, no number {at}: use --instructions {numbers}")
    return (texts[at - 1],)


def draw(protocol: Protocol, task: str, query: str, texts: Sequence[str]) -> str | None:
    """The one of these that a query gets, the same on every machine and in every process."""
    if not texts:
        return None
    name = f"{protocol.seed}:{task}:{query}"
    return texts[int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "big") % len(texts)]


def one_instruction(task: str, protocol: Protocol, text: str | None) -> str | None:
    """What a task with a single instruction says under the protocol's policy.

    Raises NoSuchInstruction for number 2 and beyond, DataInvalid for an unknown policy.
    """
    return text if choose(task, protocol, ("",)) else None


@dataclass(frozen=True, slots=True)
class Hub:
    """Where a need lies on the Hugging Face hub: a data set repository, and globs of its files.

    The files land below the data root under the names that they have in the repository, `into` a
    folder of it; archives (zip, tar) among them are unpacked there.
    """

    repo: str
    files: tuple[str, ...]
    into: Path = Path()


@dataclass(frozen=True, slots=True)
class Fact:
    """A count that the published data have: one of `checked`'s, such as queries or candidates.

    evidence: V seen in the files or in an official output, L from the literature.
    """

    count: str
    value: int
    evidence: Literal["V", "L"]


@dataclass(frozen=True, slots=True)
class Need:
    """A file or folder that a task reads, and where to get it.

    `path` is relative to the data root; an absolute one (inside an installed package) stands for
    itself. `otherwise` are further places that serve as well, also relative or absolute.
    """

    path: Path
    source: str
    """How to get it by hand, on one line."""
    otherwise: tuple[Path, ...] = ()
    media: bool = False
    """A folder of pictures or clips: it must be there, but only what is used of it is read."""
    hub: Hub | None = None
    """Where `harness data fetch` gets it; None: only by hand."""

    @property
    def remedy(self) -> str:
        """How to get it, on one line."""
        return self.source if self.hub is None else f"harness data fetch, or {self.source}"

    def find(self, data_root: Path) -> Path | None:
        """Where it lies, or None. The case of the name does not matter where it is not exact."""
        for place in (self.path, *self.otherwise):
            if (data_root / place).exists():
                return data_root / place
        if not self.path.is_absolute():
            return _any_case(data_root, self.path.parts)
        return None

    def require(self, data_root: Path) -> Path:
        """Where it lies; raises DataMissing."""
        found = self.find(data_root)
        if found is None:
            raise DataMissing(f"{data_root / self.path} is missing: {self.remedy}")
        return found


def missing(needs: Iterable[Need], data_root: Path) -> str | None:
    """One line that lists all of these that are not there, and where to get them; None where all are."""
    gone = {str(data_root / need.path): need.remedy for need in needs if need.find(data_root) is None}
    if not gone:
        return None
    by_source: dict[str, list[str]] = {}
    for path, source in gone.items():
        by_source.setdefault(source, []).append(path)
    what = "; ".join(f"{', '.join(paths)} ({source})" for source, paths in by_source.items())
    count = "1 file or folder is" if len(gone) == 1 else f"{len(gone)} files or folders are"
    return f"{count} missing: {what}"


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
    facts: tuple[Fact, ...] = ()
    """The counts of the published data, compared by `harness data status` and noted in results."""
    wordings: Callable[[Path, Protocol], tuple[str, ...]] | None = None
    """`wordings(data_root, protocol)` are all the instructions that a query's one is drawn from, so
    that training can draw anew at each visit; None: every query has its own, or none."""
    rows: Callable[[Path, Protocol], Sequence[str]] | None = None
    """`rows(data_root, protocol)` are the ids of the queries in the order of training, repeats
    included; None: every query once."""
    convert: Callable[[Path], Iterator[str]] | None = None
    """`convert(data_root)` rewrites an original file that is not read as it is (a pickle) beside
    itself, and gives a line for each thing done."""

    @property
    def headline(self) -> Metric:
        return self.metrics[0]

    def unlike_published(self, counts: Mapping[str, int]) -> list[tuple[Fact, str]]:
        """The facts that these counts contradict, each with a line that says so."""
        return [
            (fact, f"{counts.get(fact.count, 0):,} {fact.count}, {fact.value:,} published")
            for fact in self.facts
            if counts.get(fact.count, 0) != fact.value
        ]

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
