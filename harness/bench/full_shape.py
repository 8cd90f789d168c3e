"""What a measured slice of a search says of M-BEIR's whole global one, with the arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from .pools import SearchSizes
from .timing import Row

QUERIES, CANDIDATES = 190_573, 5_609_079
"""Of M-BEIR's 16 tasks, and of the union of their pools."""


def full_shape(rows: Sequence[Row], sizes: SearchSizes) -> list[Row]:
    """The rows of a search, scaled to all of M-BEIR: its cost goes with queries times candidates. The
    memory is that of the slice."""
    scale = (QUERIES / sizes.queries) * (CANDIDATES / sizes.n)
    factors = f"({QUERIES:,} / {sizes.queries:,}) × ({CANDIDATES:,} / {sizes.n:,})"
    return [
        replace(
            row,
            case=f"M-BEIR global from a slice: {row.ours_s:.4g} s × {factors} ="
            f" {row.ours_s * scale / 3600:.3g} h; {row.case}",
            ours_s=row.ours_s * scale,
            peer_s=row.peer_s * scale,
            floor_s=row.floor_s * scale,
            floor=f"of the slice: {row.floor}",
        )
        for row in rows
    ]
