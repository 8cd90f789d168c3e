"""Training: what a recipe's stages would do, and doing it, each finished stage kept under its digest.

    results/training/mbeir-3c5f0a1b9d2e4f60/
        model/  temperature.json     what the stage makes
        manifest.json                written last: settings, fingerprints of inputs and outputs, command

A digest counts the settings, the data and the artefacts that a stage reads, not the recipe: variants share
their equal stages, and a changed input gives another folder to all that hangs on it.
"""

from __future__ import annotations

import datetime
import errno
import fcntl
import fnmatch
import json
import platform
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from harness import __version__
from harness.digest import Digests, digest
from harness.encode import EngineOptions
from harness.errors import DataInvalid, DataMissing, HarnessError, PluginError, UnknownName
from harness.evaluate import git_state
from harness.files import require_writable, storage_error, write_text
from harness.model import library_versions
from harness.ranks import Ranks
from harness.recipe import MODEL, Recipe, Stage, StageRun
from harness.records import as_record, read_json
from harness.task import Need, Protocol, Task, missing

MANIFEST = "manifest.json"
LOCK = ".lock"
_BASE = "base"
"""Among the files that an artefact was made of: the checkpoint that no stage made."""
State = Literal["done", "to do", "blocked"]


@dataclass(frozen=True, slots=True)
class TrainOptions:
    """Where training reads and writes, and on what it runs; none of it changes an artefact's digest."""

    data: Path
    output_dir: Path
    cache_dir: Path
    engine: EngineOptions = field(default_factory=EngineOptions)
    tasks: Mapping[str, Task] = field(default_factory=dict)
    """All that are installed."""
    chunk: int = 32
    ranks: Ranks = field(default_factory=Ranks)

    def chosen(self, globs: str) -> list[Task]:
        """What `Use.tasks` means, in the order of the globs. Raises UnknownName for one that means none."""
        found: dict[str, Task] = {}
        for glob in filter(None, (each.strip() for each in globs.split(","))):
            names = fnmatch.filter(self.tasks, glob.removeprefix("!"))
            if not names:
                raise UnknownName("task", glob.removeprefix("!"), self.tasks)
            for name in names:
                if glob.startswith("!"):
                    found.pop(name, None)
                else:
                    found[name] = self.tasks[name]
        return list(found.values())


@dataclass(frozen=True, slots=True)
class Planned:
    """A stage as it stands; `blocked` where something that it reads will not be there.

    `made_of` and `folder` are None where missing data hide the digest. `reads` are the folders that play
    its roles, `unfinished` the stages that it needs and that are not to be run either, `baseless` says why
    the checkpoint cannot be had that it starts from.
    """

    stage: Stage
    state: State
    inputs: Mapping[str, str]
    """"query.jsonl" → there or missing; "model of nli" → its state."""
    missing: tuple[Need, ...] = ()
    unfinished: tuple[str, ...] = ()
    baseless: str | None = None
    made_of: Mapping[str, Any] | None = None
    folder: Path | None = None
    reads: Mapping[str, Path] = field(default_factory=dict)


def chosen(
    recipe: Recipe, *, stage: str | None = None, first: str | None = None, last: str | None = None
) -> list[str]:
    """The names of one stage, or of those from the first to the last. Raises HarnessError."""
    if stage is not None and (first is not None or last is not None):
        raise HarnessError("--stage runs one stage: use it without --from and --until")
    names = [each.name for each in recipe.stages]
    start = names.index(recipe.stage(stage or first or names[0]).name)
    stop = names.index(recipe.stage(stage or last or names[-1]).name)
    if start > stop:
        raise HarnessError(f"--from {names[start]} comes after --until {names[stop]} in {recipe.name}")
    return names[start : stop + 1]


