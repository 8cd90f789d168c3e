"""Leaderboards as Markdown, CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence

from harness.exposure import Status
from harness.leaderboard import GAP, Leaderboard, Row, Standing, plain

from .table import Shown, averages, blocks, numbers, shown, sources

EXPOSED: Mapping[Status | None, str] = {"trained": "ᵗ", "held out": "ʰ"}


def markdown(board: Leaderboard) -> str:
    from tabulate import tabulate

    known = sources(board)
    parts = blocks(board)
    sized = any(row.size for row in board.rows)
    titles = ["Model", *(["Size"] if sized else [])]
    lead = len(titles)
    titles += [*(f"{plain(h.title)} {h.metric}" for h in board.headings), *averages(board)]
    body = []
    for block, rows in parts:
        if [name for name, _ in parts] != ["single model"]:
            body.append([f"*{block}*", *[""] * (len(titles) - 1)])
        body += [
            [_name(row, known), *([row.size or ""] if sized else []), *(_cell(c, row) for c in cells)]
            for row, cells in zip(rows, shown(rows, board.statuses), strict=True)
        ]
    groups = [h.group for h in board.headings]
    if len(set(groups)) > 1:
        firsts = [g if i == 0 or groups[i - 1] != g else "" for i, g in enumerate(groups)]
        header = [*[""] * lead, *map(plain, firsts), *[""] * len(averages(board))]
        body = [[f"*{t}*" for t in titles], *body]
    else:
        header = titles
    align = ["left", *["right"] * (len(titles) - 1)]
    table = tabulate(body, headers=header, tablefmt="pipe", colalign=align, disable_numparse=True)
    below = [*board.notes, *(f"<sup>{i}</sup> {plain(source)}" for i, source in enumerate(known, 1))]
    notes = "".join(f"\n{note.replace('Italics:', '*Italics*:', 1)}  " for note in below)
    return f"### {board.title}\n\n{table}\n{notes}\n" if notes else f"### {board.title}\n\n{table}\n"


def _name(row: Row, known: Sequence[str]) -> str:
    mark = " *check*" if row.check else " *oracle*" if row.oracle else ""
    label = plain(row.label) + mark
    cited = ",".join(map(str, numbers(row, known)))
    return f"{label} <sup>{cited}</sup>" if cited else label


def _cell(cell: Shown, row: Row) -> str:
    if cell.text == GAP:
        return GAP
    text = f"*{cell.text}*" if row.sources else cell.text
    text = {"best": f"**{text}**", "second": f"<u>{text}</u>", "": text}[cell.place]
    marks = EXPOSED.get(cell.status, ""), "≈" if cell.tied else "", "†" if row.marked else ""
    return text + "".join(marks)


def csv_(board: Leaderboard) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    titles = [f"{h.group}/{h.title} {h.metric}".lstrip("/") for h in board.headings]
    writer.writerow(["model", "identity_id", "check", "block", "size", "sources", *titles, *averages(board)])
    for row in board.rows:
        cells = (*row.values, row.average, *(row.averages.get(s) for s in board.statuses))
        values = ["" if v is None else repr(v) for v in cells]
        about = [row.label, row.identity_id, str(row.check).lower(), row.block, row.size or ""]
        writer.writerow([*about, "; ".join(row.sources), *values])
    return out.getvalue()


def json_(board: Leaderboard) -> str:
    rows = []
    for row in board.rows:
        cells = [
            {
                "group": h.group,
                "title": h.title,
                "metric": h.metric,
                "value": v,
                "ci95": row.interval(c, h.key),
                "tied": (row.standing(c) or Standing()).tied is not None,
                "exposure": e.status,
                "evidence": e.evidence,
            }
            for c, (h, v, e) in enumerate(zip(board.headings, row.values, row.exposures, strict=True))
        ]
        mean = row.standing(len(row.values)) or Standing()
        rows.append(
            {
                "model": row.model,
                "label": row.label,
                "identity_id": row.identity_id,
                "check": row.check,
                "marked": row.marked,
                "oracle": row.oracle,
                "block": row.block,
                "size": row.size,
                "plugin": row.plugin,
                "sources": row.sources,
                "average": row.average,
                "average_ci95": mean.ci95,
                "average_tied": mean.tied is not None,
                "average_rank": mean.rank,
                "averages": row.averages,
                "cells": cells,
            }
        )
    return (
        json.dumps({"title": board.title, "rows": rows, "notes": board.notes}, indent=2, ensure_ascii=False)
        + "\n"
    )
