"""The data sets below a data root: what is there, what is wrong with it, and how to get it.

What was fetched of a repository, and at which commit, stands in `.fetched.json` there:

    {"TIGER-Lab/M-BEIR": {"revision": "2f1c…", "files": ["query/test/….jsonl"], "unfinished": []}}
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Literal

from harness import hub
from harness.collection import Collection, checked
from harness.content import Candidate, Image, Query, Text, Video
from harness.errors import DataInvalid, HarnessError
from harness.files import write_text
from harness.media import clip_info, picture_size
from harness.progress import progress
from harness.records import as_record, read_json
from harness.task import MINIATURE, Hub, Need, Protocol, Task

FETCHED = ".fetched.json"
SHOWN = 5
"""Pictures and clips at fault that are shown; the rest is counted."""

Convert = Callable[[Path], Iterator[str]]


@dataclass(frozen=True, slots=True)
class Finding:
    """Something about a task's data: an error, or a warning where only the literature disagrees."""

    level: Literal["error", "warning"]
    line: str


@dataclass(frozen=True, slots=True)
class Status:
    """What is known of a task's data; `counts` are empty where nothing was counted."""

    task: str
    findings: tuple[Finding, ...] = ()
    counts: Mapping[str, int] = field(default_factory=dict)
    miniature: bool = False

    @property
    def errors(self) -> int:
        return sum(finding.level == "error" for finding in self.findings)


@dataclass(frozen=True, slots=True)
class Pin:
    """What was fetched of a repository: the commit, its files, and the globs not fetched to the end."""

    revision: str
    files: tuple[str, ...] = ()
    unfinished: tuple[str, ...] = ()


def status(data: Path, tasks: Iterable[Task], protocol: Protocol, *, deep: bool = False) -> Iterator[Status]:
    """The state of each task's data: what is missing, else what its own check or its counts say.

    Deep reads the header of every picture and the index of every clip.
    """
    pins = read_pins(data)
    for task in tasks:
        try:
            yield _status(data, task, protocol, deep, pins)
        except HarnessError as error:
            yield Status(task.name, _errors([str(error)]))


def _status(data: Path, task: Task, protocol: Protocol, deep: bool, pins: Mapping[str, Pin]) -> Status:
    needs = task.needs(protocol)
    miniature = _is_miniature(data, needs)
    if gaps := tuple(_gaps(data, task, needs, pins)):
        return Status(task.name, _errors(gaps), miniature=miniature)
    if task.verify is not None:
        return Status(task.name, _errors(task.verify(data, protocol, deep)), miniature=miniature)
    collection, counts = checked(task.load(data, protocol))
    findings: tuple[Finding, ...] = ()
    if not miniature and protocol.split is None:
        findings = tuple(
            Finding("error" if fact.evidence == "V" else "warning", line)
            for fact, line in task.unlike_published(counts)
        )
    if deep:
        findings += _errors(_unreadable(task.name, collection))
    return Status(task.name, findings, {} if miniature else counts, miniature)


def _gaps(data: Path, task: Task, needs: Iterable[Need], pins: Mapping[str, Pin]) -> Iterator[str]:
    for need in needs:
        if need.find(data) is None:
            yield f"{data / need.path} is missing: {need.remedy}"
        elif _is_unfinished(need, pins):
            yield f"{data / need.path} is not fetched to the end: run 'harness data fetch {task.name}' again"


def _errors(lines: Iterable[str]) -> tuple[Finding, ...]:
    return tuple(Finding("error", line) for line in lines)


def _is_miniature(data: Path, needs: Sequence[Need]) -> bool:
    tops = [need.path.parts[0] for need in needs if not need.path.is_absolute()]
    markers = (Path(tops[0], MINIATURE), Path(f"{tops[0]}.{MINIATURE}")) if tops else ()
    return any(Need(marker, "").find(data) is not None for marker in markers)


def _unreadable(task: str, collection: Collection) -> Iterator[str]:
    """A line for each picture or clip that cannot be used, the first few; then how many more."""
    files: dict[Path, dict[Image | Video, None]] = {}
    things: Iterable[Query | Candidate] = chain(collection.queries, collection.pool)
    for thing in things:
        for part in thing.parts:
            if not isinstance(part, Text):
                files.setdefault(part.path, {})[part] = None
    faults = []
    with ThreadPoolExecutor() as pool, progress(f"{task}: pictures and clips", len(files)) as advance:
        for fault in pool.map(_first_fault, files.values()):
            advance(1)
            faults += [fault] if fault else []
    yield from faults[:SHOWN]
    if len(faults) > SHOWN:
        yield f"{len(faults) - SHOWN:,} more pictures or clips cannot be used"


def _first_fault(parts: Iterable[Image | Video]) -> str | None:
    """What is wrong with a file, from all that is shown of it."""
    try:
        for part in parts:
            if isinstance(part, Image):
                picture_size(part)
            else:
                clip_info(part.path)
    except DataInvalid as error:
        return str(error)
    return None


def lacking(data: Path, tasks: Iterable[Task], protocol: Protocol) -> list[Need]:
    """What the tasks read that is not there, or not fetched to the end; each once."""
    pins = read_pins(data)
    needs = dict.fromkeys(need for task in tasks for need in task.needs(protocol))
    return [need for need in needs if need.find(data) is None or _is_unfinished(need, pins)]