def plan(recipe: Recipe, names: Sequence[str], options: TrainOptions) -> list[Planned]:
    """How the stages of these names stand, in order, without running or writing anything.

    Raises DataInvalid where an artefact that would be read is not what its stage made.
    """
    needed = set(names)
    for stage in reversed(recipe.stages):
        if stage.name in needed:
            needed |= set(stage.needs.values())
    digests = Digests.of(options.cache_dir)
    found: dict[str, Planned] = {}
    for stage in recipe.stages:
        if stage.name in needed:
            found[stage.name] = _planned(stage, found, names, options, digests)
    planned = [found[stage.name] for stage in recipe.stages if stage.name in names]
    to_do = [each.stage for each in planned if each.state == "to do"]
    for name in dict.fromkeys(name for stage in to_do for name in stage.needs.values()):
        if found[name].state == "done":
            _require_as_made(found[name], digests)
    digests.save()
    return planned


def _planned(
    stage: Stage, found: Mapping[str, Planned], names: Sequence[str], options: TrainOptions, digests: Digests
) -> Planned:
    tasks = _tasks(stage, options)
    data = _needs(stage, tasks)
    gone = tuple(need for need in data if need.find(options.data) is None)
    sources = {role: found[name] for role, name in stage.needs.items()}
    reads = {role: source.folder for role, source in sources.items() if source.folder is not None}
    base, baseless = _base(stage)
    made_of = None
    if len(reads) == len(sources):
        versions = {task.name: task.version for _, task in tasks}
        roles = {role: folder.name for role, folder in reads.items()}
        made_of = stage.fingerprint(_files(data, options, digests) | base, roles, versions)
        if baseless or any(not need.media for need in gone):
            made_of = _recalled(made_of, options)
    folder = None if made_of is None else options.output_dir / _folder_name(made_of)
    unfinished = tuple(
        s.stage.name for s in sources.values() if s.state != "done" and s.stage.name not in names
    )
    state: State = "to do"
    if folder is not None and _manifest(folder) is not None:
        state = "done"
    elif gone or unfinished or baseless or any(source.state == "blocked" for source in sources.values()):
        state = "blocked"
    inputs = {str(need.path): "missing" if need in gone else "there" for need in data}
    inputs |= {f"{role} of {source.stage.name}": source.state for role, source in sources.items()}
    if base or baseless:
        inputs[_BASE] = "missing" if baseless else "there"
    return Planned(stage, state, inputs, gone, unfinished, baseless, made_of, folder, reads)


def _base(stage: Stage) -> tuple[dict[str, str], str | None]:
    """The fingerprint of the checkpoint that a stage starts from, and why it cannot be had."""
    try:
        found = stage.base(stage)
    except HarnessError as error:
        return {}, str(error)
    return {} if found is None else {_BASE: found}, None


def _folder_name(made_of: Mapping[str, Any]) -> str:
    return f"{made_of['stage']}-{digest(made_of)}"


def _tasks(stage: Stage, options: TrainOptions) -> list[tuple[Protocol, Task]]:
    """The tasks that a stage uses."""
    return [(use.protocol, task) for use in stage.uses(stage.settings) for task in options.chosen(use.tasks)]


def _needs(stage: Stage, tasks: Sequence[tuple[Protocol, Task]]) -> list[Need]:
    """All files that it reads, each once."""
    of_tasks = (need for protocol, task in tasks for need in task.needs(protocol))
    return list(dict.fromkeys([*of_tasks, *stage.data(stage.settings)]))


def _files(needs: Sequence[Need], options: TrainOptions, digests: Digests) -> dict[str, str]:
    """The digests of the data that are there but for media, which are only looked for."""
    found: dict[str, str] = {}
    for need in needs:
        place = need.find(options.data)
        if place is None or need.media:
            continue
        name = need.path.name if need.path.is_absolute() else need.path.as_posix()
        try:
            found |= digests.tree([(name, place)])
        except OSError as error:
            raise DataInvalid(f"{place} cannot be read ({(error.strerror or '').lower()})") from error
    return found


