"""A report: leaderboards, plots, galleries and provenance in one folder, to be published as it is.

index.html            what is in it, the plots, how it was made
leaderboard.*         the tables as HTML, Markdown, LaTeX, CSV and JSON
ablations.*           the same of variants, where any was measured
plots/*.svg, *.png    the plots
galleries/*.html      what each model gets wrong, for every task whose data is there
results/              the results and the outcome of every query, as `harness eval` stored them
exports/              the same in the forms of MTEB and of model cards; TREC runs and qrels on demand
provenance.json       identities, protocols, environments and commands
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import __version__, exports
from harness.ablations import Variant
from harness.boards import JOINED, ablation_table, document
from harness.errors import HarnessError, StorageError
from harness.failures import inspect
from harness.figures import ablation_plots, board_plots, gallery_plot
from harness.files import require_writable, storage_error, write_text
from harness.gallery import gallery
from harness.leaderboard import Format, Leaderboard, leaderboard, percent
from harness.model import ModelSpec, RerankerSpec
from harness.outcomes import SUFFIX
from harness.page import page
from harness.plots import Plot
from harness.published import Reported
from harness.result import RUN_SUFFIX, Result, Stored
from harness.standing import standing
from harness.task import Suite, Task

FILES: Mapping[Format, tuple[str, str]] = {
    "html": (".html", "HTML"),
    "markdown": (".md", "Markdown"),
    "latex": (".tex", "LaTeX"),
    "csv": (".csv", "CSV"),
    "json": (".json", "JSON"),
}
"""Of each form, the suffix of its file and its name."""


@dataclass(frozen=True, slots=True)
class Sources:
    """All that a report is made of. `worst` 0 makes no galleries; `trec` writes runs, which are large."""

    suites: Sequence[Suite]
    tasks: Mapping[str, Task]
    models: Mapping[str, ModelSpec | RerankerSpec]
    stored: Sequence[Stored]
    data: Path
    reported: Sequence[Reported] = ()
    variants: Sequence[Variant] = ()
    ablated: Sequence[Suite] = ()
    worst: int = 20
    pictures: bool = True
    trec: bool = False


@dataclass(frozen=True, slots=True)
class Link:
    """A file of the report, below its folder."""

    title: str
    path: str
    about: str = ""


def write_report(sources: Sources, out: Path, tell: Callable[[str], None]) -> Path:
    """Write the whole report; returns its index. `tell` hears what could not be made, and why."""
    require_writable(out, "the report's folder")
    boards = [_board(sources, [suite]) for suite in sources.suites]
    if not any(board.rows for board in boards):
        raise HarnessError(
            f"there is nothing to report on {', '.join(s.name for s in sources.suites)}: run 'harness eval'"
        )
    wanted = {name for suite in sources.suites for name in suite.tasks}
    used = [s for s in sources.stored if s.result.task in wanted]
    joined = boards[0] if len(boards) == 1 else _board(sources, sources.suites)
    tables = _write_boards(sources, boards, joined, out)
    plots = [
        plot
        for suite, board in zip(sources.suites, boards, strict=True)
        for plot in board_plots(suite.name, board)
    ]
    measured = any(variant.measured for variant in sources.variants)
    if measured:
        plots += ablation_plots(sources.variants, [s.name for s in sources.ablated])
    galleries = list(_write_galleries(sources, used, out, tell))
    for plot in plots:
        plot.write(out / "plots")
    _copy_results(used, out / "results")
    exported = list(_write_exports(sources, used, out / "exports", tell))
    write_text(out / "provenance.json", _json(_provenance(used)))
    index = out / "index.html"
    write_text(index, _index(sources, boards, tables, plots, galleries, exported, used))
    return index


def _board(sources: Sources, suites: Sequence[Suite]) -> Leaderboard:
    found = [s.result for s in sources.stored]
    board = leaderboard(suites, sources.tasks, found, models=sources.models, reported=sources.reported)
    return standing(board, suites, sources.tasks, sources.stored)


def _write_boards(
    sources: Sources, boards: Sequence[Leaderboard], joined: Leaderboard, out: Path
) -> list[Link]:
    links = []
    for form, (suffix, name) in FILES.items():
        shown = [joined] if form in JOINED else boards
        write_text(out / f"leaderboard{suffix}", document(shown, form))
        links.append(Link(name, f"leaderboard{suffix}"))
        if any(variant.measured for variant in sources.variants):
            write_text(out / f"ablations{suffix}", ablation_table(sources.variants, sources.ablated, form))
            links.append(Link(f"Ablations, {name}", f"ablations{suffix}"))
    return links


def _write_galleries(
    sources: Sources,
    used: Sequence[Stored],
    out: Path,
    tell: Callable[[str], None],
) -> Iterator[Link]:
    """A gallery and a plot of its scores for each model and task that has a run and its data; why there
    is none is told."""
    cells = {(s.result.task, s.result.model) for s in used if s.result.metrics and not s.result.check}
    for task, model in sorted(cells) if sources.worst else ():
        name = f"{task}-{model}".replace("/", "-")
        try:
            report = inspect(sources.tasks[task], [model], used, data=sources.data, worst=sources.worst)
        except StorageError:
            raise
        except HarnessError as error:
            tell(f"no gallery of {model} on {task}: {error}")
            continue
        plot = gallery_plot(f"scores-{name}", report)
        plot.write(out / "plots")
        text = gallery(report, pictures=sources.pictures, plot=plot.inline())
        write_text(out / "galleries" / f"{name}.html", text)
        about = f"{report.wrong:,} of {report.queries:,} queries not fully right"
        yield Link(f"{model} on {task}", f"galleries/{name}.html", about)


def _copy_results(used: Sequence[Stored], out: Path) -> None:
    for stored in used:
        for source in (stored.path, stored.path.with_suffix(SUFFIX)):
            if source.exists():
                target = (out / stored.result.path).with_name(source.name)
                try:
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(source, target)
                except OSError as error:
                    raise storage_error(target, error) from error


def _write_exports(
    sources: Sources, used: Sequence[Stored], out: Path, tell: Callable[[str], None]
) -> Iterator[Link]:
    """Everything for other tools; a link to the first file of each kind. Why one is not there is told."""
    results = [s.result for s in used]
    made = exports.mteb(results, out / "mteb")
    if made:
        yield Link("MTEB", "exports/mteb/", f"{len(made)} files in the layout of its results repository")
    models = dict.fromkeys((r.model, r.identity_id) for r in results if r.metrics and not r.check)
    for model, identity in models:
        mine = [r for r in results if (r.model, r.identity_id) == (model, identity)]
        card = Path(*mine[0].path.parts[:2])
        try:
            front = exports.model_index(mine, sources.tasks)
            entries = exports.eval_results(mine, sources.tasks)
        except HarnessError as error:
            tell(f"no model card of {model}: {error}")
            continue
        for name, text in {"README.md": front, **entries}.items():
            write_text(out / "cards" / card / name, text)
        yield Link(f"Model card of {model}", f"exports/cards/{card.as_posix()}/", identity)
    for stored in used if sources.trec else ():
        if not stored.path.with_suffix(RUN_SUFFIX).exists():
            continue
        try:
            run, qrels = exports.trec(stored, sources.tasks[stored.result.task], sources.data, out / "trec")
        except StorageError:
            raise
        except HarnessError as error:
            tell(f"no TREC run of {stored.result.model} on {stored.result.task}: {error}")
            continue
        yield Link(
            f"TREC run of {stored.result.model} on {stored.result.task}",
            f"exports/{run.relative_to(out).as_posix()}",
            f"qrels: exports/{qrels.relative_to(out).as_posix()}",
        )


def _provenance(used: Sequence[Stored]) -> dict[str, Any]:
    kept = ("model", "identity_id", "identity", "task", "protocol_id", "protocol", "status", "provenance")
    found = [{name: getattr(s.result, name) for name in kept} for s in used]
    return {"harness": __version__, "results": found}


def _json(value: object) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def _index(
    sources: Sources,
    boards: Sequence[Leaderboard],
    tables: Sequence[Link],
    plots: Sequence[Plot],
    galleries: Sequence[Link],
    exported: Sequence[Link],
    used: Sequence[Stored],
) -> str:
    own = [s.result for s in used if s.result.metrics]
    ours = [row for board in boards for row in board.rows if not (row.check or row.sources)]
    labels = list(dict.fromkeys(row.label for row in ours))
    averages = [{row.label: row for row in board.rows if not row.sources} for board in boards]
    return page(
        "report",
        title=f"Report on {', '.join(suite.name for suite in sources.suites)}",
        version=__version__,
        suites=[(suite.name, board.title) for suite, board in zip(sources.suites, boards, strict=True)],
        rows=[
            (label, [percent(rows[label].average) if label in rows else "" for rows in averages])
            for label in labels
        ],
        tables=tables,
        plots=[(plot, plot.inline()) for plot in plots],
        galleries=galleries,
        exports=exported,
        identities=list({r.identity_id: r for r in own}.values()),
        environments=list(dict.fromkeys(map(_environment, own))),
        commands=list(dict.fromkeys(str(r.provenance.get("command", "")) for r in own)),
        newest=max((str(r.provenance.get("started", "")) for r in own), default=""),
    )


def _environment(result: Result) -> str:
    made = result.provenance
    libraries = ", ".join(f"{name} {version}" for name, version in made.get("libraries", {}).items())
    parts = (
        f"harness {made.get('harness', 'unknown')}",
        f"Python {made.get('python', 'unknown')}",
        libraries,
        str(made.get("device", "")),
    )
    return ", ".join(filter(None, parts))
