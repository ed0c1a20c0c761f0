"""Figures: the list of all, and that they draw what results say."""

import json
import re
import subprocess
import sys

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.text import Text

from mmlib.plots import BLACK, SMALLEST, TEXT_WIDTH, set_style
from mmlib.runs.run import ROOT
from mmlib_studies import figures
from mmlib_studies.figures.generality import heat_map
from mmlib_studies.figures.networks import rate_axis
from mmlib_studies.figures.ood import COLUMNS, passage_lines


def read(name):
    """Published results, None where there are none."""
    folder = ROOT / "results" if name.startswith("gpu/") else ROOT / "results" / "default"
    path = folder / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


@pytest.fixture(autouse=True)
def _style():
    set_style()
    yield
    plt.close("all")


def words(figure):
    return {text.get_text() for text in figure.findobj(Text)}


def test_drawing_loads_no_torch():
    code = "import sys; from mmlib_studies import figures; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


DRAWN = [  # the results of others are to come
    name for name, entry in figures.FIGURES.items() if all(map(read, entry.results))
]


@pytest.mark.parametrize("name", DRAWN)
def test_every_figure_is_committed_as_vector_and_image(name):
    assert (ROOT / "figures" / f"{name}.pdf").read_bytes().startswith(b"%PDF")
    assert (ROOT / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_notebook_31_draws_every_figure_of_the_list():
    notebook = json.loads((ROOT / "notebooks" / "31_figures.ipynb").read_text(encoding="utf-8"))
    cells = ["".join(cell["source"]) for cell in notebook["cells"]]
    drawn = [name for cell in cells for name in re.findall(r'^draw\("(\w+)"\)$', cell)]
    assert sorted(drawn) == sorted(figures.FIGURES)


def test_every_result_of_the_list_has_a_notebook_that_writes_it():
    for name, entry in figures.FIGURES.items():
        for result in (*entry.results, *entry.beside):
            assert result.startswith("gpu/") or result in figures.NOTEBOOKS, name
    for result, notebook in figures.NOTEBOOKS.items():
        text = (ROOT / "notebooks" / f"{notebook}.ipynb").read_text(encoding="utf-8")
        assert f'run.write(\\"{result}\\"' in text


def test_the_gallery_shows_every_figure_once_with_the_notebook_of_its_results():
    gallery = (ROOT / "figures" / "README.md").read_text(encoding="utf-8")
    shown = re.findall(r"\]\((\w+)\.png\).*?notebooks/(\w+)\.ipynb", gallery, re.S)
    assert len(shown) == len(DRAWN)
    assert dict(shown) == {
        name: figures.NOTEBOOKS.get(figures.FIGURES[name].results[0], "31_figures")
        for name in DRAWN
    }


@pytest.mark.parametrize("name", DRAWN)
def test_every_figure_fits_the_page_in_a_type_that_is_read_there(name):
    figure = figures.draw(name, read)
    sizes = [text.get_fontsize() for text in figure.findobj(Text) if text.get_text().strip()]
    assert min(sizes) >= SMALLEST
    image = (ROOT / "figures" / f"{name}.png").read_bytes()
    width = int.from_bytes(image[16:20]) / plt.rcParams["savefig.dpi"]  # of the header, in pixels
    assert width <= 1.02 * TEXT_WIDTH


def test_every_line_of_a_legend_is_drawn():
    figure = figures.draw("unet_recipes", read)
    (legend,) = figure.legends
    drawn = {line.get_label() for ax in figure.axes for line in ax.lines if len(line.get_xdata())}
    assert {text.get_text() for text in legend.get_texts()} <= drawn


@pytest.mark.parametrize("name", ["baselines", "unet_recipes", "gpu"])
def test_a_figure_is_drawn_by_its_name(name):
    assert len(figures.draw(name, read).axes) >= 2
    assert figures.draw(name, lambda result: None) is None


def test_what_stands_beside_results_is_drawn_where_it_is():
    with_seeds = figures.draw("reductions", read)
    without = figures.draw("reductions", lambda name: None if name == "replication" else read(name))
    assert "each training seed" in words(with_seeds) - words(without)


def test_the_first_figure_has_a_row_for_each_method_over_the_gaussian_by_group():
    result = read("loss_comparison")
    over = result["reductions"]["flow_velocity"] = {}
    shown = dict.fromkeys(("mean", "mixture", "mixture_average", "mixture_mlp", "unet"))
    for i, name in enumerate(shown):
        row = {"value": 0.1 * i, "ci95": [0.1 * i - 0.01, 0.1 * i + 0.01]}
        over[name] = over.get(name, {}) | {"gaussian": row}
    figure = figures.headline(result)
    labels = [tick.get_text() for tick in figure.axes[0].get_yticklabels()]
    assert labels[:2] == ["linear", "mean only"]
    assert labels[2:5] == ["mixtures of Gaussians", "mixture of Gaussians", "average of mixtures"]
    assert labels[5:7] == ["diffusion networks", "UNet (article)"]
    assert labels[-1] == "network on mixtures (ours)"
    assert {"not comparable", "30.0 % [29.0, 31.0]", "claimed 47 %"} <= words(figure)


def test_an_average_of_mixtures_has_its_row_where_it_was_measured():
    result = read("robustness")
    result["reductions"]["mixture_average"] = result["reductions"]["mixture"]
    assert "average of mixtures" in words(figures.robustness(result))
    assert "average of mixtures" not in words(figures.robustness(read("robustness")))


def test_a_mark_for_ends_below_0_takes_no_room_from_the_axes():
    figure = figures.draw("lm_loss", read)
    figure.canvas.draw()
    assert all(ax.get_position().height > 0.6 for ax in figure.axes)


@pytest.mark.parametrize(
    "name",
    ["steering", "steering_study", "probing", "clamping", "typicality", "typicality_passage"],
)
def test_another_meta_model_than_ours_is_named_where_it_is_drawn(name):
    def renamed(result):
        found, other = read(result), "path/to/Zyx"
        is_name = isinstance(found["meta_model"], str)
        return found | {"meta_model": other if is_name else found["meta_model"] | {"name": other}}

    shown = words(figures.draw(name, renamed))
    assert any("Zyx" in text for text in shown)
    assert not any("gated MLP" in text or "path/" in text for text in shown)


def test_where_nothing_was_clamped_the_figure_says_why():
    figure = figures.clamping({"clamping": {"skipped": "No latent fires."}})
    assert words(figure) == {"No unit was clamped. No latent fires."}


def test_lines_of_a_passage_end_at_the_margin_and_with_a_segment():
    wide = "x" * (COLUMNS - 4)
    lines = passage_lines(["a\n", "bc", wide, "d", "e"], ["one", "one", "one", "one", "two"])
    assert lines == [
        ("one", [(0, 0, "a↵"), (1, 2, "bc"), (2, 4, wide)]),
        ("", [(3, 0, "d")]),
        ("two", [(4, 0, "e")]),
    ]


def test_a_cell_of_a_map_has_its_text_in_an_ink_that_is_seen():
    _, ax = plt.subplots()
    image = heat_map(ax, np.array([[0.0, 1.0]]), [["low", "high"]], 0, 1)
    found = {text.get_text(): text for text in ax.texts}
    assert found["low"].get_position() == (0, 0) and found["high"].get_position() == (1, 0)
    assert (found["low"].get_color(), found["high"].get_color()) == ("white", BLACK)
    assert image.get_clim() == (0, 1)


def test_ticks_of_learning_rates_are_powers_of_2_that_hold_them():
    _, ax = plt.subplots()
    rate_axis(ax, [0.0005, 0.004, 0.003])
    assert [text.get_text() for text in ax.get_xticklabels()] == ["0.5", "1", "2", "4"]
    assert ax.get_xticks().tolist() == [0.0005, 0.001, 0.002, 0.004]


def test_a_map_of_both_signs_has_0_in_the_middle_of_its_colours():
    _, ax = plt.subplots()
    image = heat_map(ax, np.array([[-0.2, 0.1]]), [["down", "up"]], -0.2, 0.1)
    assert image.get_clim() == (-0.2, 0.2)
    assert min(image.to_rgba(0.0)) > 0.95
