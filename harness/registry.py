"""The catalog: everything that installed plugins offer, found through entry points."""

from __future__ import annotations

import fnmatch
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any, Protocol, TypeVar

import pluggy

from harness import hookspecs
from harness.errors import HarnessError, PluginError, UnknownName
from harness.model import ModelSpec, RerankerSpec
from harness.published import Reported
from harness.recipe import Recipe
from harness.run import Searcher
from harness.task import Suite, Task

GROUP = "harness"
KINDS: dict[str, type] = {
    "models": ModelSpec,
    "rerankers": RerankerSpec,
    "tasks": Task,
    "suites": Suite,
    "searchers": Searcher,
    "recipes": Recipe,
}


class Named(Protocol):
    """What every catalog entry has."""

    @property
    def name(self) -> str: ...


T = TypeVar("T", bound=Named)


@dataclass(frozen=True, slots=True)
class PluginInfo:
    """One entry point: `error` is its traceback where it could not be loaded."""

    name: str
    module: str
    version: str
    offers: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Catalog:
    """What there is, by name, in the order of registration."""

    models: Mapping[str, ModelSpec]
    rerankers: Mapping[str, RerankerSpec]
    tasks: Mapping[str, Task]
    suites: Mapping[str, Suite]
    searchers: Mapping[str, Searcher]
    recipes: Mapping[str, Recipe]
    plugins: tuple[PluginInfo, ...]
    manager: pluggy.PluginManager

    def model(self, name: str) -> ModelSpec:
        return _get("model", name, self.models, self._failed)

    def reranker(self, name: str) -> RerankerSpec:
        return _get("reranker", name, self.rerankers, self._failed)

    def suite(self, name: str) -> Suite:
        return _get("suite", name, self.suites, self._failed)

    def searcher(self, name: str) -> Searcher:
        return _get("searcher", name, self.searchers, self._failed)

    def recipe(self, name: str) -> Recipe:
        return _get("recipe", name, self.recipes, self._failed)

    def select(self, patterns: Iterable[str], suites: Iterable[str]) -> list[Task]:
        """The tasks that match any of the globs or belong to the suites, each once, in order."""
        names: dict[str, None] = {}
        for suite in suites:
            names |= dict.fromkeys(self.suite(suite).tasks)
        for pattern in patterns:
            matches = fnmatch.filter(self.tasks, pattern)
            if not matches:
                raise UnknownName(
                    "task", pattern, self.tasks, hint="see 'harness list tasks'", note=self._failed
                )
            names |= dict.fromkeys(matches)
        return [_get("task", name, self.tasks, self._failed) for name in names]

    def reported(self) -> tuple[Reported, ...]:
        """What plugins know of published numbers; read anew, and only when asked for.

        Raises PluginError where a plugin fails, or where a number is there twice.
        """
        found: dict[tuple[Any, ...], tuple[str, Reported]] = {}
        for implementation in self.manager.hook.harness_reported.get_hookimpls():
            name = implementation.plugin_name
            for number in _reported(name, implementation.function):  # type: ignore[arg-type]
                key = (number.paper, number.table, number.model, number.setting, number.task, number.metric)
                if key in found:
                    raise PluginError(
                        f"{number.paper}, {number.table}: {number.model} has two numbers for {number.task}"
                        f" {number.metric or 'mean'} (offered by {found[key][0]} and {name}): keep one"
                    )
                found[key] = name, number
        return tuple(number for _, number in found.values())

    @property
    def _failed(self) -> str:
        failed = [p.name for p in self.plugins if p.error]
        return (
            f" (plugins that failed to load: {', '.join(failed)}; see 'harness list plugins')"
            if failed
            else ""
        )


def _get(kind: str, name: str, known: Mapping[str, T], failed: str) -> T:
    if name not in known:
        raise UnknownName(kind, name, known, hint=f"see 'harness list {kind}s'", note=failed)
    return known[name]


def load_catalog() -> Catalog:
    """Load every `harness` entry point and collect what it offers.

    A plugin that fails, at import or in a hook, is kept in `plugins` with its traceback and
    offers nothing; the others go on. Two plugins that offer one name raise PluginError.
    """
    manager = pluggy.PluginManager(GROUP)
    manager.add_hookspecs(hookspecs)
    found: dict[str, dict[str, Any]] = {kind: {} for kind in KINDS}
    plugins = []
    for name, point in _entry_points().items():
        version = point.dist.version if point.dist else "?"
        try:
            offers = _offers(manager, name, point)
        except Exception:  # whatever a broken plugin raises, the others must go on
            if manager.has_plugin(name):
                manager.unregister(name=name)
            plugins.append(PluginInfo(name, point.value, version, error=traceback.format_exc()))
            continue
        for kind, things in offers.items():
            for thing in things:
                if thing.name in found[kind]:
                    other = next(p.name for p in plugins if thing.name in p.offers[kind])
                    raise PluginError(
                        f"{kind[:-1]} {thing.name!r} is offered by both {other} and {name}:"
                        " rename one, or uninstall one of the plugins"
                    )
                found[kind][thing.name] = thing
        names = {kind: tuple(thing.name for thing in things) for kind, things in offers.items()}
        plugins.append(PluginInfo(name, point.value, version, names))
    return Catalog(**found, plugins=tuple(plugins), manager=manager)


def _offers(manager: pluggy.PluginManager, name: str, point: metadata.EntryPoint) -> dict[str, list[Any]]:
    plugin = point.load()
    manager.register(plugin, name=name)
    manager.check_pending()
    hooks = {
        caller.name: implementation.function
        for caller in manager.get_hookcallers(plugin) or ()
        for implementation in caller.get_hookimpls()
        if implementation.plugin is plugin
    }
    offers = {}
    for kind, cls in KINDS.items():
        hook = f"harness_{kind}"
        if hasattr(plugin, hook) and hook not in hooks:
            raise PluginError(f"plugin {name}: {hook} is not marked @harness.hookspecs.hookimpl")
        offered: list[Any] = list(hooks[hook]() or ()) if hook in hooks else []  # type: ignore[call-overload]
        for thing in offered:
            if not isinstance(thing, cls):
                raise PluginError(f"plugin {name}: harness_{kind} returned {thing!r}, not a {cls.__name__}")
        if len({thing.name for thing in offered}) < len(offered):
            raise PluginError(f"plugin {name}: harness_{kind} returned one name twice")
        offers[kind] = offered
    return offers


def _reported(name: str, hook: Callable[[], Iterable[Any] | None]) -> list[Reported]:
    try:
        numbers = list(hook() or ())
    except HarnessError:
        raise
    except Exception as error:  # whatever a plugin raises is its own fault
        raise PluginError(
            f"plugin {name}: harness_reported failed ({type(error).__name__}: {error}): mend or uninstall it"
        ) from error
    for number in numbers:
        if not isinstance(number, Reported):
            raise PluginError(f"plugin {name}: harness_reported returned {number!r}, not a Reported")
    return numbers


def _entry_points() -> dict[str, metadata.EntryPoint]:
    """Entry points as `distribution:name`, built-ins first, each once.

    One distribution is seen twice where a checkout's egg-info lies on the path beside the
    installed one; the first on the path wins, as it does for the modules.
    """
    points: dict[str, metadata.EntryPoint] = {}
    for point in metadata.entry_points(group=GROUP):
        distribution = point.dist.name if point.dist else "unknown"
        points.setdefault(f"{distribution}:{point.name}", point)
    return dict(sorted(points.items(), key=lambda named: (not named[0].startswith("umr-harness:"), named[0])))
