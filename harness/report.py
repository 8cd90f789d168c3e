"""A report: leaderboards, plots, galleries and provenance in one folder, to be published as it is.

index.html            what is in it, the plots, how it was made
leaderboard.*         the tables as HTML, Markdown, LaTeX, CSV and JSON
ablations.*           the same of variants, where any was measured
plots/*.svg, *.png    the plots
galleries/*.html      what each model gets wrong, for every task whose data is there
results/              the results and the outcome of every query, as `harness eval` stored them
exports/              the same in other tools' formats
provenance.json       identities, protocols, environments and commands
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import __version__
from harness.ablations import Variant
from harness.boards import JOINED, ablation_table, document
from harness.errors import HarnessError, StorageError
from harness.failures import inspect
from harness.figures import ablation_plots, board_plots, gallery_plot
from harness.files import require_writable, storage_error, write_text
from harness.gallery import gallery
from harness.leaderboard import Format, Leaderboard, leaderboard, percent
from harness.model import ModelSpec, RerankerSpec
from harness.page import page
from harness.plots import Plot
from harness.published import Reported
from harness.result import Result
from harness.task import Suite, Task

FILES: Mapping[Format, tuple[str, str]] = {
    "html": (".html", "HTML"),
    "markdown": (".md", "Markdown"),
    "latex": (".tex", "LaTeX"),
    "csv": (".csv", "CSV"),
    "json": (".json", "JSON"),
}
"""Of each form, the suffix of its file and its name."""
Export = Callable[[Sequence[tuple[Result, Path]], Path], Sequence[Path]]
"""From results and the folders that they lie in to the files written below a folder."""
EXPORTS: tuple[Export, ...] = ()
"""What writes the folder `exports`, one function for each format."""


@dataclass(frozen=True, slots=True)
class Sources:
    """All that a report is made of. `folders` hold results; `worst` 0 makes no galleries."""

    suites: Sequence[Suite]
    tasks: Mapping[str, Task]
    models: Mapping[str, ModelSpec | RerankerSpec]
    folders: Sequence[Path]
    data: Path
    cache: Path
    reported: Sequence[Reported] = ()
    variants: Sequence[Variant] = ()
    ablated: Sequence[Suite] = ()
    worst: int = 20
    pictures: bool = True


@dataclass(frozen=True, slots=True)
class Link:
    """A file of the report, below its folder."""

    title: str
    path: str
    about: str = ""


def write_report(
    sources: Sources, results: Sequence[tuple[Result, Path]], out: Path, tell: Callable[[str], None]
) -> Path:
    """Write the whole report; returns its index. `results` come with the folders that they lie in."""
    require_writable(out, "the report's folder")
    boards = [_board(sources, [suite], results) for suite in sources.suites]
    if not any(board.rows for board in boards):
        raise HarnessError(
            f"there is nothing to report on {', '.join(s.name for s in sources.suites)}: run 'harness eval'"
        )
    wanted = {name for suite in sources.suites for name in suite.tasks}
    used = [(r, folder) for r, folder in results if r.task in wanted]
    tables = _write_boards(sources, boards, results, out)
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
    exports = [path for export in EXPORTS for path in export(used, out / "exports")]
    write_text(out / "provenance.json", _json(_provenance(used)))
    index = out / "index.html"
    write_text(index, _index(sources, boards, tables, plots, galleries, exports, used, out))
    return index


def _board(sources: Sources, suites: Sequence[Suite], results: Sequence[tuple[Result, Path]]) -> Leaderboard:
    found = [result for result, _ in results]
    return leaderboard(suites, sources.tasks, found, models=sources.models, reported=sources.reported)


def _write_boards(
    sources: Sources, boards: Sequence[Leaderboard], results: Sequence[tuple[Result, Path]], out: Path
) -> list[Link]:
    links = []
    for form, (suffix, name) in FILES.items():
        shown = [_board(sources, sources.suites, results)] if form in JOINED else boards
        write_text(out / f"leaderboard{suffix}", document(shown, form))
        links.append(Link(name, f"leaderboard{suffix}"))
        if any(variant.measured for variant in sources.variants):
            write_text(out / f"ablations{suffix}", ablation_table(sources.variants, sources.ablated, form))
            links.append(Link(f"Ablations, {name}", f"ablations{suffix}"))
    return links


def _write_galleries(
    sources: Sources,
    used: Sequence[tuple[Result, Path]],
    out: Path,
    tell: Callable[[str], None],
) -> Iterator[Link]:
    """A gallery and a plot of its scores for each model and task that has a run and its data; why there
    is none is told."""
    cells = dict.fromkeys((r.task, r.model) for r, _ in used if r.metrics and not r.check)
    for task, model in sorted(cells) if sources.worst else ():
        name = f"{task}-{model}".replace("/", "-")
        try:
            report = inspect(
                sources.tasks[task],
                [model],
                sources.folders,
                data=sources.data,
                cache=sources.cache,
                worst=sources.worst,
            )
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


def _copy_results(used: Sequence[tuple[Result, Path]], out: Path) -> None:
    for result, folder in used:
        for source in (folder / result.path, (folder / result.path).with_suffix(".queries.parquet")):
            if source.exists():
                target = out / source.relative_to(folder)
                try:
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(source, target)
                except OSError as error:
                    raise storage_error(target, error) from error


def _provenance(used: Sequence[tuple[Result, Path]]) -> dict[str, Any]:
    return {
        "harness": __version__,
        "results": [
            {
                "model": r.model,
                "identity_id": r.identity_id,
                "identity": r.identity,
                "task": r.task,
                "protocol_id": r.protocol_id,
                "protocol": r.protocol,
                "status": r.status,
                "provenance": r.provenance,
            }
            for r, _ in used
        ],
    }


def _json(value: object) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def _index(
    sources: Sources,
    boards: Sequence[Leaderboard],
    tables: Sequence[Link],
    plots: Sequence[Plot],
    galleries: Sequence[Link],
    exports: Sequence[Path],
    used: Sequence[tuple[Result, Path]],
    out: Path,
) -> str:
    own = [r for r, _ in used if r.metrics]
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
        exports=[Link(path.name, path.relative_to(out).as_posix()) for path in exports],
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
