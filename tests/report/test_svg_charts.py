"""Charts put values where they belong, whatever the values are."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
from parsed import EVIL, Parsed, places, sound

from lrft.report import svg_charts
from lrft.report.html_elements import COLOURS, page
from lrft.report.svg_charts import Axis, Line, Spot


def test_a_chart_puts_points_where_they_belong() -> None:
    x, y = Axis.across([0, 10]), Axis.upward([0.0, 4.0], room=0)
    assert [x.at(value) for value in (0, 10)] == [svg_charts.LEFT, svg_charts.WIDTH - svg_charts.RIGHT]
    assert [y.at(value) for value in (0, 4)] == [svg_charts.HEIGHT - svg_charts.FOOT, svg_charts.TOP]
    assert x.at(5) == pytest.approx((x.at(0) + x.at(10)) / 2)
    assert [x.at(value) for value in (-1e9, 1e300)] == [x.at(0), x.at(10)], "the edge"
    parsed = Parsed(svg_charts.chart("c", [Line("a", [(0, 1.0), (1, 3.0), (2, 2.0)])]))
    (x0, y0), (x1, y1), (x2, y2) = places(parsed)
    assert x0 < x1 < x2
    assert y1 < y2 < y0, "up is more"
    bars = Parsed(svg_charts.bars("b", [(0, 2, 5), (2, 4, 10), (4, 6, 0)], across="x")).all("rect")
    assert [float(bar["height"] or "") for bar in bars] == [pytest.approx(99, abs=1), pytest.approx(198, abs=1), 0]


@pytest.mark.parametrize("seed", range(40))
def test_ticks_are_few_round_and_inside(seed: int) -> None:
    generator = np.random.default_rng(seed)
    low = float(generator.normal() * 10.0 ** generator.integers(-8, 12))
    high = low + float(generator.uniform(0.1, 1) * 10.0 ** generator.integers(-8, 12)) + abs(low) * 1e-3
    found = svg_charts.ticks(low, high)
    assert 2 <= len(found) <= 12
    slack = 1e-6 * (high - low)
    assert low - slack <= found[0] <= found[-1] <= high + slack
    step = found[1] - found[0]
    assert step / 10 ** math.floor(math.log10(step) + 1e-6) == pytest.approx(
        min((1, 2, 5), key=lambda n: abs(math.log10(step / n) % 1 - round(math.log10(step / n) % 1))), rel=1e-3
    )
    assert all(b - a == pytest.approx(step, rel=1e-3) for a, b in itertools.pairwise(found))


def test_steps_are_counted_in_whole_numbers() -> None:
    labels = Parsed(svg_charts.chart("c", [Line("a", [(1, 1.0), (3, 1.5)])])).texts("text")
    assert labels[-4:] == ["1", "2", "3", "step"]


def test_a_long_line_keeps_its_spikes() -> None:
    points: Sequence[svg_charts.Point] = [(i, math.sin(i / 700)) for i in range(100_000)]
    points = [*points[:777], (777, 9.0), *points[778:55_555], (55_555, -9.0), *points[55_556:]]
    kept = svg_charts.thinned(points)
    assert len(kept) <= svg_charts.POINTS_DRAWN + 2
    assert {(777, 9.0), (55_555, -9.0)} <= set(kept)
    assert [x for x, _ in kept] == sorted({x for x, _ in kept})
    assert svg_charts.thinned(points[:600]) == points[:600]


def test_a_logarithmic_axis() -> None:
    axis = Axis(1.0, 100.0, 0.0, 10.0, log=True)
    assert [axis.at(value) for value in (1.0, 10.0, 100.0, 1e9, 1e-9)] == pytest.approx([0, 5, 10, 10, 0])
    assert svg_charts.log_ticks(1e-4, 1e-2) == pytest.approx([1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2])
    assert svg_charts.log_ticks(1e-6, 1.0) == pytest.approx([1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1])
    made = svg_charts.chart("c", [Line("a", [(1e-4, 1.0), (1e-3, 2.0), (1e-2, 1.5)])], log=True)
    (first, _), (middle, _), (last, _) = places(Parsed(made))
    assert middle == pytest.approx((first + last) / 2)


@pytest.mark.parametrize(
    ("values", "low", "high"),
    [([2.0, 4.0], 1.8, 4.2), ([0.0, 1.0], 0.0, 1.1), ([-1.0, 1.0], -1.2, 1.2), ([5.0], 4.5, 5.5), ([0.0], 0.0, 1.0)],
)
def test_an_axis_goes_below_zero_only_where_a_value_does(values: list[float], low: float, high: float) -> None:
    assert svg_charts.with_room(values, 0.1) == pytest.approx((low, high))


def test_one_that_flew_off_does_not_flatten_the_others_and_is_said() -> None:
    lines = [Line("a", [(n, 1 + n / 10) for n in range(10)]), Line("b", [(10, 900.0)], 1)]
    parsed = Parsed(svg_charts.chart("c", lines, note="noted", capped=True))
    assert parsed.texts("span")[-2:] == ["noted", "1 values are above this panel, up to 900"]
    assert "b: 900 at 10" in parsed.texts("title"), "its own value is kept"
    *line, off = places(parsed)
    ys = [y for _, y in line[:10]]
    assert max(ys) - min(ys) > 0.8 * (svg_charts.HEIGHT - svg_charts.TOP - svg_charts.FOOT)
    assert off[1] == svg_charts.TOP


def test_every_line_of_a_chart_can_be_told_apart() -> None:
    lines = [Line(f"run {n}", [(0, n), (1, n)], n) for n in range(2 * COLOURS)]
    parsed = Parsed(svg_charts.chart("c", lines))
    styles = [a["class"] for a in parsed.all("polyline")]
    assert len(set(styles)) == 2 * COLOURS
    keys = [(a["class"] or "").removeprefix("key ") for a in parsed.all("span") if (a["class"] or "")[:3] == "key"]
    assert keys == styles
    assert [text for text in parsed.texts("span") if text] == [f"run {n}" for n in range(2 * COLOURS)]
    assert not Parsed(svg_charts.chart("c", lines, keyed=False)).all("span")


def test_the_front_is_ringed_and_joined() -> None:
    spots = [Spot("cheap", (1.0, 3.0), 0), Spot("good", (3.0, 1.0), 1), Spot("bad", (2.0, 4.0), 2)]
    parsed = Parsed(svg_charts.scatter("c", spots, [0, 1], across="x"))
    dots = [(a["cx"], a["cy"]) for a in parsed.all("circle") if a["class"] != "ring"]
    assert [(a["cx"], a["cy"]) for a in parsed.all("circle") if a["class"] == "ring"] == dots[:2]
    assert [a["points"] for a in parsed.all("polyline")] == [" ".join(",".join(map(str, dot)) for dot in dots[:2])]
    assert parsed.texts("title") == [
        "cheap: 3 at 1, on the Pareto front",
        "good: 1 at 3, on the Pareto front",
        "bad: 4 at 2",
    ]
    x, y = zip(*((float(x or ""), float(y or "")) for x, y in dots), strict=True)
    assert x[0] < x[2] < x[1]
    assert y[2] < y[0] < y[1], "up is more"


@pytest.mark.parametrize(("count", "middle"), [(1, 120.0), (6, 120.0), (10, 120.0), (6, 20.0), (6, 200.0)])
def test_names_do_not_lie_on_each_other(count: int, middle: float) -> None:
    spots = [(300.0 + n % 2, middle + n) for n in range(count)] + [(svg_charts.WIDTH - svg_charts.RIGHT - 1.0, middle)]
    drawn = Parsed("".join(svg_charts.labels([f"run-{n}" for n in range(count + 1)], spots))).all("text")
    assert len(drawn) == count + 1
    assert [a["text-anchor"] for a in drawn].count("end") == 1
    ys = sorted(float(a["y"] or "") for a in drawn if a["text-anchor"] == "start")
    assert all(b - a >= svg_charts.LINE for a, b in itertools.pairwise(ys))
    assert all(svg_charts.TOP <= y <= svg_charts.HEIGHT - svg_charts.FOOT for y in ys)


def test_names_do_not_lie_on_points() -> None:
    (first, second) = Parsed("".join(svg_charts.labels(["first", "second"], [(200.0, 100.0), (216.0, 100.0)]))).all(
        "text"
    )
    assert {first["x"], second["x"]} == {"212.0", "228.0"}
    heights = {a["x"]: float(a["y"] or "") for a in (first, second)}
    assert abs(heights["212.0"] - 104) >= svg_charts.LINE


ODD = ([], [(0, 0.0)], [(5, 1e29)], [(1, 2.0), (2, 2.0)], [(0, -1e29), (1, 1e29)], [(1e-9, 1e-29), (1e9, 2e-29)])


@pytest.mark.parametrize("points", ODD, ids=["nothing", "zero", "one", "flat", "huge", "small"])
def test_any_values_and_names_give_a_sound_page(points: list[svg_charts.Point]) -> None:
    spots = [Spot(EVIL, point, 9) for point in points]
    lines = [Line(EVIL, points, 8, dotted=True), Line(EVIL, points)]
    drawn = [
        svg_charts.chart(EVIL, lines, note=EVIL, across=EVIL, capped=True),
        svg_charts.scatter(EVIL, spots, range(len(spots)), across=EVIL),
        svg_charts.bars(EVIL, [(x, x + 1, abs(y)) for x, y in points], across=EVIL, note=EVIL),
    ]
    parsed = sound(page("t", *drawn))
    assert [a["aria-label"] for a in parsed.all("svg")] == [EVIL] * (3 if points else 0)
    assert parsed.texts("p") == ["nothing was recorded"] * (0 if points else 3)
    assert parsed.texts("text").count(EVIL) == (3 + len(spots) if points else 0)
