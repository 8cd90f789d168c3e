"""Leaderboards as LaTeX and as an HTML page: structure, escaping, what stands beside what."""

import dataclasses
import json
import re
import shutil
import subprocess
from collections import Counter
from html.parser import HTMLParser

import pytest
from test_ablations import MODELS as VARIANTS
from test_ablations import NUMBERS
from test_leaderboard import SUITE, TASKS, full, number, result, row

from harness.ablations import ablations
from harness.boards import ablation_table, document, render
from harness.boards.latex import escape
from harness.leaderboard import leaderboard
from harness.result import Score
from toys import Toy, spec

HOSTILE = '<script>alert(1)</script> & "quoted" 100% $x_1$ #{~^}\\ | [a] é → 模'
VOID = {"meta", "input", "img", "br", "hr", "link"}


class Page(HTMLParser):
    """A page that is checked while it is read: every tag closed in order, ids unique."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.ids, self.texts, self.rows = [], [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open, self.open
        assert max(Counter(self.ids).values(), default=1) == 1

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.ids += [v for k, v in attrs if k == "id"]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append([dict(attrs), ""])

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append((self.open[-1] if self.open else "", data))
        if "tr" in self.open and ("td" in self.open or "th" in self.open):
            self.rows[-1][-1][1] += data

    def of(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]

    def details(self):
        return json.loads(next(data for tag, data in self.texts if tag == "script" and data[:1] == "["))


def board(**more):
    models = {
        "m": dataclasses.replace(
            spec(Toy()), name="m", trained_on={"COCO": "its paper"}, held_out={"CUB": "its card"}
        )
    }
    tasks = TASKS | {
        "a/x": dataclasses.replace(TASKS["a/x"], derived_from=("COCO",)),
        "a/y": dataclasses.replace(TASKS["a/y"], derived_from=("CUB",)),
    }
    mine = [
        dataclasses.replace(r, metrics={k: Score(s.value, (s.value - 0.1, s.value + 0.1), 40)
                                        for k, s in r.metrics.items()})
        for r in full("m", 0.5, 0.25, 0.75)
    ]  # fmt: skip
    published = [
        *row("Paper's m", 0.52, 0.25, 0.7, 0.49, plugin="m", size="7B"),
        *row("Theirs", 0.9, 0.1, 0.1),
    ]
    return leaderboard([SUITE], tasks, mine, models=models, reported=published, **more)


def page(*boards):
    return Page(document(boards or [board()], "html"))


def cells(page, label):
    return next(r for r in page.rows if r and r[0][1].startswith(label))


def test_the_page_is_a_real_table_with_headers_that_are_buttons():
    made = page()
    assert len(made.of("table")) == 1
    assert "caption" in {tag for tag, _ in made.tags}
    head = made.rows[:2]
    assert [c[0].get("scope") for c in head[0]] == [None, None, "colgroup", "colgroup"]
    assert {c[0]["scope"] for c in head[1]} == {"col"}
    assert len(made.of("button")) == len(head[1]) + 1  # one more for the colours
    assert sum(int(c[0].get("colspan", 1)) for c in head[0]) == len(head[1])
    for cells_ in made.rows[3:]:
        assert len(cells_) == len(head[1])
        assert cells_[0][0]["scope"] == "row"


def test_a_cell_shows_the_score_its_interval_its_mark_and_the_difference_from_what_was_published():
    made = page()
    titles = [text.split()[0] for _, text in made.rows[1]]
    assert titles == ["Model", "Size", "Avg", "Avg", "Avg", "Avg", "X", "Y", "Z"]
    mine = cells(made, "m")
    assert mine[1][1] == "7B"
    assert mine[2][1] == "50.0+1.0"  # the printed average is 49.0
    assert mine[6][1] == "50.0t−2.040.0–60.0"
    assert mine[7][1] == "25.0h+0.015.0–35.0"
    assert mine[6][0]["data-v"] == "0.500000"
    text = render(board(), "html")
    assert '<b>25.0</b><sup><span class="mark">h</span></sup>' in text
    assert "<u>52.0</u>" in text
    assert ">50.0<" in text
    details = made.details()
    explained = [details[int(i)] for i in mine[6][0]["data-l"].split()]
    assert explained[0] == "X R@1: 50.0, 95 % interval 40.0–60.0, 40 queries."
    assert explained[1].startswith("a/x, protocol p, profile default, instructions hash")
    assert explained[2:] == ["Trained: COCO: its paper.", "Published 52.0: P, T1: its file; grade A."]
    assert any("identity i" in details[int(i)] for i in mine[0][0]["data-l"].split())


def test_a_difference_says_what_stands_against_it():
    other = [
        dataclasses.replace(r, protocol={**r.protocol, "profile": "lamra"}) for r in full("m", 0.5, 0.5, 0.5)
    ]
    made = page(leaderboard([SUITE], TASKS, other, reported=row("P", 0.5, 0.5, 0.5, plugin="m")))
    assert any("Not comparable: profile lamra, published with default." in d for d in made.details())
    assert {"class": "diff unlike"} in made.of("small")
    assert "†" in cells(made, "m")[-1][1]


def test_gaps_sort_last_and_say_why():
    unsupported = result("part", "a/y", 0, status="unsupported", metrics={})
    made = page(leaderboard([SUITE], TASKS, [result("part", "a/x", 0.5), unsupported]))
    gaps = cells(made, "part")[1:]
    assert [c[0]["data-v"] for c in gaps] == ["", "0.500000", "", ""]
    said = [[made.details()[int(i)] for i in c[0]["data-l"].split()] for c in gaps]
    assert said[0] == ["A row with a gap has no average."]
    assert said[2] == ["The model cannot take this task's modalities."]
    assert said[3] == ["No result of this task."]


def test_names_with_markup_stay_text_and_nothing_is_fetched():
    text = render(
        leaderboard([SUITE], TASKS, full(HOSTILE, 0.1, 0.2, 0.3), reported=row(HOSTILE, 0.1, 0.1, 0.1)),
        "html",
    )
    made = Page(text)
    assert len(made.of("script")) == 3  # ours, and two of data
    assert sum(HOSTILE in c[1] for r in made.rows for c in r) == 2
    (policy,) = [m["content"] for m in made.of("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe-inline" not in re.search(r"script-src [^;]*", policy)[0]
    assert not re.search(r"""(?:src|href)=["'](?!#)|url\(|@import|https?://""", text)


