"""Recipes: how a model is trained, as frozen stages, each with its published settings.

umarvel            nli → cc3m → mbeir → mine → hard-negatives → … → distill
umarvel-no-cc3m    without(UMARVEL, "umarvel-no-cc3m", "cc3m", change="without the CC3M stage")
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import HarnessError, PluginError, UnknownName
from harness.ranks import Ranks

if TYPE_CHECKING:
    from harness.encode import EngineOptions
    from harness.model import ModelSpec
    from harness.task import Need, Protocol, Task

Setting = int | float | str | bool | None
Settings = Mapping[str, Setting]

MODEL = "model"
"""The role of the checkpoint that a stage starts from, or mines and scores with; a stage to which
no other plays it starts from the base model."""

_STAGE = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
_KINDS = {int: "a whole number", str: "a text", bool: "true or false"}
_WORDS: dict[str, Setting] = {"none": None, "true": True, "false": False}


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a stage costs: optimiser steps, sequences encoded, hours of one GPU, GiB of each GPU."""

    steps: int
    sequences: int
    gpu_hours: float
    memory_gib: float


@dataclass(frozen=True, slots=True)
class Use:
    """Tasks whose collections a stage trains on, or mines in: globs, separated by commas, of which those
    behind a ! leave tasks out; and under which protocol."""

    tasks: str
    protocol: Protocol


@dataclass(frozen=True, slots=True)
class StageRun:
    """What a stage is given to run: its settings, and where to read and write."""

    settings: Settings
    folder: Path
    """Its own, for `makes` and checkpoints; what an interrupted run left there is still there."""
    inputs: Mapping[str, Path]
    """Role → the folder of the finished stage that plays it."""
    data: Path
    output_dir: Path
    cache_dir: Path
    tasks: Callable[[str], Sequence[Task]]
    """Those that `Use.tasks` means."""
    engine: EngineOptions
    chunk: int
    """How many sequences have their activations in memory at a time; changes nothing but that."""
    ranks: Ranks
    tell: Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Checkpoints:
    """How to open the retrievers that a stage starts from and makes: `spec` by its option `path`, which
    is `start(run)`, or the first of what the stage makes."""

    spec: ModelSpec
    start: Callable[[StageRun], str]


@dataclass(frozen=True, slots=True)
class Stage:
    """One step of a recipe: what it reads, makes and costs.

    `uses(settings)` are the tasks that it trains on, `data(settings)` other files that it reads below the
    data root. `needs` are the earlier stages whose artefacts it reads, by the role that they play (MODEL:
    its checkpoint). `base(stage)` is the fingerprint of the checkpoint that it starts from and no stage
    makes, None without one; it raises HarnessError where that cannot be had, before any stage runs. `run`
    writes `makes`, files or folders, into its own folder; under a launcher every rank runs it, and the
    first alone writes what several would write alike. `objective` says what is minimised. `checkpoints`,
    of a stage that trains a retriever, is how to open it.
    """

    name: str
    title: str
    objective: str
    settings: Settings
    makes: tuple[str, ...]
    run: Callable[[StageRun], None]
    estimate: Callable[[Settings], Estimate]
    uses: Callable[[Settings], Sequence[Use]] = lambda settings: ()
    data: Callable[[Settings], Sequence[Need]] = lambda settings: ()
    base: Callable[[Stage], str | None] = lambda stage: None
    checkpoints: Checkpoints | None = None
    needs: Mapping[str, str] = field(default_factory=dict)
    expected: Mapping[str, float] = field(default_factory=dict)
    """Suite → published average of the model that it makes, in [0, 1]."""
    paper_ref: str | None = None
    doc: str = ""
    version: int = 1
    """Raise it when its code changes what it makes."""

    def fingerprint(
        self, files: Mapping[str, str], needs: Mapping[str, str], tasks: Mapping[str, int] | None = None
    ) -> dict[str, Any]:
        """All that its artefact depends on, in JSON: the same in every recipe that has this stage.

        `files` are the digests of its data, `needs` the artefacts that play its roles, `tasks` those that
        it uses and their versions. The function counts by package and name: another one in its place
        makes another artefact, and a module that moves does not.
        """
        package = self.run.__module__.partition(".")[0]
        return {
            "stage": self.name,
            "code": f"{package}:{self.run.__qualname__}:{self.version}",
            "settings": dict(self.settings),
            "needs": dict(needs),
            "tasks": dict(tasks or {}),
            "files": dict(files),
        }

    def having(self, given: Settings) -> Stage:
        """With these settings in place of its own. Raises UnknownName, HarnessError."""
        checked = {name: _checked(self, name, value) for name, value in given.items()}
        return replace(self, settings={**self.settings, **checked})


