"""The pages in a real browser: Debian's chromium, driven headless.

Without it on the PATH these tests belong to the slow tier, and fail there.
"""

import os
import shutil
from pathlib import Path

import pytest
from test_boards import HOSTILE, board
from test_gallery import ABC, candidate, descending, look, problem, store
from test_leaderboard import SUITE, TASKS, full
from test_standing import GOOD, NEAR, boarded, put

from harness.boards import document, render
from harness.content import Image
from harness.gallery import gallery
from harness.leaderboard import leaderboard

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [] if CHROMIUM else pytest.mark.slow
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--host-resolver-rules=MAP * ~NOTFOUND",
]


@pytest.fixture(scope="module")
def chromium():
    from playwright.sync_api import sync_playwright

    assert CHROMIUM, "install Debian's chromium"
    os.environ.setdefault("PLAYWRIGHT_SKIP_BROWSER_DOWNLOAD", "1")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium, tmp_path):
    """Open a page's text: requests, messages and alerts are collected, and there must be none."""
    said = []
    context = chromium.new_context(viewport={"width": 1300, "height": 800}, color_scheme="light")

    def go(text):
        file = tmp_path / "page.html"
        file.write_text(text, encoding="utf-8")
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
        page.on("request", lambda request: said.append(request.url) if request.url != file.as_uri() else None)
        page.goto(file.as_uri())
        return page

    go.said = said
    yield go
    context.close()
    assert said == []


def labels(page):
    return [c.get_attribute("data-v") for c in page.locator("tbody tr:not(.group):visible > th").all()]


def three():
    return leaderboard(
        [SUITE],
        TASKS,
        [*full("low", 0.1, 0.9, 0.3), *full("high", 0.5, 0.2, 0.7), *full("mid+r", 0.2, 0.3, 0.3)],
    )


def test_headers_sort_down_then_up_then_back(visit):
    page = visit(render(three(), "html"))
    page.get_by_label("Group by").select_option("")
    head = page.locator("thead .titles th", has_text="X")
    order = {
        "descending": ["high", "mid+r", "low"],
        "ascending": ["low", "mid+r", "high"],
        None: labels(page),
    }
    for state in ("descending", "ascending", None):
        head.get_by_role("button").click()
        assert head.get_attribute("aria-sort") == state
        assert labels(page) == order[state]
    head.get_by_role("button").press("Enter")
    assert labels(page)[0] == "high"


def test_rows_stay_in_the_groups_that_are_chosen(visit):
    page = visit(document([board(), three()], "html"))
    second = page.locator("table").nth(1)
    assert second.locator(".group:visible").all_inner_texts() == ["single model", "+ rerank"]
    page.get_by_label("Group by").select_option(label="model size")
    assert page.locator("table").first.locator(".group:visible").all_inner_texts() == [
        "4B to 10B", "size not known"
    ]  # fmt: skip
    assert page.locator("table").first.locator("tbody").nth(0).locator("th[scope=row]").count() == 2


def test_filters_hide_rows_and_columns_and_the_count_says_so(visit):
    page = visit(render(three(), "html"))
    page.get_by_label("Models").fill("HIGH")
    assert labels(page) == ["high"]
    page.get_by_label("Columns").fill("a")
    shown = page.locator("thead .titles th:visible").all_inner_texts()
    assert [text.split()[0] for text in shown] == ["Model", "Avg", "X", "Y"]
    assert page.locator("thead .groups th:visible").all_inner_texts() == ["A"]
    assert page.locator("#count").inner_text() == "1 of 3 rows, 2 of 3 columns"
    assert page.locator("tbody tr:not(.group):visible > *:visible").count() == 4


def test_published_rows_differences_intervals_and_marks_come_and_go(visit):
    page = visit(render(board(), "html"))
    assert labels(page) == ["m", "Paper's m", "Theirs"]
    for label, css, before in (
        ("difference", ".diff", True),
        ("intervals", ".ci", False),
        ("training marks", ".mark", True),
    ):
        box = page.get_by_label(label)
        for state in (before, not before):
            assert box.is_checked() == state
            assert page.locator(css).first.is_visible() == state
            box.set_checked(not before)
    page.get_by_label("published rows").uncheck()
    assert labels(page) == ["m"]


def test_arrow_keys_move_through_the_cells_and_each_is_explained(visit):
    page = visit(render(board(), "html"))
    page.locator("tbody th[scope=row]").first.focus()
    tip = page.get_by_role("tooltip")
    assert "identity i" in tip.inner_text()
    for _ in range(6):
        page.keyboard.press("ArrowRight")
    assert tip.inner_text().startswith("X R@1: 50.0, 95 % interval 40.0–60.0, 40 queries.")
    assert "protocol p" in tip.inner_text()
    assert page.evaluate("document.activeElement.getAttribute('aria-describedby')") == "tip"
    page.keyboard.press("ArrowDown")
    assert tip.inner_text().startswith("X R@1: 52.0, published.")
    assert page.locator("table [tabindex='0']").count() == 1  # one stop for the Tab key
    page.keyboard.press("Escape")
    assert not tip.is_visible()
    page.locator("tbody td").last.hover()
    assert tip.is_visible()