def _recalled(made_of: Mapping[str, Any], options: TrainOptions) -> dict[str, Any] | None:
    """What the one finished artefact of this stage was made of, all else being equal: its data may
    be put away. None where there is no such artefact, or several."""
    found = []
    for path in options.output_dir.glob(f"{made_of['stage']}-*/{MANIFEST}"):
        stored = _manifest(path.parent)
        if stored is not None:
            known = stored["made_of"]
            if known == {**made_of, "files": {**known["files"], **made_of["files"]}}:
                found.append(known)
    return found[0] if len(found) == 1 else None


def _manifest(folder: Path) -> dict[str, Any] | None:
    """What the stage wrote about itself; None where it is not finished. Raises DataInvalid."""
    path = folder / MANIFEST
    if not path.exists():
        return None
    try:
        manifest = as_record(read_json(path), str(path))
        made_of, outputs = manifest.record("made_of"), manifest.record("outputs")
        for name in ("settings", "needs", "files"):
            made_of.record(name)
        stage = made_of.text("stage")
    except DataInvalid as error:
        raise DataInvalid(f"{error}: delete {folder}, to make it again") from error
    if _folder_name(made_of.fields) != folder.name:
        raise DataInvalid(
            f"{path} is that of another artefact of stage {stage} ({_folder_name(made_of.fields)}):"
            f" {folder} was copied, renamed or edited; delete it, to make it again"
        )
    return {"made_of": dict(made_of.fields), "outputs": dict(outputs.fields)}


def lineage(folder: Path) -> Iterator[str]:
    """The names of the artefacts that a stage's checkpoint came of, one of the other, its own first."""
    while True:
        yield folder.name
        manifest = _manifest(folder)
        if manifest is None or MODEL not in manifest["made_of"]["needs"]:
            return
        folder = folder.with_name(manifest["made_of"]["needs"][MODEL])


def _require_as_made(each: Planned, digests: Digests) -> None:
    """Raise DataInvalid unless a finished stage's artefact is there, and as the stage left it."""
    assert each.folder is not None
    manifest = _manifest(each.folder)
    assert manifest is not None
    for name in each.stage.makes:
        place = each.folder / name
        if not place.exists():
            wrong = "is gone"
        elif digests.tree([(name, place)])[name] != manifest["outputs"].get(name):
            wrong = f"is not what stage {each.stage.name} made"
        else:
            continue
        raise DataInvalid(f"{place} {wrong}: delete {each.folder}, to make it again")


def train(
    recipe: Recipe, planned: Sequence[Planned], options: TrainOptions, *, tell: Callable[[str], None]
) -> None:
    """Run the stages that are not done, in order; one that was stopped goes on in its folder.

    Raises DataMissing with all that any of them lacks before the first one runs.
    """
    _require_ready(recipe, planned, options)
    if any(each.state == "to do" for each in planned):
        require_writable(options.output_dir, "the output folder")
    digests = Digests.of(options.cache_dir)
    for number, each in enumerate(planned, 1):
        clock = time.perf_counter()
        if each.state == "done":
            line = f"finished before, in {each.folder}"
        else:
            if not options.engine.quiet:
                steps = each.stage.estimate(each.stage.settings).steps
                tell(f"{each.stage.name}: {each.stage.title}, {steps:,} steps, in {each.folder}")
            try:
                _make(recipe, each, options, digests, tell)
            except KeyboardInterrupt:
                tell(
                    f"interrupted in {each.stage.name}: finished stages are kept, and what it saved in"
                    f" {each.folder}; the same command goes on from there"
                )
                raise
            line = f"done in {time.perf_counter() - clock:,.0f} s"
        if not options.engine.quiet:
            tell(f"{each.stage.name} ({number} of {len(planned)}): {line}")


def _require_ready(recipe: Recipe, planned: Sequence[Planned], options: TrainOptions) -> None:
    blocked = [each for each in planned if each.state == "blocked"]
    line = missing((need for each in blocked for need in each.missing), options.data)
    lines = [] if line is None else [line]
    for each in blocked:
        lines += [
            f"stage {each.stage.name} needs {name}, which is not finished"
            f" (harness train {recipe.name} --until {name}, with the same settings)"
            for name in each.unfinished
        ]
    lines += dict.fromkeys(each.baseless for each in blocked if each.baseless)
    if lines:
        raise DataMissing("; ".join(lines))


