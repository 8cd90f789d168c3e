"""A slow evaluation for the kill tests: `python kill_target.py FOLDER LOG`."""

from __future__ import annotations

import sys
from pathlib import Path

import harness.encode
import toys
from harness.evaluate import evaluate
from harness.store import Store

harness.encode.WINDOW_ITEMS = 16


class LoggedStore(Store):
    """Says which keys became durable."""

    def add(self, keys, rows, facts=None):  # type: ignore[no-untyped-def]
        super().add(keys, rows, facts)
        with LOG.open("a") as log:
            log.write("".join(f"stored {k.hex()}\n" for k in keys.tolist()))


if __name__ == "__main__":
    FOLDER, LOG = map(Path, sys.argv[1:])
    harness.evaluate.Store = LoggedStore  # type: ignore[attr-defined]
    FOLDER.mkdir(parents=True, exist_ok=True)
    model = toys.spec(toys.Toy(sleep=0.01))
    tasks = [
        toys.task(lambda: toys.collection(150), "toys/a"),
        toys.task(lambda: toys.collection(220), "toys/b"),
    ]
    outcomes = evaluate(toys.catalog([model], tasks), model, {}, tasks, toys.places(FOLDER, batch_tokens=120))
    sys.exit(any(o.error for o in outcomes))