def test_colours_follow_the_system_until_the_button_is_pressed(visit):
    page = visit(render(three(), "html"))
    ground = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(ground)
    page.emulate_media(color_scheme="dark")
    dark = page.evaluate(ground)
    assert dark != light
    page.get_by_role("button", name="Light colours").click()
    assert page.evaluate(ground) == light
    page.get_by_role("button", name="Dark colours").click()
    assert page.evaluate(ground) == dark


def test_header_and_names_stay_in_sight_while_the_table_scrolls(visit):
    page = visit(
        render(
            leaderboard([SUITE], TASKS, [r for i in range(80) for r in full(f"m{i}", 0.1, 0.2, i / 99)]),
            "html",
        )
    )
    page.set_viewport_size({"width": 420, "height": 500})
    box = page.locator(".scroll")
    box.evaluate("box => box.scrollTo({top: 900, left: 120, behavior: 'instant'})")
    frame = box.bounding_box()
    name = page.locator("thead .name").bounding_box()
    assert abs(name["x"] - frame["x"]) < 3
    assert frame["y"] <= name["y"] < frame["y"] + 60
    group = page.locator("thead .groups th span").first
    assert name["x"] + name["width"] <= group.bounding_box()["x"] < frame["x"] + frame["width"]
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_a_hostile_name_is_text(visit):
    page = visit(render(leaderboard([SUITE], TASKS, full(HOSTILE, 0.1, 0.2, 0.3)), "html"))
    assert HOSTILE in page.locator("tbody th[scope=row]").inner_text()
    page.locator("tbody th[scope=row]").focus()
    assert HOSTILE in page.get_by_role("tooltip").inner_text()


def test_the_policy_stops_what_gets_into_the_page(visit):
    page = visit(render(three(), "html").replace("</main>", "<i onclick='window.hit = 1'>x</i></main>"))
    page.locator("i").click(force=True)
    assert page.evaluate("window.hit") is None
    assert "Content Security Policy" in visit.said.pop()


def test_the_gallery_shows_a_hostile_caption_as_text_and_its_pictures(visit, tmp_path, media):
    pool = [candidate("evil", HOSTILE), candidate("p", Image(media / "p0.png")), *ABC]
    task = problem(pool, {"q": ["b"]})
    store(tmp_path, task, {"q": descending("evil", "p", "b")}, {"q": 0.0})
    page = visit(gallery(look(task, tmp_path)))
    assert page.locator(".card .text").first.inner_text() == HOSTILE
    picture = page.locator("img")
    assert picture.evaluate("image => image.decode().then(() => image.naturalWidth)") > 0
    assert page.locator(".card.relevant").count() == 1


def test_the_gallery_is_filtered_by_kind_and_by_words(visit, tmp_path):
    task = problem(ABC, {q: [q] for q in "abcd"})
    lists = {q: descending("g", q) for q in "abcd"}
    store(tmp_path, task, lists, {"a": 0.0, "b": 1.0, "c": 0.0, "d": 1.0})
    store(tmp_path, task, lists, {"a": 1.0, "b": 0.0, "c": 0.0, "d": 1.0}, model="n")
    page = visit(gallery(look(task, tmp_path, "m", "n")))
    queries = page.locator("article:visible h2")
    assert queries.all_text_contents() == ["Query b", "Query a", "Query c"]
    page.get_by_role("button", name="fixed").click()
    assert queries.all_text_contents() == ["Query a"]
    assert page.locator("#count").inner_text() == "1 of 3 queries"
    page.get_by_role("button", name="other").click()
    assert queries.all_text_contents() == ["Query a", "Query c"]
    page.get_by_label("Find").fill("question c")
    assert queries.all_text_contents() == ["Query c"]


def test_the_index_of_a_report_draws_its_plots_within_the_policy(visit, cli):
    cli("eval", "-q", "-m", "random", "-t", "demo/composed")
    cli("report", "-s", "demo", "--out", "out", "--worst", 0)
    page = visit(Path("out/index.html").read_text(encoding="utf-8"))
    plots = page.get_by_role("img")
    assert plots.count() > 0
    assert all(plot.bounding_box()["height"] > 100 for plot in plots.all())
    assert plots.first.locator("text").first.evaluate("text => getComputedStyle(text).fill") == page.evaluate(
        "getComputedStyle(document.querySelector('figure')).color"
    )


def test_a_tie_is_marked_and_its_tip_says_so(visit, tmp_path):
    put(tmp_path, "good", "a/x", GOOD)
    put(tmp_path, "near", "a/x", NEAR)
    page = visit(render(boarded(tmp_path), "html"))
    assert page.locator("td sup", has_text="≈").count() == 2  # the column and the average
    page.locator("td", has_text="≈").last.hover()
    assert (
        "Tied with good: a paired test does not tell the two apart."
        in page.get_by_role("tooltip").inner_text()
    )
