"""What can go wrong, each with one line that names the thing, the place and the remedy.

HarnessError                  exit status 2 (1 where only some tasks of a run failed)
├── UnknownName               no model, task, suite, option or metric of that name
├── PluginError               a plugin offers something wrong, or two offer one name
├── DataMissing               files that a task needs are not there
├── DataInvalid               a file, record or item cannot be used as it is
├── NoSuchInstruction         the task has fewer instructions than the protocol asks for
├── CheckpointMissing         weights that a model needs are not there
├── Unsupported               the model cannot take this modality
├── BadEmbedding              rows that are not finite, constant, or wrong in number
├── DeviceLost                a device failed, and takes no more work from this process
├── ResultConflict            a stored result stands in the way
└── StorageError              a folder cannot be written, or a disk is full
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class HarnessError(Exception):
    """The root: printed as one line on stderr, without a traceback."""


class UnknownName(HarnessError):
    """A name that nobody registered; shows the near misses."""

    def __init__(self, kind: str, name: str, known: Iterable[str], *, hint: str = "", note: str = "") -> None:
        names = sorted(" ".join(each.split()) for each in known)
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
        if not near:
            near = [n for n in names if name and name.lower() in n.lower()][:3]
        if near:
            advice = f"did you mean {' or '.join(near)}?"
        elif names and len(names) <= 12:
            advice = f"known: {', '.join(names)}"
        else:
            advice = hint or f"{len(names)} known"
        super().__init__(f"unknown {kind} {name!r}: {advice}{note}")


class PluginError(HarnessError):
    """The plugin named in the message broke the contract."""


class DataMissing(HarnessError):
    """Data files are missing; the message lists all of them and where to get them."""


class DataInvalid(HarnessError):
    """A data file, a record in it, or a picture or clip cannot be used."""


class NoSuchInstruction(HarnessError):
    """Instruction number n of a task that has fewer; `all` takes those that there are."""


class CheckpointMissing(HarnessError):
    """Weights are missing or not loadable; the message says where they were looked for."""


class Unsupported(HarnessError):
    """The model cannot take items of this modality; the task's cell stays a gap."""


class BadEmbedding(HarnessError):
    """A model returned rows that cannot be right."""


class DeviceLost(HarnessError):
    """The device failed: whatever this process would do on it next fails too."""


class ResultConflict(HarnessError):
    """A stored result is in the way and may not be replaced silently."""


class StorageError(HarnessError):
    """Nothing can be written where something must be: disk full, or folder read-only."""
