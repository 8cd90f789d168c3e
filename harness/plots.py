"""Plots of results, as SVG and PNG: the same numbers always give the same bytes.

Colours are those of Okabe and Ito (2008), which colour-blind readers tell apart. Ink is mid-grey and the
ground transparent, so that a plot stands on a light page and on a dark one.
"""

from __future__ import annotations

import html
import io
import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from harness.errors import HarnessError
from harness.files import write_atomic

if TYPE_CHECKING:
    from collections.abc import Iterator

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F")
INK = "#6b7078"
MOST = len(COLOURS)
"""Beyond so many series a plot cannot be read: the first ones are drawn."""

Draw = Callable[[Any], None]


@dataclass(frozen=True, slots=True)
class Plot:
    """A picture to be drawn: the stem of its file, what is seen on it, and what draws it on a figure.

    The title is no part of the picture, as papers and pages put a caption below it; the files hold it
    beside the picture.
    """

    name: str
    title: str
    draw: Draw
    size: tuple[float, float] = (6.4, 4.0)

    def svg(self) -> str:
        """The plot as SVG, its text kept as text."""
        return self._bytes("svg").decode()

    def inline(self) -> str:
        """The plot as an element of an HTML page: its ink is the page's, its ids are only those it needs."""
        svg = self.svg()
        svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
        svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
        used = set(re.findall(r"#([\w.-]+)", svg))
        svg = re.sub(r' id="([^"]+)"', lambda m: m[0] if m[1] in used else "", svg)
        return svg.replace("<svg", f'<svg role="img" aria-label="{html.escape(self.title)}"', 1)

    def png(self) -> bytes:
        return self._bytes("png")

    def write(self, folder: Path) -> list[Path]:
        """Write the SVG and the PNG; returns the files."""
        made = {".svg": self.svg().encode(), ".png": self.png()}
        paths = [folder / f"{self.name}{suffix}" for suffix in made]
        for path, content in zip(paths, made.values(), strict=True):
            write_atomic(path, lambda file, content=content: file.write(content))  # type: ignore[misc]
        return paths

    def _bytes(self, form: str) -> bytes:
        with _style(self.name), warnings.catch_warnings():
            from matplotlib.backends.backend_agg import FigureCanvasAgg
            from matplotlib.figure import Figure

            figure = Figure(figsize=self.size, layout="constrained")
            FigureCanvasAgg(figure)
            self.draw(figure)
            out = io.BytesIO()
            unsaid = {"Date": None, "Creator": None} if form == "svg" else {"Software": None}
            # SVG keeps a letter that the font lacks; PNG has a box there, as browsers do.
            warnings.filterwarnings("ignore", message="Glyph .* missing from font")
            figure.savefig(
                out, format=form, dpi=160, transparent=True, metadata={**unsaid, "Title": self.title}
            )
        return out.getvalue()


@contextmanager
def _style(salt: str) -> Iterator[None]:
    try:
        import matplotlib as mpl
        from cycler import cycler
    except ImportError as error:
        raise HarnessError("plots need matplotlib: pip install 'umr-harness[plots]'") from error
    settings: Any = {
        "svg.hashsalt": salt,
        "svg.fonttype": "none",
        "font.family": "sans-serif",
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.prop_cycle": cycler(color=COLOURS),
        "grid.color": INK,
        "grid.alpha": 0.25,
        "grid.linewidth": 0.6,
        "legend.frameon": False,
        **dict.fromkeys(
            ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK
        ),
    }
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(settings)
        yield


Scores = Mapping[str, Mapping[str, float]]
"""Series (a model) → label (a group, a task) → share in [0, 1]."""


def _axes(scores: Scores) -> list[str]:
    return list(dict.fromkeys(label for values in scores.values() for label in values))


def _first(scores: Mapping[str, Any]) -> list[str]:
    return list(scores)[:MOST]


def radar(name: str, title: str, scores: Scores) -> Plot:
    """One axis for each label, one outline for each series; an axis that a series lacks stays open."""
    labels = _axes(scores)
    angles = [2 * math.pi * i / len(labels) for i in range(len(labels))]

    def draw(figure: Any) -> None:
        axes = figure.add_subplot(projection="polar")
        axes.set_theta_zero_location("N")
        axes.set_theta_direction(-1)
        for series in _first(scores):
            values = [100 * scores[series].get(label, math.nan) for label in labels]
            axes.plot([*angles, angles[0]], [*values, values[0]], linewidth=1.6, label=_plain(series))
            axes.fill(angles, np.nan_to_num(values), alpha=0.07)
        axes.set_xticks(angles, map(_plain, labels))
        axes.set_ylim(0, 100)
        axes.set_yticks([25, 50, 75], ["25", "50", "75"])
        axes.grid(True)
        _legend(figure)

    return Plot(name, title, draw, (6.4, 5.6))


