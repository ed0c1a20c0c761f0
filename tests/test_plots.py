"""Marks that figures share: they stand where the numbers say."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.text import Text

from mmlib import plots


@pytest.fixture
def ax():
    figure, ax = plt.subplots()
    yield ax
    plt.close(figure)


def test_a_point_of_a_forest_has_its_interval_at_its_height(ax):
    plots.forest(ax, 0.4, 3, (0.3, 0.6), colour=plots.BLUE, mfc="white", bar={"alpha": 0.5})
    bar, point = ax.lines
    assert list(bar.get_xdata()) == [0.3, 0.6] and list(bar.get_ydata()) == [3, 3]
    assert point.get_xydata().tolist() == [[0.4, 3]] and bar.get_alpha() == 0.5
    assert (point.get_markerfacecolor(), point.get_markeredgecolor()) == ("white", plots.BLUE)


def test_a_missing_interval_draws_none(ax):
    plots.forest(ax, 0.4, 0, colour=plots.RED)
    plots.curve(ax, [0, 1], [2, 3], colour=plots.RED, label="a curve")
    assert [len(line.get_xdata()) for line in ax.lines] == [1, 2] and not ax.collections
    assert ax.get_legend_handles_labels()[1] == ["a curve"]


def test_ends_of_a_curves_bars_are_where_the_interval_says_even_away_from_the_point(ax):
    ends = [[0.5, 1.5], [2.2, 2.4]]  # the second point, 2, is outside its interval
    plots.curve(ax, [0, 1], [1, 2], ends, colour=plots.RED, bars={"lw": 0.6, "caps": 3})
    (bars,) = ax.collections
    assert [segment[:, 1].tolist() for segment in bars.get_segments()] == ends
    curve, *caps = ax.lines
    assert curve.get_ydata().tolist() == [1, 2]
    assert np.transpose([cap.get_ydata() for cap in caps]).tolist() == ends


def test_a_curves_band_reaches_from_end_to_end(ax):
    plots.curve(ax, [0, 1], [1, 2], [[0.5, 1.5], [1.8, 2.5]], colour=plots.RED, band={"alpha": 0.2})
    (band,) = ax.collections
    corners = {tuple(corner) for corner in band.get_paths()[0].vertices.tolist()}
    assert {(0, 0.5), (0, 1.5), (1, 1.8), (1, 2.5)} <= corners and band.get_alpha() == 0.2


@pytest.mark.parametrize(
    "interval, ways", [([[0, 1]], {}), ([[0, 1]], {"band": {}, "bars": {}}), (None, {"bars": {}})]
)
def test_an_interval_is_drawn_one_way(ax, interval, ways):
    with pytest.raises(ValueError, match=f"{len(ways)} of band and bars: expected one"):
        plots.curve(ax, [0], [0.5], interval, colour=plots.RED, **ways)


def test_quantities_have_colours_that_no_method_has():
    methods = {colour for colour, _ in plots.LINES.values()}
    quantities = {plots.INDIGO, plots.OLIVE, plots.WINE}
    quantities |= {colour for colour, _ in plots.LOSSES.values()}
    assert not methods & quantities
    assert len(set(plots.LINES.values())) == len(plots.LINES)


def test_shades_end_at_the_colour_itself():
    light, _, dark = plots.shades(plots.RED, 3)
    assert to_hex(dark) == plots.RED.lower() and sum(light) > sum(dark)


def test_shaded_text_stands_on_a_box_around_its_line(ax):
    shade = {"color": plots.ORANGE, "alpha": 0.3}
    plots.shaded_text(ax, "$5 and $6", 2, 1, 0.8, 0.6, shade=shade, fontsize=6)
    (box,), (text,) = ax.patches, ax.texts
    assert box.get_bbox().bounds == pytest.approx((2, 0.7, 0.8, 0.6)) and box.get_alpha() == 0.3
    assert to_hex(box.get_facecolor()) == plots.ORANGE.lower()
    assert text.get_position() == (2, 1) and not text.get_parse_math()


def test_ticks_of_shares_are_percentages(ax):
    ax.set(xlim=(0, 1), xticks=(0, 0.5, 1))
    plots.percent_axis(ax.xaxis)
    assert [text.get_text() for text in ax.get_xticklabels()] == ["0 %", "50 %", "100 %"]


@pytest.mark.parametrize("rising", [False, True])
def test_labels_of_a_forest_stand_at_the_heights_of_its_points(ax, rising):
    plots.height_axis(ax, ["first", "second"], margin=0.6, rising=rising)
    assert dict(zip(ax.get_yticks(), [t.get_text() for t in ax.get_yticklabels()])) == {
        0: "first",
        1: "second",
    }
    assert ax.get_ylim() == ((-0.6, 1.6) if rising else (1.6, -0.6))


def test_a_legend_below_has_what_it_is_given_or_all_that_has_a_label(ax):
    ax.plot([0], [0], label="drawn")
    plots.legend_below(ax.figure, 2)
    plots.legend_below(ax.figure, 2, [plots.in_legend("given")])
    words = [[text.get_text() for text in legend.get_texts()] for legend in ax.figure.legends]
    assert words == [["drawn"], ["given"]]
    plots.note(ax, "here", (0, 0), (3, 4))
    assert {"drawn", "given", "here"} <= {text.get_text() for text in ax.figure.findobj(Text)}


def test_small_words():
    assert plots.columns([{"a": 1, "b": 2}, {"a": 3, "b": 4}], "b", "a") == [[2, 4], [1, 3]]
    assert (plots.percent(-0.1234), plots.percent(0.5, "+.0f")) == ("−12.3", "+50")
    assert plots.named("SDEdit, our network", "runs/mine") == "SDEdit, mine"
    assert plots.named("network on mixtures (ours), one step", "runs/mine") == "mine, one step"
    assert plots.named("SDEdit, our network", None) == "SDEdit, our network"


def test_our_network_is_found_by_its_present_name_and_by_its_last():
    assert plots.ours(["mean", "gated_mlp"]) == "gated_mlp"
    assert plots.ours(["gated_mlp", "mixture_mlp"]) == "mixture_mlp"
    with pytest.raises(ValueError, match="none of mixture_mlp, gated_mlp .* they have mean$"):
        plots.ours(["mean"])


def test_a_figure_is_saved_with_the_same_bytes_each_time(tmp_path):
    for folder in ("one", "two"):
        figure, ax = plt.subplots()
        ax.plot([0, 1])
        plots.save(figure, tmp_path / folder, "line")
        plt.close(figure)
    for ending in ("pdf", "png"):
        first, second = ((tmp_path / folder / f"line.{ending}") for folder in ("one", "two"))
        assert first.read_bytes() == second.read_bytes()