@dataclass(frozen=True, slots=True)
class Recipe:
    """The stages, in order, that make the model of the same name.

    A variant has a parent and one change. `presets` are named settings of stages for another scale,
    `boards` what the stages' retrievers are evaluated on at the end of a preset.
    """

    name: str
    title: str
    stages: tuple[Stage, ...]
    parent: str | None = None
    change: str | None = None
    paper_ref: str | None = None
    presets: Mapping[str, Mapping[str, Settings]] = field(default_factory=dict)
    boards: Mapping[str, Use] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.stages:
            raise PluginError(f"recipe {self.name!r} has no stages")
        earlier: set[str] = set()
        for stage in self.stages:
            _check_stage(self.name, stage, earlier)
            earlier.add(stage.name)
        for preset in self.presets:
            configured(self, preset)

    def stage(self, name: str) -> Stage:
        """Raises UnknownName."""
        stages = {stage.name: stage for stage in self.stages}
        if name not in stages:
            raise UnknownName(f"stage of recipe {self.name!r}", name, stages)
        return stages[name]


def configured(
    recipe: Recipe, preset: str | None = None, given: Mapping[str, Settings] | None = None
) -> Recipe:
    """The recipe with a preset's settings, then with those given by stage. Raises HarnessError."""
    if preset is not None and preset not in recipe.presets:
        raise UnknownName(f"preset of recipe {recipe.name!r}", preset, recipe.presets, hint="it has none")
    for settings in (recipe.presets[preset] if preset else {}, given or {}):
        for name in settings:
            recipe.stage(name)
        stages = (stage.having(settings.get(stage.name, {})) for stage in recipe.stages)
        recipe = replace(recipe, stages=tuple(stages), presets={})
    return recipe


def alike(one: Recipe, other: Recipe) -> bool:
    """Whether two recipes train the same."""
    trained = [
        [(s.fingerprint({}, s.needs), s.uses, s.data) for s in recipe.stages] for recipe in (one, other)
    ]
    return trained[0] == trained[1]


def vary(
    recipe: Recipe,
    name: str,
    *,
    change: str,
    paper_ref: str | None = None,
    expected: Mapping[str, float] | None = None,
    **settings: Setting | Settings,
) -> Recipe:
    """The recipe with other settings: of the stages that are named, or of every stage that has one.

        vary(UMARVEL, "umarvel-hard-k10", change="ten hard negatives", hard_negatives={"negatives": 10})
        vary(UMARVEL, "umarvel-causal", change="causal attention", attention="causal")

    `expected` is what its last stage was published to score. Raises UnknownName, HarnessError, and
    PluginError where nothing is varied.
    """
    given: dict[str, dict[str, Setting]] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            given.setdefault(recipe.stage(key.replace("_", "-")).name, {}).update(value)
            continue
        having = [stage for stage in recipe.stages if key in stage.settings]
        if not having:
            known = [setting for stage in recipe.stages for setting in stage.settings]
            raise UnknownName(f"setting of recipe {recipe.name!r}", key, known)
        for stage in having:
            given.setdefault(stage.name, {})[key] = value
    stages = [stage.having(given.get(stage.name, {})) for stage in recipe.stages]
    return _variant(recipe, name, stages, change, paper_ref, expected)


def without(
    recipe: Recipe,
    name: str,
    *stages: str,
    change: str,
    paper_ref: str | None = None,
    expected: Mapping[str, float] | None = None,
) -> Recipe:
    """The recipe without some stages; what took its model from one of them takes it from where that did.

    Raises UnknownName, and PluginError where a stage that stays reads anything else of one that goes.
    """
    gone = {stage: recipe.stage(stage) for stage in stages}
    kept = [
        replace(stage, needs=_rewired(stage, gone, name)) for stage in recipe.stages if stage.name not in gone
    ]
    presets = {
        preset: {stage: settings for stage, settings in by_stage.items() if stage not in gone}
        for preset, by_stage in recipe.presets.items()
    }
    return _variant(replace(recipe, presets={}), name, kept, change, paper_ref, expected, presets)