def bars(
    name: str,
    title: str,
    scores: Scores,
    intervals: Mapping[str, Mapping[str, tuple[float, float]]] | None = None,
) -> Plot:
    """A group of bars for each label, one for each series; whiskers are 95 % intervals."""
    labels = _axes(scores)

    def draw(figure: Any) -> None:
        axes = figure.add_subplot()
        names = _first(scores)
        width = 0.8 / len(names)
        for i, series in enumerate(names):
            at = [x + (i - (len(names) - 1) / 2) * width for x in range(len(labels))]
            values = [100 * scores[series].get(label, 0.0) for label in labels]
            axes.bar(at, values, width * 0.92, label=_plain(series))
            for x, value, label in zip(at, values, labels, strict=True):
                if label not in scores[series]:
                    axes.text(x, 1, "–", ha="center")
                elif label in (intervals or {}).get(series, {}):
                    low, high = (intervals or {})[series][label]
                    whisker = [[max(0, value - 100 * low)], [max(0, 100 * high - value)]]
                    axes.errorbar(x, value, whisker, color=INK, linewidth=0.9, capsize=2)
        axes.set_xticks(range(len(labels)), map(_plain, labels), rotation=30 if len(labels) > 8 else 0)
        axes.set_ylim(0, 100)
        axes.set_ylabel("%")
        axes.yaxis.grid(True)
        axes.set_axisbelow(True)
        _legend(figure)

    return Plot(name, title, draw, (max(6.4, 0.55 * len(labels) + 2), 4.0))


def curves(name: str, title: str, hits: Mapping[str, Mapping[int, float]]) -> Plot:
    """Hit@k over k, on a logarithmic axis."""

    def draw(figure: Any) -> None:
        axes = figure.add_subplot()
        ticks = sorted({k for values in hits.values() for k in values})
        for series in _first(hits):
            found = sorted(hits[series].items())
            axes.plot(
                [k for k, _ in found],
                [100 * v for _, v in found],
                marker="o",
                markersize=3,
                label=_plain(series),
            )
        axes.set_xscale("log")
        shown = [k for k in (1, 2, 5, 10, 20, 50, 100) if k in ticks] or ticks
        axes.set_xticks(shown, map(str, shown))
        axes.minorticks_off()
        axes.set_ylim(0, 100)
        axes.set_xlabel("k")
        axes.set_ylabel("hit@k, %")
        axes.grid(True)
        _legend(figure)

    return Plot(name, title, draw)


def score_histogram(
    name: str, title: str, positives: npt.NDArray[np.float32], negatives: npt.NDArray[np.float32]
) -> Plot:
    """Scores of relevant candidates against those of each query's best placed wrong one."""

    def draw(figure: Any) -> None:
        axes = figure.add_subplot()
        both = np.concatenate([positives, negatives])
        bins = int(np.clip(2 * math.sqrt(len(both)), 8, 60))
        edges = np.linspace(both.min(), both.max() + 1e-6, bins + 1) if len(both) else [0.0, 1.0]
        for label, values in (("relevant", positives), ("hardest wrong", negatives)):
            axes.hist(values, bins=edges, alpha=0.55, label=f"{label} ({len(values):,})")
        axes.set_xlabel("score")
        axes.set_ylabel("candidates")
        _legend(figure)

    return Plot(name, title, draw)


@dataclass(frozen=True, slots=True)
class Step:
    """A bar of a waterfall: what was changed, the score after it and the one before, and the interval
    of the difference; shares in [0, 1]."""

    label: str
    value: float
    base: float | None
    ci95: tuple[float, float] | None = None


def waterfall(name: str, title: str, steps: Sequence[Step]) -> Plot:
    """From what each variant varies to what it scores, in points; a step without a base is a line."""

    def draw(figure: Any) -> None:
        axes = figure.add_subplot()
        for y, step in enumerate(steps):
            value = 100 * step.value
            if step.base is None:
                axes.axvline(value, color=INK, linewidth=0.8)
                axes.plot(value, y, "o", color=COLOURS[0])
                axes.text(value, y, f"  {value:.1f}", va="center")
                continue
            delta = value - 100 * step.base
            axes.barh(y, delta, left=100 * step.base, color=COLOURS[2 if delta >= 0 else 1])
            if step.ci95 is not None:
                ends = [100 * (step.base + end) for end in step.ci95]
                axes.plot(ends, [y, y], color=INK, linewidth=0.9, marker="|", markersize=5)
            shown = f" {value:.1f} ({delta:+.1f})".replace("-", "−")
            axes.text(max(value, 100 * step.base), y, shown, va="center")
        axes.margins(x=0.2)
        axes.set_yticks(range(len(steps)), [_plain(step.label) for step in steps])
        axes.invert_yaxis()
        axes.set_xlabel("average, %")

    return Plot(name, title, draw, (8.4, 0.32 * len(steps) + 1.4))


def speed(name: str, title: str, points: Mapping[str, tuple[float, float]]) -> Plot:
    """Items a second (logarithmic) against the average, one labelled point for each model."""

    def draw(figure: Any) -> None:
        from matplotlib.ticker import LogLocator

        axes = figure.add_subplot()
        for i, (series, (rate, value)) in enumerate(points.items()):
            axes.scatter(rate, 100 * value, color=COLOURS[i % MOST])
            axes.annotate(
                _plain(series), (rate, 100 * value), xytext=(6, 4), textcoords="offset points", fontsize=8
            )
        rates = [rate for rate, _ in points.values()]
        near = max(rates) < 100 * min(rates)
        axes.set_xscale("log", subs=[])
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if near else (1,)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.margins(0.15)
        axes.set_xlabel("items embedded a second")
        axes.set_ylabel("average, %")
        axes.grid(True)

    return Plot(name, title, draw)


def _legend(figure: Any) -> None:
    labels = [label for axes in figure.axes for label in axes.get_legend_handles_labels()[1]]
    figure.legend(loc="outside lower center", ncols=2 if max(map(len, labels), default=0) > 16 else 4)


def _plain(text: str) -> str:
    """Text in which matplotlib sees no formula."""
    return text.replace("$", r"\$")
