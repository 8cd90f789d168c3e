"""Measured rows as pictures: ratios as bars with the goal of each, growth as curves."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from harness.plots import COLOURS, INK, Plot

from .growth import Growth
from .timing import Row

GOALS = (
    (r"^search .* ascending", "^faiss", 1.2),
    (r"^search .* k=(10|50|100),.* float32,", "^faiss.*SkylakeX", 1.05),
    (r"^search .* k=(10|50|100),.* float32,", "^faiss", 0.65),
    (r"^search .* k=(10|50|100),", "^faiss.*SkylakeX", 0.70),
    (r"^search .* k=(10|50|100),", "^faiss", 0.40),
    (r"^search .* k=(10|50|100),", "^torch", 0.60),
    (r"^search .* k=(10|50|100),", "^sentence-transformers", 0.50),
    (r"^search .* k=1000,", "^faiss", 0.85),
    (r"^search", "^ours, over", 1.10),
    (r"^search", "^one query", 0.10),
    (r"^galleries", "", 0.5),
    (r"^encode", "pool's order", 0.56),
    (r"^encode", "shuffled", 0.55),
    (r"^evaluate .* cold$", "", 0.6),
    (r"^evaluate .* warm$", "", 0.05),
    (r"metrics of", "^pytrec_eval evaluate", 1 / 15),
    (r"metrics of", "^ir-measures", 1 / 60),
    (r"^interval of Hit", "", 1 / 100),
    (r"^interval of", "", 1 / 50),
    (r"^table of .* lines$", "", 0.6),
)
"""At most so much of a peer's time: patterns of case and peer, the first that fits."""


def goal(row: Row) -> float | None:
    """The ratio that a row should not exceed, where there is one."""
    return next(
        (most for case, peer, most in GOALS if re.search(case, row.case) and re.search(peer, row.peer)), None
    )


def ratios(name: str, rows: Sequence[Row]) -> Plot:
    """A bar for each row, ours divided by the peer's; a line across it where the goal is."""

    def draw(figure: Any) -> None:
        axes = figure.add_subplot()
        cases = list(dict.fromkeys(row.case for row in rows))
        for y, row in enumerate(rows):
            colour = COLOURS[cases.index(row.case) % len(COLOURS)]
            axes.barh(y, row.ratio, color=colour)
            axes.text(row.ratio, y, f" {row.ratio:.3g}", va="center")
            if (most := goal(row)) is not None:
                axes.plot([most, most], [y - 0.45, y + 0.45], color=INK, linewidth=1.6)
        axes.axvline(1, color=INK, linewidth=0.8, linestyle=":")
        axes.set_xscale("log")
        axes.margins(x=0.15)
        axes.set_yticks(range(len(rows)), [f"{row.peer}\n{row.case}" for row in rows], fontsize=6)
        axes.invert_yaxis()
        axes.set_xlabel("time, ours / peer (left of 1 is faster; a line across a bar is its goal)")

    return Plot(name, "Time beside other libraries", draw, (9.6, 0.42 * len(rows) + 1.0))


def growth(name: str, grown: Sequence[Growth]) -> Plot:
    """Seconds over size, both logarithmic, one curve for each kind of work, as multiples of the least."""

    def draw(figure: Any) -> None:
        axes = figure.add_subplot()
        for each in grown:
            sizes = [size / each.sizes[0] for size in each.sizes]
            taken = [seconds / each.seconds[0] for seconds in each.seconds]
            label = f"{each.case}: exponent {each.exponent:.2f}"
            axes.plot(sizes, taken, marker="o", markersize=3, label=label)
        axes.plot(sizes, sizes, color=INK, linewidth=0.8, linestyle=":", label="exponent 1")
        axes.set_xscale("log", base=2)
        axes.set_yscale("log", base=2)
        axes.set_xlabel("work, multiples of the least")
        axes.set_ylabel("time, multiples of the least")
        axes.grid(True)
        axes.legend(fontsize=7)

    return Plot(name, "Cost as work grows", draw)