def test_two_leaderboards_share_a_page_and_their_notes_stay_apart():
    made = page(board(), board())
    assert len(made.of("table")) == 2
    links = {a["href"][1:] for a in made.of("a")}
    assert links == {"note1-1", "note2-1"} <= set(made.ids)


def test_a_hundred_models_on_sixty_tasks_stay_a_small_page():
    tasks = {f"s{i}/t": dataclasses.replace(TASKS["a/x"], name=f"s{i}/t") for i in range(60)}
    columns = tuple(dataclasses.replace(SUITE.columns[0], title=n, tasks=(n,)) for n in tasks)
    results = [result(f"m{m}", n, m / 100, identity=f"i{m}") for m in range(100) for n in tasks]
    text = render(leaderboard([dataclasses.replace(SUITE, columns=columns)], tasks, results), "html")
    assert len(text) < 2_000_000
    assert len(Page(text).rows) == 103


def test_latex_groups_columns_and_marks_as_the_papers_do():
    text = render(board(), "latex")
    assert r" &  & \multicolumn{2}{c}{A} & \multicolumn{1}{c}{B} &  &  &  &  \\" in text
    assert r"\cmidrule(lr){3-4} \cmidrule(lr){5-5}" in text
    lines = [line for line in text.splitlines() if line.endswith(r"\\")]
    ours = next(line for line in lines if line.startswith("m "))
    assert ours.split(" & ")[:4] == [
        "m", "7B", r"50.0\textsuperscript{t}", r"\textbf{25.0}\textsuperscript{h}"
    ]  # fmt: skip
    assert r"Theirs\textsuperscript{1} &  & \textbf{\textit{90.0}}" in text
    for word in ("table*", "tabular"):
        assert text.count(rf"\begin{{{word}}}") == text.count(rf"\end{{{word}}}") == 1
    assert text.endswith("\\end{table*}\n% m: COCO: its paper; CUB: its card.\n")
    assert "rotatebox" not in text
    body = text[text.index(r"\toprule") :]
    assert re.findall(r"\\(?:top|mid|bottom)rule\b", body) == [r"\toprule", r"\midrule", r"\bottomrule"]


def test_latex_turns_the_titles_of_many_columns():
    many = dataclasses.replace(SUITE, columns=SUITE.columns * 4)
    text = render(leaderboard([many], TASKS, full("m", 0.1, 0.2, 0.3)), "latex")
    assert r"Model & \rotatebox{70}{X R@1} & \rotatebox{70}{Y R@1}" in text


def test_latex_escapes_whatever_a_name_holds():
    assert escape("a_b & 50% $x$ #1 {y} ~ ^ \\") == (
        r"a\_b \& 50\% \$x\$ \#1 \{y\} \textasciitilde{} \textasciicircum{} \textbackslash{}"
    )
    assert escape("T→I – é ﬁ 模") == "T$\\to$I -- é fi {[}U+6A21{]}"


def test_the_ablations_come_as_a_page_and_as_latex_that_indent():
    variants = ablations(VARIANTS, [SUITE], TASKS, [], NUMBERS)
    made = Page(ablation_table(variants, [SUITE], "html"))
    assert [c[1] for c in made.rows[2]] == ["└ causal, varies base", "causal attention", "T1", "56.6 (−6.6)"]
    text = ablation_table(variants, [SUITE], "latex")
    assert r"\hspace*{2em}last & last token & -- \\" in text
    assert ablation_table(variants, [SUITE], "csv").startswith("model,parent")


LATEX = shutil.which("tectonic") or shutil.which("pdflatex")


@pytest.mark.parametrize("command", [pytest.param(LATEX, marks=[] if LATEX else pytest.mark.slow)])
def test_latex_compiles(command, tmp_path):
    assert command, "install pdflatex or tectonic"
    hostile = leaderboard([SUITE], TASKS, full(HOSTILE, 0.1, 0.2, 0.3), reported=row(HOSTILE, 0.1, 0.1, 0.1))
    variants = ablations(VARIANTS, [SUITE], TASKS, [], NUMBERS)
    tables = document([board(), hostile], "latex") + ablation_table(variants, [SUITE], "latex")
    (tmp_path / "table.tex").write_text(tables, encoding="utf-8")
    (tmp_path / "paper.tex").write_text(
        "\\documentclass{article}\n\\usepackage{booktabs,graphicx}\n"
        "\\begin{document}\n\\input{table}\n\\end{document}\n"
    )
    done = subprocess.run(
        [command, "paper.tex"],
        stdin=subprocess.DEVNULL,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:]
    assert (tmp_path / "paper.pdf").stat().st_size > 1000


def test_number_of_another_model_makes_no_difference():
    made = page(leaderboard([SUITE], TASKS, full("m", 0.5, 0.5, 0.5), reported=[number("T", "a/x", 0.4)]))
    assert not [c for c in made.of("small") if c.get("class", "").startswith("diff")]
