"""How a plan is printed."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from .shared import GAP

if TYPE_CHECKING:
    from harness.plan import Plan

HEADS = ("task", "queries", "candidates", "state", "to encode", "tokens", "disk", "search memory", "time")


def print_plans(
    plans: Sequence[Plan], devices: int, price: float | None, cache_dir: Path, as_json: bool
) -> None:
    """A row for each task and what they add up to, on one device and on so many; as JSON the rows alone."""
    counts = sorted({1, devices})
    if as_json:
        typer.echo(json.dumps([_row(plan, counts, price) for plan in plans], indent=2))
        return
    from tabulate import tabulate

    rows = [
        (p.task, p.queries, p.candidates, p.state, p.to_encode, p.tokens, *sizes, _time(p.on(1)))
        for p in plans
        for sizes in [(_size(p.disk), _size(p.search_memory))]
    ]
    typer.echo(tabulate(rows, headers=HEADS, tablefmt="simple", intfmt=","))
    typer.echo(_work(plans))
    typer.echo(_space(plans, cache_dir))
    seconds = {n: sum(plan.on(n) for plan in plans) for n in counts}
    times = ", ".join(f"{_time(s)} on {n} device{'s' * (n > 1)}" for n, s in seconds.items())
    basis = dict.fromkeys(f"{p.source}, within a factor of {p.within:g}" for p in plans if p.on(1))
    typer.echo(f"time: {times}" + (f" ({'; '.join(basis)})" if basis else ""))
    if price is not None:
        prices = ", ".join(f"{_money(s, n, price):,.2f} on {n}" for n, s in seconds.items())
        typer.echo(f"price: {prices}")


def _work(plans: Sequence[Plan]) -> str:
    modalities: Counter[str] = Counter()
    for plan in plans:
        modalities.update(plan.modalities)
    left = ", ".join(f"{n:,} {modality}" for modality, n in sorted(modalities.items())) or "nothing"
    return f"to encode: {left}; {sum(plan.tokens for plan in plans):,} tokens"


def _space(plans: Sequence[Plan], cache_dir: Path) -> str:
    disks = [plan.disk for plan in plans]
    disk = None if None in disks else sum(size for size in disks if size is not None)
    memory = max((p.search_memory for p in plans if p.search_memory is not None), default=None)
    free = _size(_free(cache_dir))
    return f"disk: {_size(disk)} below {cache_dir}, {free} free; search memory: up to {_size(memory)}"


def _row(plan: Plan, counts: Sequence[int], price: float | None) -> dict[str, Any]:
    from dataclasses import asdict

    on = {
        str(n): {
            "seconds": round(plan.on(n), 3),
            "price": None if price is None else round(_money(plan.on(n), n, price), 4),
        }
        for n in counts
    }
    return {**asdict(plan), "devices": on}


def _money(seconds: float, devices: int, price: float) -> float:
    return seconds / 3600 * devices * price


def _size(size: int | None) -> str:
    from harness.hub import shown

    return GAP if size is None else shown(size)


def _free(folder: Path) -> int:
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free


def _time(seconds: float) -> str:
    """ "0.4 s", "12 min", "5.2 h" """
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:,.1f} h"
