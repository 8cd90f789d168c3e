"""What a training run says about itself, step by step: a CSV, and its curves as a picture."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from harness.files import write_text


@dataclass(frozen=True, slots=True)
class Record:
    """A CSV with a row a step; the columns are those of the first row."""

    path: Path
    writes: bool

    @classmethod
    def open(cls, path: Path, start: int, *, writes: bool) -> Record:
        """Go on after so many steps: what was logged beyond them is made again."""
        if writes and path.exists():
            rows = read(path)[:start]
            write_text(path, _text(rows, head=True) if rows else "")
        return cls(path, writes)

    def add(self, step: int, values: Mapping[str, float]) -> None:
        if not self.writes:
            return
        head = not self.path.exists() or not self.path.stat().st_size
        with self.path.open("a", encoding="utf-8") as file:
            file.write(_text([{"step": step, **values}], head=head))

    def plot(self, path: Path) -> None:
        """The curves over the steps, where matplotlib is there."""
        try:
            from matplotlib.figure import Figure
        except ImportError:
            return
        rows = read(self.path) if self.writes else []
        if not rows:
            return
        names = [name for name in rows[0] if name not in ("step", "seconds")]
        figure = Figure(figsize=(7, 1.8 * len(names)), layout="constrained")
        for axes, name in zip(
            figure.subplots(len(names), sharex=True, squeeze=False)[:, 0], names, strict=True
        ):
            axes.plot([row["step"] for row in rows], [row[name] for row in rows], linewidth=1)
            axes.set_ylabel(name.replace("_", " "))
        axes.set_xlabel("step")
        figure.savefig(path, metadata={"Date": None})


def read(path: Path) -> list[dict[str, float]]:
    """The rows; one that was cut off by a crash is left out."""
    rows = list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))
    whole = (row for row in rows if None not in row.values())
    return [{k: int(v) if k == "step" else float(v) for k, v in row.items()} for row in whole]


def _text(rows: list[dict[str, float]], *, head: bool) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, rows[0], lineterminator="\n")
    if head:
        writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()
