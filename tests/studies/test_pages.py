"""Pages: rendered from results by key, as they are committed, and short enough to be read."""

import json
import re
from pathlib import Path

import pytest

from mmlib.runs import plan
from mmlib.runs.presets import DEFAULT
from mmlib.runs.run import ROOT
from mmlib_studies import pages
from mmlib_studies.claims.rules import SCALE

TEMPLATES = sorted((ROOT / "templates").glob("*.j2"))


@pytest.mark.parametrize("page", pages.PAGES)
def test_a_page_is_what_its_template_gives(page):
    committed = (ROOT / page).read_text(encoding="utf-8")
    assert pages.render(page) == committed, "edit templates/, then run `make pages`"


def test_the_readme_has_at_most_a_thousand_words():
    text = re.sub(r"!\[[^\]]*\]\([^)]*\)", "", (ROOT / "README.md").read_text(encoding="utf-8"))
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text)
    assert len(re.sub(r"[|#*`\-—·→]+", " ", text).split()) <= 1000


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda path: path.name)
def test_no_interval_is_typed(template):
    typed = re.sub(r"{[{%#].*?[}%#]}", "", template.read_text(encoding="utf-8"), flags=re.S)
    assert not re.findall(r"[\d%] \[−?\d", typed) and not re.findall(r"\d \[\[", typed)


@pytest.mark.parametrize("page", pages.PAGES)
def test_links_lead_somewhere(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)]+)\)", text):
        path, _, anchor = target.partition("#")
        if path.startswith("http"):
            continue
        file = ((ROOT / page).parent / path).resolve() if path else ROOT / page
        assert file.exists(), target
        if anchor:
            heads = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), flags=re.M)
            slugs = {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}
            assert anchor in slugs, target


def test_every_figure_has_its_caption():
    text = (ROOT / "figures" / "README.md").read_text(encoding="utf-8")
    drawn = {path.stem for path in (ROOT / "figures").glob("*.png")}
    assert set(re.findall(r"\((\w+)\.png\)", text)) == drawn


def test_the_table_of_our_network_is_of_the_networks_in_results():
    rows = pages.Results(ROOT / "results")["loss_comparison"]["losses"]["flow_velocity"]
    for name in ("mlp", "mixture_mlp"):
        training = DEFAULT.recipes[name].training
        assert rows[name]["train_activations"] == training.steps * training.batch


@pytest.mark.parametrize("address", ["", "https://github.com/a/b", "https://a.example/b"])
def test_an_address_of_the_repository_comes_from_one_place_and_brings_badges_on_github(
    address, tmp_path, monkeypatch
):
    (tmp_path / "pyproject.toml").write_text(f'[tool.mmlib]\nrepository = "{address}"\n')
    assert pages.repository(tmp_path / "pyproject.toml") == address
    monkeypatch.setattr(pages, "repository", lambda: address)
    (tmp_path / "templates").symlink_to(ROOT / "templates")
    (tmp_path / "results").mkdir()
    for folder in ("default", "gpu"):
        (tmp_path / "results" / folder).symlink_to(ROOT / "results" / folder)
    rendered = pages.render_pages(tmp_path)
    readme = (tmp_path / "README.md").read_text()
    assert (f"    git clone {address} mmlib && cd mmlib\n" in readme) == bool(address)
    badges = re.findall(r"\[!\[[^\]]*\]\([^)]+\)\]\(([^)]+)\)", readme)
    assert len(badges) == (3 if "github" in address else 0)
    assert (pages.COLAB in rendered) == bool(badges)
    if badges:
        ci, colab, binder = badges
        assert ci == f"{address}/actions/workflows/test.yml"
        assert (ROOT / ".github" / "workflows" / Path(ci).name).exists()
        assert "/github/a/b/" in colab and colab.endswith(pages.COLAB)
        assert "/gh/a/b/" in binder and (ROOT / binder.split("lab/tree/")[1]).exists()
        source = "".join(plan.code_of(tmp_path / pages.COLAB))
        assert f"git clone --quiet --depth 1 {address} mmlib" in source
        assert "mmlib run main --preset smoke" in source


def test_how_long_tests_took_is_noted_by_kind_of_machine_and_rendered(tmp_path, monkeypatch):
    monkeypatch.setattr(pages, "processor", lambda: "Abacus")
    for units in (True, False):
        monkeypatch.setattr(pages, "bf16_pays", lambda device: units)
        pages.note_time("test", 750.0, tmp_path)
    path = pages.note_time("test-unit", 60.0, tmp_path)
    machines = json.loads(path.read_text())["machines"]
    assert [name.split(", ")[-1] for name in machines] == ["with bf16 units", "without bf16 units"]
    assert [list(row) for row in machines.values()] == [["test"], ["test", "test-unit"]]
    for folder in ("default", "gpu"):
        (tmp_path / folder).symlink_to(ROOT / "results" / folder)
    shown = pages.render("results/README.md", tmp_path)
    assert "without bf16 units: `make test` takes 12 minutes (at " in shown
    with pytest.raises(ValueError, match="test_times.json does not fit its schema at machines"):
        pages.note_time("test", -1.0, tmp_path)


def rendered(
    tmp_path, template, content='{"losses": {"mlp": {"value": 1.153, "ci95": [1.1, 1.2]}}}'
):
    (tmp_path / "default").mkdir()
    (tmp_path / "default" / "loss_comparison.json").write_text(content)
    (tmp_path / "README.md.j2").write_text(template)
    return pages.render("README.md", tmp_path, tmp_path)


@pytest.mark.parametrize(
    "template, words",
    [
        (
            "{{ r.loss_comparison.losses.mpl.value | number }}",
            "default/loss_comparison.json: losses has no 'mpl': expected one of mlp",
        ),
        ("{{ r.loss_comparison.loss }}", "loss_comparison.json: has no 'loss': expected one of"),
        ("{{ r.lm_loss.x }}", "lm_loss.json is missing: a template reads it"),
        ("{{ r.loss_comparison.losses.mlp | number }}", "is no number that a page could show"),
        ("{{ 'mpl' | label }}", "no label for 'mpl'"),
        (
            "{{ r.loss_comparison.losses | ours }}",
            "none of mixture_mlp, gated_mlp in these results",
        ),
    ],
)
def test_a_number_that_is_not_there_is_named_with_file_and_path(tmp_path, template, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        rendered(tmp_path, template)


def test_the_ledger_is_shown_in_its_own_words():
    shown = (ROOT / "results" / "README.md").read_text(encoding="utf-8").split("## The ledger")[1]
    words = {line.split(" | ")[6] for line in shown.splitlines() if line.startswith("| article")}
    assert words <= set(SCALE)


def test_numbers_are_written_as_people_write_them(tmp_path):
    text = rendered(tmp_path, "{{ r.loss_comparison.losses.mlp | estimate('value', 1) }}")
    assert text == "1.2 [1.1, 1.2]"
    row = {"value": -0.0287, "ci95": [-0.0349, -0.0225]}
    assert pages.share(row, digits=2) == "−2.87 % [−3.49, −2.25]"
    assert pages.lower(row, digits=2) == "2.87 % [2.25, 3.49] higher"
    assert pages.lower({"value": 0.25, "ci95": [0.2, 0.3]}) == "25.0 % [20.0, 30.0] lower"
    assert pages.interval([0.5, None], 1) == "[0.5, …]" and pages.number(-0.0001) == "0.00"
