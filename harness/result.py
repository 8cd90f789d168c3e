"""A result: what one model scored on one task, with everything needed to trust it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from harness.digest import digest, file_digest
from harness.errors import ResultConflict
from harness.files import write_text
from harness.outcomes import SUFFIX, Outcomes
from harness.run import Run

SCHEMA = 1
CHECKSUM = "checksum"
"""The key of a result file that holds the digest of all that an equal evaluation repeats."""
RUN_SUFFIX = ".run.gz"
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
        data = json.loads(json.dumps(asdict(self)))
        data[CHECKSUM] = _checksum(data)
        write_text(path, json.dumps(data, indent=2, ensure_ascii=False) + "\n")
        return path

    @classmethod
    def read(cls, path: Path) -> Result:
        """Read a result file; raises ResultConflict where it is not one of ours, or not as it was written."""
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            if data["schema"] > SCHEMA:
                raise ResultConflict(
                    f"{path} was written by a newer harness (schema {data['schema']}, here {SCHEMA}): upgrade"
                )
            if data.pop(CHECKSUM, None) not in (None, _checksum(data)):  # the first results had none
                raise ResultConflict(
                    f"{path} was changed after it was written (its checksum does not fit):"
                    " copy it again, or run again with --overwrite-strategy always"
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


@dataclass(frozen=True, slots=True)
class Stored:
    """A result and the file that holds it; its run and per-query outcomes lie beside it."""

    result: Result
    path: Path

    @classmethod
    def read(cls, path: Path) -> Stored:
        """Raises ResultConflict."""
        return cls(Result.read(path), path)

    @property
    def started(self) -> str:
        """When it was made, ISO 8601; empty where it does not say."""
        return str(self.result.provenance.get("started", ""))

    def outcomes(self) -> Outcomes:
        """Every metric of every query. Raises ResultConflict where they are missing or changed."""
        return Outcomes.read(self._beside(SUFFIX))

    def run(self) -> Run:
        """The ranked lists. Raises ResultConflict where they are missing or changed, DataInvalid."""
        return Run.read(self._beside(RUN_SUFFIX))

    def _beside(self, suffix: str) -> Path:
        path = self.path.with_suffix(suffix)
        if not path.exists():
            raise ResultConflict(
                f"{path} is missing: copy it from where the result was made,"
                " or run again with --overwrite-strategy always"
            )
        written = self.result.provenance.get("written", {}).get(suffix)
        if written not in (None, file_digest(path)):
            raise ResultConflict(
                f"{path} is not the file that was written with its result (its checksum does not fit):"
                " copy it again, or run again with --overwrite-strategy always"
            )
        return path


def result_path(model: str, identity: str, task: str, protocol: str) -> Path:
    """`<model>/<identity_id>/<task>/<protocol_id>.json`, slashes in names as double underscores."""
    return Path(_folder(model), identity, _folder(task), f"{protocol}.json")


def read_stored(folder: Path) -> list[Stored]:
    """All results below an output folder, in path order; not what exporters wrote beside them."""
    return [Stored.read(path) for path in sorted(folder.glob("*/*/*/*.json")) if "." not in path.stem]


def read_results(folder: Path) -> list[Result]:
    """As `read_stored`, the results alone."""
    return [stored.result for stored in read_stored(folder)]


def _checksum(data: Mapping[str, Any]) -> str:
    return digest({key: value for key, value in data.items() if key not in ("provenance", CHECKSUM)})


def _folder(name: str) -> str:
    return name.replace("/", "__")


def _scores(scores: Mapping[str, Any]) -> dict[str, Score]:
    return {name: Score(s["value"], (s["ci95"][0], s["ci95"][1]), s["n"]) for name, s in scores.items()}
