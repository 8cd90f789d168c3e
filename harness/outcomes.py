"""Outcomes: every metric of every query of one evaluation, as stored beside its result.

query  hit_at_1  recall_at_5  ndcg_at_10
9:123       0.0          0.5       0.431
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from harness.errors import ResultConflict
from harness.files import write_atomic

SUFFIX = ".queries.parquet"
QUERY = "query"
Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Outcomes:
    """The queries' ids, and for each metric (its JSON key) their values in the same order."""

    queries: tuple[str, ...]
    values: Mapping[str, Float64]

    def sorted(self) -> Outcomes:
        """In the order of the queries' ids, so that two evaluations can be laid side by side."""
        order = sorted(range(len(self.queries)), key=self.queries.__getitem__)
        ids = tuple(self.queries[i] for i in order)
        return Outcomes(ids, {key: values[order] for key, values in self.values.items()})

    def write(self, path: Path) -> None:
        """Write them whole or not at all."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        table = pa.table({QUERY: list(self.queries), **self.values})
        write_atomic(path, lambda file: pq.write_table(table, file, compression="zstd"))

    @classmethod
    def read(cls, path: Path) -> Outcomes:
        """Raises ResultConflict where the file cannot be read or names a query twice."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            table = pq.read_table(path)
            queries = tuple(table.column(QUERY).to_pylist())
            values = {
                name: np.asarray(table.column(name).to_numpy(), dtype=np.float64)
                for name in table.column_names
                if name != QUERY
            }
        except (OSError, KeyError, ValueError, pa.ArrowException) as error:
            raise ResultConflict(
                f"{path} holds no per-query outcomes ({type(error).__name__}: {error}):"
                " copy it again, or run again with --overwrite-strategy always"
            ) from error
        if len(set(queries)) < len(queries):
            twice = next(q for i, q in enumerate(queries) if q in queries[:i])
            raise ResultConflict(f"{path}: query {twice!r} is there twice: run again")
        return cls(queries, values)
