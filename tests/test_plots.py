"""Plots: the same numbers give the same bytes, the marks stand where the numbers say, names are text."""

import math
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from test_ablations import MODELS, NUMBERS
from test_boards import HOSTILE, Page
from test_leaderboard import SUITE, TASKS, full, result, row

from harness.ablations import ablations
from harness.figures import ablation_plots, board_plots
from harness.leaderboard import leaderboard
from harness.plots import Step, bars, curves, radar, score_histogram, speed, waterfall
from harness.result import Score

SCORES = {"one": {"A": 0.5, "B": 0.25, "C": 1.0}, HOSTILE: {"A": 0.1, "C": 0.2}}
PLOTS = [
    radar("r", "R", SCORES),
    bars("b", "B", SCORES, {"one": {"A": (0.4, 0.7)}}),
    curves("c", "C", {"one": {1: 0.1, 5: 0.4, 10: 0.6}, HOSTILE: {1: 0.2, 10: 0.9}}),
    score_histogram("h", "H", np.array([0.5, 0.75], np.float32), np.array([0.1, 0.5, 0.6], np.float32)),
    waterfall("w", "W", [Step("base", 0.632, None), Step(HOSTILE, 0.617, 0.632)]),
    speed("s", "S", {"one": (100.0, 0.5), HOSTILE: (40_000.0, 0.25)}),
]


def drawn(plot):
    """The axes, after drawing."""
    from matplotlib.figure import Figure

    figure = Figure()
    plot.draw(figure)
    return figure.axes[0]


@pytest.mark.parametrize("plot", PLOTS, ids=lambda plot: plot.name)
def test_equal_numbers_give_equal_bytes_and_the_files_are_what_they_say(plot, tmp_path):
    svg, png = plot.write(tmp_path)
    assert svg.read_text() == plot.svg()
    assert png.read_bytes() == plot.png()
    assert ET.fromstring(svg.read_text()).tag.endswith("svg")
    assert png.read_bytes().startswith(b"\x89PNG")
    assert not re.search(r"20\d\d-\d\d-\d\d", svg.read_text())


@pytest.mark.parametrize("plot", [p for p in PLOTS if p.name != "h"], ids=lambda plot: plot.name)
def test_a_name_with_markup_or_a_formula_is_drawn_as_it_is(plot):
    inline = Page(f"<main>{plot.inline()}</main>")
    assert not inline.of("script")
    assert not inline.of("style")
    assert not inline.of("metadata")
    shown = "".join(data for _, data in inline.texts)
    assert "$x_1$" in shown
    (svg,) = inline.of("svg")
    assert (svg["role"], svg["aria-label"]) == ("img", plot.title)


def test_bars_stand_at_their_values_and_a_gap_is_a_dash():
    axes = drawn(PLOTS[1])
    heights = [patch.get_height() for patch in axes.patches]
    assert heights == pytest.approx([50, 25, 100, 10, 0, 20])
    assert [text.get_text() for text in axes.texts] == ["–"]
    (segments,) = [c.get_segments() for c in axes.collections]
    assert segments[0][:, 1] == pytest.approx([40, 70])


def test_a_radar_leaves_an_axis_open_that_a_series_lacks():
    first, second = (line.get_ydata() for line in drawn(PLOTS[0]).lines)
    assert list(first) == [50, 25, 100, 50]
    assert math.isnan(second[1])


def test_the_histogram_counts_every_score():
    patches = drawn(PLOTS[3]).patches
    assert sum(patch.get_height() for patch in patches) == 5


def test_a_step_of_the_waterfall_goes_from_what_it_varies_to_its_own_score():
    axes = drawn(PLOTS[4])
    (bar,) = axes.patches
    assert (bar.get_x(), bar.get_x() + bar.get_width()) == pytest.approx((63.2, 61.7))
    assert axes.texts[1].get_text().strip() == "61.7 (−1.5)"
    measured = waterfall("w", "W", [Step("a", 0.5, None), Step("b", 0.4, 0.5, (-0.15, -0.05))])
    whisker = drawn(measured).lines[-1]
    assert list(whisker.get_xdata()) == pytest.approx([35, 45])


def plots(board):
    return {plot.name: plot for plot in board_plots("s", board)}


def test_a_board_gives_bars_by_group_of_those_that_have_all_of_it():
    board = leaderboard([SUITE], TASKS, [*full("m", 0.2, 0.4, 0.9), result("n", "a/x", 0.5)])
    made = plots(board)
    assert set(made) == {"s-groups"}  # two groups make no radar, one hit@k no curve
    axes = drawn(made["s-groups"])
    assert [p.get_height() for p in axes.patches] == pytest.approx([30, 90])


def test_a_board_of_one_group_gives_bars_of_its_columns_and_ours_come_before_published_ones():
    import dataclasses

    suite = dataclasses.replace(SUITE, columns=tuple(dataclasses.replace(c, group="") for c in SUITE.columns))
    board = leaderboard([suite], TASKS, full("m", 0.1, 0.1, 0.1), reported=row("T", 0.9, 0.9, 0.9))
    axes = drawn(plots(board)["s-columns"])
    assert [p.get_height() for p in axes.patches] == pytest.approx([10] * 3 + [90] * 3)


def test_hits_are_averaged_over_tasks_at_the_cut_offs_that_all_have():
    import dataclasses

    def scores(**values):
        return {key: Score(value, (value, value), 10) for key, value in values.items()}

    results = [
        dataclasses.replace(full("m", 0, 0, 0)[0], metrics=scores(hit_at_1=0.2, hit_at_5=0.4, hit_at_10=0.8)),
        dataclasses.replace(
            full("m", 0, 0, 0)[1], metrics=scores(hit_at_1=0.4, hit_at_5=0.8, recall_at_5=0.1)
        ),
    ]
    (line,) = drawn(plots(leaderboard([SUITE], TASKS, results))["s-hits"]).lines
    assert list(line.get_xdata()) == [1, 5]
    assert line.get_ydata() == pytest.approx([30, 60])


def test_speed_is_items_a_second_of_what_was_embedded():
    import dataclasses

    made = [
        {"counts": {"embedded": n}, "seconds": {"embed": s}} for n, s in ((100, 1.0), (0, 9.0), (50, 2.0))
    ]
    mine = [
        dataclasses.replace(r, provenance=p)
        for model in ("m", "n")
        for r, p in zip(full(model, 0.3, 0.3, 0.3), made, strict=True)
    ]
    axes = drawn(plots(leaderboard([SUITE], TASKS, mine))["s-speed"])
    assert axes.collections[0].get_offsets().tolist() == [[50.0, pytest.approx(30.0)]]
    assert "s-speed" not in plots(leaderboard([SUITE], TASKS, mine[:3]))


def test_ablations_give_a_waterfall_for_each_suite_with_a_parent_and_a_child():
    variants = ablations(MODELS, [SUITE], TASKS, [], NUMBERS)
    (plot,) = ablation_plots(variants, ["s", "none"])
    assert plot.name == "ablations-s-published"
    assert [p.get_width() for p in drawn(plot).patches] == pytest.approx([-6.6, -6.0])
