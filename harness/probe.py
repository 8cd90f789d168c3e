"""A probe of a device: the budget of a batch at which it embeds most."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np

from harness.device import Budget, Runner

GROWTH = 1.05
"""Twice the budget is worth it from so much more tokens a second on; more costs memory alone."""
WORTH = 64
"""A probe embeds a few batches for nothing: it is made where so many are to do."""
ROUNDS = 2


def best_budget(runner: Runner, start: int) -> int:
    """The budget at which a device embeds most tokens a second: doubled from about `start` for as long as
    that pays, the items last and it fits in memory.

    Each is tried on one batch of items of ordinary cost. Nothing is kept of what is embedded.
    """
    order = np.argsort(runner.costs, kind="stable")
    ordinary = int(runner.costs[order[len(order) // 2]])
    count, best, found = max(1, start // ordinary), 0.0, start
    while count <= len(order):
        first = (len(order) - count) // 2
        positions = order[first : first + count].tolist()
        budget = int(runner.costs[positions].max()) * count
        rate = _rate(runner, positions, budget)
        if rate < GROWTH * best:
            break
        best, found = rate, budget
        count *= 2
    return found


def _rate(runner: Runner, positions: list[int], budget: int) -> float:
    """Tokens a second of a batch, the first time not counted; 0 where it does not fit."""
    trial = replace(runner, budget=Budget(budget))
    prepared = runner.source[0, positions]
    seconds = []
    for _ in range(1 + ROUNDS):
        clock = time.perf_counter()
        trial.land(trial.launch(prepared))
        seconds.append(time.perf_counter() - clock)
        if trial.budget.tokens < budget:
            return 0.0
    return budget / max(min(seconds[1:]), 1e-9)
