"""Leaderboards as LaTeX tables in the style of booktabs, to be read in by a paper with \\input."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from itertools import groupby

from harness.exposure import Status
from harness.leaderboard import GAP, Leaderboard, Row

from .table import Shown, averages, blocks, evidence, numbers, shown, sources

NARROW = 10
"""Tables of more columns than this have their titles turned."""
HEAD = "% Needs \\usepackage{booktabs} and \\usepackage{graphicx}."
EXPOSED: dict[Status | None, str] = {"trained": r"\textsuperscript{t}", "held out": r"\textsuperscript{h}"}
SIGNS = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",
    "[": "{[}",
    "]": "{]}",
    "–": "--",
    "—": "---",
    "…": r"\ldots{}",
    "→": r"$\to$",
    "−": r"$-$",
    "±": r"$\pm$",
    "×": r"$\times$",
    "≤": r"$\le$",
    "≥": r"$\ge$",
    "α": r"$\alpha$",
    "β": r"$\beta$",
    "λ": r"$\lambda$",
    "τ": r"$\tau$",
    "·": r"$\cdot$",
    "≈": r"$\approx$",
    "†": r"\textdagger{}",
    "§": r"\S{}",
}


def escape(text: str) -> str:
    """Text that LaTeX prints as it is, whatever it holds.

    A letter that pdfLaTeX's usual fonts lack is shown as its nearest Latin ones, else as [U+4E2D].
    """
    return "".join(map(_sign, " ".join(text.split())))


def _sign(sign: str) -> str:
    if sign in SIGNS:
        return SIGNS[sign]
    if " " <= sign <= "~" or "\u00c0" <= sign <= "\u017e":
        return sign
    near = unicodedata.normalize("NFKD", sign).encode("ascii", "ignore").decode()
    return escape(near) if near.strip() else f"{{[}}U+{ord(sign):04X}{{]}}"


def table(board: Leaderboard) -> str:
    """A floating table: groups over columns, best bold, second underlined, published rows in italics.

    What single models were trained on follows as comments.
    """
    known = sources(board)
    parts = blocks(board)
    sized = any(row.size for row in board.rows)
    lead = ["Model", *(["Size"] if sized else [])]
    groups = ["" for _ in lead] + [h.group for h in board.headings] + ["" for _ in averages(board)]
    titles = [*lead, *(f"{h.title} {h.metric}" for h in board.headings), *averages(board)]
    body: list[str] = []
    for block, rows in parts:
        if body:
            body.append(r"\midrule")
        if [name for name, _ in parts] != ["single model"]:
            body.append(rf"\multicolumn{{{len(titles)}}}{{l}}{{\emph{{{escape(block)}}}}} \\")
        body += [
            _line(
                [
                    _name(row, known),
                    *([escape(row.size or "")] if sized else []),
                    *(_cell(cell, row) for cell in cells),
                ]
            )
            for row, cells in zip(rows, shown(rows, board.statuses), strict=True)
        ]
    aside = evidence(board)
    notes = [
        *(escape(note) for note in board.notes if note not in aside),
        *(rf"\textsuperscript{{{i}}} {escape(source)}" for i, source in enumerate(known, 1)),
    ]
    label = re.sub(r"[^a-z0-9]+", "-", board.title.lower()).strip("-")
    under = [escape(title) for title in titles]
    if len(titles) > NARROW:
        under[len(lead) :] = [rf"\rotatebox{{70}}{{{title}}}" for title in under[len(lead) :]]
    columns = "l" + "r" * (len(titles) - 1)
    head = [*_over(groups), _line(under)]
    made = floating(head, body, notes, caption=board.title, label=label, columns=columns)
    return made + "".join(f"% {' '.join(note.split())}\n" for note in aside)


def floating(
    head: Sequence[str], body: Sequence[str], notes: Iterable[str], *, caption: str, label: str, columns: str
) -> str:
    """A `table*` as wide as the page, its notes below it; `head` and `body` are lines of LaTeX."""
    return "\n".join(
        [
            HEAD,
            r"\begin{table*}",
            r"\centering",
            rf"\caption{{{escape(caption)}}}",
            rf"\label{{tab:{label}}}",
            r"\footnotesize\setlength{\tabcolsep}{3pt}",
            r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            *head,
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}}",
            *(rf"\par\smallskip\parbox{{\linewidth}}{{\scriptsize {note}}}" for note in notes),
            r"\end{table*}",
            "",
        ]
    )


def _over(groups: Sequence[str]) -> list[str]:
    """The line of group titles and the rules below it; nothing where no column has a group."""
    if not any(groups):
        return []
    cells, rules, at = [], [], 1
    for title, members in groupby(groups):
        width = len(list(members))
        cells += [rf"\multicolumn{{{width}}}{{c}}{{{escape(title)}}}"] if title else [""] * width
        rules += [rf"\cmidrule(lr){{{at}-{at + width - 1}}}"] if title else []
        at += width
    return [_line(cells), " ".join(rules)]


def _line(cells: Iterable[str]) -> str:
    return " & ".join(cells) + r" \\"


def _name(row: Row, known: Sequence[str]) -> str:
    mark = " (check)" if row.check else " (oracle)" if row.oracle else ""
    cited = ",".join(map(str, numbers(row, known)))
    return escape(row.label) + mark + (rf"\textsuperscript{{{cited}}}" if cited else "")


def _cell(cell: Shown, row: Row) -> str:
    if cell.text == GAP:
        return escape(GAP)
    text = rf"\textit{{{cell.text}}}" if row.sources else cell.text
    text = {"best": rf"\textbf{{{text}}}", "second": rf"\underline{{{text}}}", "": text}[cell.place]
    tied = r"\textsuperscript{$\approx$}" if cell.tied else ""
    return text + EXPOSED.get(cell.status, "") + tied + (r"\textdagger{}" if row.marked else "")