def _make(
    recipe: Recipe, each: Planned, options: TrainOptions, digests: Digests, tell: Callable[[str], None]
) -> None:
    """Run a stage on all ranks and write its manifest, unless another run of it was faster."""
    assert each.folder is not None
    first = options.ranks.rank == 0
    with _alone(each.folder) if first else nullcontext():
        options.ranks.wait(options.engine.device)
        if (each.folder / MANIFEST).exists():
            return
        _require_unchanged(each, options, digests)
        started, clock = datetime.datetime.now(datetime.UTC), time.perf_counter()
        _run(each, options, tell)
        options.ranks.wait(options.engine.device)
        if not first:
            return
        _require_unchanged(each, options, digests)
        manifest = {
            "made_of": each.made_of,
            "outputs": _outputs(recipe, each.stage, each.folder, digests),
            "recipe": recipe.name,
            "device": options.engine.device,
            "ranks": options.ranks.count,
            **_provenance(),
            "started": started.isoformat(timespec="seconds"),
            "seconds": round(time.perf_counter() - clock, 1),
        }
        write_text(each.folder / MANIFEST, json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")


def stage_run(each: Planned, options: TrainOptions, tell: Callable[[str], None]) -> StageRun:
    """What a stage that is not blocked is given."""
    assert each.folder is not None
    return StageRun(
        settings=each.stage.settings,
        folder=each.folder,
        inputs=each.reads,
        data=options.data,
        output_dir=options.output_dir,
        cache_dir=options.cache_dir,
        tasks=options.chosen,
        engine=options.engine,
        chunk=options.chunk,
        ranks=options.ranks,
        tell=tell,
    )


def _run(each: Planned, options: TrainOptions, tell: Callable[[str], None]) -> None:
    """Raises StorageError where the disk is full; what was saved before is whole."""
    run = stage_run(each, options, tell)
    try:
        each.stage.run(run)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise storage_error(run.folder, error) from error


def _provenance() -> dict[str, Any]:
    libraries = library_versions("torch", "transformers", "peft", "accelerate", "numpy")
    return {
        "command": shlex.join(["harness", *sys.argv[1:]]),
        "versions": {"harness": __version__, "python": platform.python_version(), **libraries},
        "git": git_state(),
    }


def _outputs(recipe: Recipe, stage: Stage, folder: Path, digests: Digests) -> dict[str, str]:
    """The digests of what a stage made. Raises PluginError where it made less than it says."""
    lacking = [name for name in stage.makes if not (folder / name).exists()]
    if lacking:
        raise PluginError(
            f"recipe {recipe.name!r}: stage {stage.name} ended without {', '.join(lacking)} in {folder}"
        )
    outputs = digests.tree((name, folder / name) for name in stage.makes)
    digests.save()
    return outputs


def _require_unchanged(each: Planned, options: TrainOptions, digests: Digests) -> None:
    """Raise DataInvalid where data changed since they were fingerprinted."""
    known = (each.made_of or {})["files"]
    now = _files(_needs(each.stage, _tasks(each.stage, options)), options, digests) | _base(each.stage)[0]
    changed = [name for name in known if known[name] != now.get(name)]
    if changed:
        places = (f"the base of {each.stage.name}" if n == _BASE else str(options.data / n) for n in changed)
        raise DataInvalid(
            f"{', '.join(places)} changed after stage {each.stage.name} was planned: run the same command"
            " again"
        )


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold a stage's folder, so that two runs that share the stage do not write into each other's."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / LOCK).open("w")
    except OSError as error:
        raise storage_error(folder, error) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise HarnessError(
                f"{folder} is being made by another run: wait for it, or choose another --output-dir"
            ) from None
        yield