def fetch(
    data: Path,
    tasks: Sequence[Task],
    protocol: Protocol,
    *,
    revision: str | None = None,
    dry_run: bool = False,
) -> Iterator[str]:
    """Download what the tasks lack and the hub has; gives a line for each step, and for each need
    that has to be put there by hand.

    A repository stays at the commit of its first fetch until `revision` names another; then also
    what had been fetched of these tasks comes anew. Raises HarnessError.
    """
    left = lacking(data, tasks, protocol)
    for need in left:
        if need.hub is None:
            yield f"{(data / need.path).absolute()} has to be put there by hand: {need.source}"
    sources = _by_repo(need for task in tasks for need in task.needs(protocol))
    missing = _by_repo(left)
    if revision is not None and len(sources) != 1:
        raise HarnessError(
            "--revision is one repository's: name data sets that lie in one, not in"
            f" {' and '.join(sources) or 'none'}"
        )
    for repo in sources:
        if revision is not None or repo in missing:
            yield from _fetch(data, repo, sources[repo], missing.get(repo, []), revision, dry_run)


def _by_repo(needs: Iterable[Need]) -> dict[str, list[Hub]]:
    """Where needs lie on the hub, by repository."""
    places: dict[str, list[Hub]] = {}
    for place in dict.fromkeys(need.hub for need in needs if need.hub is not None):
        places.setdefault(place.repo, []).append(place)
    return places


def _fetch(
    data: Path, repo: str, sources: Sequence[Hub], missing: Sequence[Hub], revision: str | None, dry_run: bool
) -> Iterator[str]:
    known = read_pins(data).get(repo)
    listing = hub.listed(repo, revision or (known.revision if known else "main"))
    pin = known or Pin(listing.commit)
    wanted = list(missing)
    if pin.revision != listing.commit:
        wanted += [s for s in sources if any(hub.matches(name, s.files) for name in pin.files)]
        pin = Pin(listing.commit, unfinished=pin.unfinished)
    if not wanted:
        return
    yield _which(data, listing, known, revision)
    for into in dict.fromkeys(source.into for source in wanted):
        chosen = dict.fromkeys(source for source in wanted if source.into == into)
        for source in chosen:
            if not listing.matching(source.files):
                yield f"{repo} has no file that matches {' or '.join(source.files)}"
        globs = tuple(dict.fromkeys(pattern for source in chosen for pattern in source.files))
        files = listing.matching(globs)
        if not files:
            continue
        yield f"{_files(len(files))}, {hub.shown(sum(files.values()))}, to {data / into}"
        if dry_run:
            continue
        pin = replace(pin, unfinished=tuple(dict.fromkeys((*pin.unfinished, *globs))))
        _write_pin(data, repo, pin)
        hub.download(listing, globs, data / into)
        for name in filter(hub.is_archive, files):
            yield from _unpack(data / into / name)
        pin = Pin(
            pin.revision,
            tuple(sorted({*pin.files, *files})),
            tuple(pattern for pattern in pin.unfinished if pattern not in globs),
        )
        _write_pin(data, repo, pin)


def _which(data: Path, listing: hub.Listing, known: Pin | None, revision: str | None) -> str:
    """The line that says which commit is taken, and why."""
    line = f"{listing.repo} at commit {listing.commit}"
    if known is not None and known.revision == listing.commit:
        return f"{line}, as recorded in {data / FETCHED}; --revision takes another"
    line += f", which is {revision or 'main'} now; later fetches stay with it ({data / FETCHED})"
    return line if known is None else f"{line}; what else was fetched of {known.revision} stays as it is"


def _unpack(archive: Path) -> Iterator[str]:
    done = hub.unpack(archive)
    there = f", {_files(done.there)} already there" if done.there else ""
    yield f"unpacked {archive}: {_files(done.written)} written{there}; the archive is kept"
    if done.unlike:
        some = ", ".join(map(str, done.unlike[:SHOWN])) + (" …" if len(done.unlike) > SHOWN else "")
        yield (
            f"{_files(len(done.unlike))} left as found, though of another size in {archive}: unpack it by"
            f" hand where its own are wanted ({some})"
        )


def _files(count: int) -> str:
    return f"{count:,} file{'' if count == 1 else 's'}"


def converters(name: str, tasks: Iterable[Task], known: Iterable[Task]) -> list[Convert]:
    """How the tasks called `name` convert their original files; raises HarnessError where none does."""
    found = [task.convert for task in tasks if task.convert is not None]
    if not found:
        able = dict.fromkeys(task.name for task in known if task.convert is not None)
        others = f", only for {', '.join(able)}" if able else ""
        raise HarnessError(f"there is nothing to convert for {name}{others}")
    return list(dict.fromkeys(found))


def read_pins(data: Path) -> dict[str, Pin]:
    """What was fetched below the data root, by repository. Raises DataInvalid."""
    path = data / FETCHED
    if not path.exists():
        return {}
    try:
        pins = as_record(read_json(path), str(path))
        return {
            repo: Pin(pin.text("revision"), tuple(pin.texts("files")), tuple(pin.texts("unfinished")))
            for repo, pin in ((repo, pins.record(repo)) for repo in pins.fields)
        }
    except DataInvalid as error:
        raise DataInvalid(f"{error}: delete the file to fetch anew") from error


def _write_pin(data: Path, repo: str, pin: Pin) -> None:
    pins = read_pins(data) | {repo: pin}
    content = {name: asdict(each) for name, each in sorted(pins.items())}
    write_text(data / FETCHED, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def _is_unfinished(need: Need, pins: Mapping[str, Pin]) -> bool:
    if need.hub is None or need.hub.repo not in pins:
        return False
    return not set(need.hub.files).isdisjoint(pins[need.hub.repo].unfinished)
