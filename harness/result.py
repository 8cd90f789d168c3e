"""A result: what one model scored on one task, with everything needed to trust it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from harness.errors import ResultConflict
from harness.files import write_text

SCHEMA = 1
Status = Literal["complete", "partial", "unscored", "unsupported"]


@dataclass(frozen=True, slots=True)
class Score:
    """A mean over `n` queries in [0, 1], and its 95 % bootstrap interval."""

    value: float
    ci95: tuple[float, float]
    n: int


@dataclass(frozen=True, slots=True)
class Result:
    """One model on one task. Values lie in [0, 1] at full precision; only tables multiply by 100.

    status: "complete"; "partial" (made with a limit); "unscored" (the truth is hidden);
    "unsupported" (the model cannot take the task's modalities; no metrics, never a zero).
    Everything but `provenance` is the same whenever the same evaluation is repeated.
    """

    model: str
    identity: Mapping[str, str]
    identity_id: str
    task: str
    protocol: Mapping[str, Any]
    protocol_id: str
    status: Status
    metrics: Mapping[str, Score] = field(default_factory=dict)
    headline: str | None = None
    groups: Mapping[str, Mapping[str, Score]] = field(default_factory=dict)
    ties: Mapping[str, Any] = field(default_factory=dict)
    analysis: Mapping[str, Any] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    check: bool = False
    provenance: Mapping[str, Any] = field(default_factory=dict)
    schema: int = SCHEMA

    @property
    def path(self) -> Path:
        """Where it lies below the output folder."""
        return result_path(self.model, self.identity_id, self.task, self.protocol_id)

    def write(self, output_dir: Path) -> Path:
        """Write it whole or not at all; returns the file."""
        path = output_dir / self.path
        write_text(path, json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n")
        return path

    @classmethod
    def read(cls, path: Path) -> Result:
        """Read a result file; raises ResultConflict where it is not one of ours."""
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            if data["schema"] > SCHEMA:
                raise ResultConflict(
                    f"{path} was written by a newer harness (schema {data['schema']}, here {SCHEMA}): upgrade"
                )
            data["metrics"] = _scores(data["metrics"])
            data["groups"] = {name: _scores(scores) for name, scores in data["groups"].items()}
            data["notes"] = tuple(data["notes"])
            return cls(**data)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ResultConflict(
                f"{path} is not a readable result ({type(error).__name__}: {error}):"
                " delete it, or run again with --overwrite-strategy always"
            ) from error


def result_path(model: str, identity: str, task: str, protocol: str) -> Path:
    """`<model>/<identity_id>/<task>/<protocol_id>.json`, slashes in names as double underscores."""
    return Path(_folder(model), identity, _folder(task), f"{protocol}.json")


def read_results(folder: Path) -> list[Result]:
    """All results below an output folder, in path order."""
    return [Result.read(path) for path in sorted(folder.glob("*/*/*/*.json"))]


def _folder(name: str) -> str:
    return name.replace("/", "__")


def _scores(scores: Mapping[str, Any]) -> dict[str, Score]:
    return {name: Score(s["value"], (s["ci95"][0], s["ci95"][1]), s["n"]) for name, s in scores.items()}