def instead(
    recipe: Recipe,
    name: str,
    stages: Mapping[str, Stage],
    *,
    change: str,
    paper_ref: str | None = None,
    expected: Mapping[str, float] | None = None,
) -> Recipe:
    """The recipe with other stages in the places of those that are named. Raises UnknownName, PluginError."""
    for stage in stages:
        recipe.stage(stage)
    put = [stages.get(stage.name, stage) for stage in recipe.stages]
    presets = {
        preset: {stage: settings for stage, settings in by_stage.items() if stage not in stages}
        for preset, by_stage in recipe.presets.items()
    }
    return _variant(replace(recipe, presets={}), name, put, change, paper_ref, expected, presets)


def again(recipe: Recipe, name: str, *, change: str, paper_ref: str | None = None) -> Recipe:
    """The recipe under the name of a row of which no more is known than that it was made like this."""
    return replace(recipe, name=name, parent=recipe.name, change=change, paper_ref=paper_ref)


def _rewired(stage: Stage, gone: Mapping[str, Stage], recipe: str) -> dict[str, str]:
    needs = {}
    for role, needed in stage.needs.items():
        source: str | None = needed
        while source is not None and source in gone:
            if role != MODEL:
                raise PluginError(
                    f"recipe {recipe!r}: stage {stage.name} reads the {role} of {source}: leave out both"
                )
            source = gone[source].needs.get(MODEL)
        if source is not None:
            needs[role] = source
    return needs


def _variant(
    recipe: Recipe,
    name: str,
    stages: Sequence[Stage],
    change: str,
    paper_ref: str | None,
    expected: Mapping[str, float] | None,
    presets: Mapping[str, Mapping[str, Settings]] | None = None,
) -> Recipe:
    """A recipe that has `recipe` for its parent, and must differ from it."""
    if tuple(stages) == recipe.stages:
        raise PluginError(f"recipe {name!r} changes nothing of {recipe.name!r}")
    made = _expecting(recipe.stages, stages, expected or {})
    return Recipe(
        name=name,
        title=f"{recipe.title.partition(':')[0]}: {change}",
        stages=made,
        parent=recipe.name,
        change=change,
        paper_ref=paper_ref,
        presets=recipe.presets if presets is None else presets,
        boards=recipe.boards,
    )


def _expecting(
    before: Iterable[Stage], stages: Sequence[Stage], expected: Mapping[str, float]
) -> tuple[Stage, ...]:
    """The stages, without the expected scores of those that changed and of those that hang on them;
    the last one with `expected`."""
    known = {stage.name: stage for stage in before}
    changed: set[str] = set()
    made = []
    for stage in stages:
        if stage != known.get(stage.name) or not changed.isdisjoint(stage.needs.values()):
            changed.add(stage.name)
            stage = replace(stage, expected={})
        made.append(stage)
    if made and expected:
        made[-1] = replace(made[-1], expected=expected)
    return tuple(made)


def parsed(text: str, instead_of: Setting) -> Setting:
    """The setting that a text on the command line means in place of a known one.

    none, true, false and numbers are read as such, but where the known one is a text.
    """
    if isinstance(instead_of, str):
        return text
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    for read in (int, float):
        try:
            return read(text)
        except ValueError:
            continue
    return text


def _checked(stage: Stage, name: str, value: Setting) -> Setting:
    """The value, as the setting's own type; None stands for none of any type."""
    if name not in stage.settings:
        raise UnknownName(f"setting of stage {stage.name!r}", name, stage.settings, hint="it has none")
    known = stage.settings[name]
    if type(value) is int and isinstance(known, float):
        value = float(value)
    both = value is not None and known is not None
    if (both and type(value) is not type(known)) or (isinstance(value, float) and not math.isfinite(value)):
        kind = _KINDS.get(type(known), "a finite number")
        raise HarnessError(f"setting {name!r} of stage {stage.name!r} must be {kind}, not {value!r}")
    return value


def _check_stage(recipe: str, stage: Stage, earlier: Iterable[str]) -> None:
    """Raise PluginError where a stage cannot be one, or follows what it needs too early."""
    earlier = set(earlier)
    wrong = None
    if not _STAGE.fullmatch(stage.name):
        wrong = "its name must be of lower-case words with hyphens between"
    elif stage.name in earlier:
        wrong = "it is there twice"
    elif not stage.makes:
        wrong = "it makes nothing"
    elif not hasattr(stage.run, "__qualname__"):
        wrong = "run must be a plain function: what varies belongs into settings"
    elif late := sorted(set(stage.needs.values()) - earlier):
        wrong = f"it needs {', '.join(late)}, which must come before it"
    if wrong:
        raise PluginError(f"recipe {recipe!r}, stage {stage.name!r}: {wrong}")
