"""The ledger: verdicts that follow from numbers, and words that quote them."""

import pytest

from mmlib import claims
from mmlib.claims import ARTEFACT, EXCEEDED, INCOMPARABLE, NOT, REPRODUCED, UNDECIDED, UNTESTED, as_markdown, better_than, in_words, ledger


def reduction(method, baseline, objective, value, verdict="below"):
    return {"method": method, "baseline": baseline, "objective": objective, "reduction": value, "claim": 0.47, "ci95": [value - 0.02, value + 0.02], "verdict": verdict}


COMPARISON = {
    "primary": [reduction("unet", "pca_k64", "ddpm_epsilon", 0.97, "above"), reduction("unet", "sae", "ddpm_epsilon", 0.46, "consistent with"),
                reduction("mlp", "gaussian", "flow_velocity", 0.6, "above"), reduction("gated_mlp", "gaussian", "flow_velocity", 0.25)],
    "rows_common_subset": [{"method": method, "objective": objective, "loss": loss} for objective in ("ddpm_epsilon", "flow_velocity")
                           for method, loss in (("mean", 0.3), ("pca_k64", 10.0), ("sae", 0.25), ("gaussian", 0.28))],
    "reductions": [reduction(method, baseline, objective, value) for method, objective, values in
                   (("unet", "ddpm_epsilon", (0.2, 0.1, -0.05, 0.01, 0.3, 0, 0)), ("gated_mlp", "flow_velocity", (0.3, 0.25, 0.24, 0.2, 0.15, 0.1, 0.12)))
                   for baseline, value in zip((*claims.CLASSICAL, "mixture", "denoising_sae"), values)]}


def rows_of(**files):
    return {row["statement"]: row for row in ledger(files.get, "default")}


def test_a_claimed_number_is_reproduced_only_where_the_interval_holds_it():
    rows = list(rows_of(loss_comparison=COMPARISON).values())[:4]
    assert [row["verdict"] for row in rows] == [ARTEFACT, REPRODUCED, EXCEEDED, NOT]  # over PCA-64 the mean alone does as well
    assert rows[0]["note"] == "the mean alone: 97.0 %" and rows[1]["note"] == "the mean alone: −20.0 %"


def test_a_wide_interval_reproduces_nothing():
    wide = {**reduction("unet", "sae", "ddpm_epsilon", 0.46, "consistent with"), "ci95": [0.3, 0.6]}
    rows = rows_of(loss_comparison={**COMPARISON, "primary": [COMPARISON["primary"][0], wide, *COMPARISON["primary"][2:]]})
    assert list(rows.values())[1]["verdict"] == UNDECIDED


def lm_loss(*reductions):
    return {"reductions": [{"method": "gated_mlp", "baseline": "sae", "sigmas": sigmas, "reduction": value, "verdict": verdict,
                            "ci95": None if value is None else [value - 0.02, value + 0.02]} for sigmas, value, verdict in reductions]}


def test_fidelity_is_that_of_all_levels_together_with_each_beside_it():
    both = ([0.3, 0.5], 0.68, "above")
    rows = rows_of(lm_loss=lm_loss(both, ([0.3], None, "undetermined"), ([0.5], 0.463, "consistent with")))
    assert (rows["47 % better fidelity"]["verdict"], rows["47 % better fidelity"]["note"]) == (EXCEEDED, "46 % at σ = 0.5")
    assert rows["lower Δ LM loss than SAEs"]["verdict"] == REPRODUCED
    rows = rows_of(lm_loss=lm_loss(both, ([0.3], 0.2, "below"), ([0.5], 0.8, "above")))
    assert (rows["47 % better fidelity"]["value"], rows["47 % better fidelity"]["verdict"]) == (0.68, UNDECIDED)  # whichever level one likes
    rows = rows_of(lm_loss=lm_loss(([0.3, 0.5], None, "undetermined")))
    assert {rows[statement]["verdict"] for statement in ("47 % better fidelity", "lower Δ LM loss than SAEs")} == {UNDECIDED}


def test_a_distance_near_the_floor_that_a_gaussian_has_too_is_an_artefact():
    def quality(ours, gaussian):
        distances = {"gated_mlp": ours, "gaussian": gaussian, "floor": 1.0}
        return {"frechet": {"all_dimensions": {name: {"distance": value} for name, value in distances.items()}}}

    cases = (quality(1.05, 1.5), quality(1.05, 0.95), quality(1.2, 0.95), quality(1.2, 1.5))
    assert [rows_of(sample_quality=case)["Fréchet distance near the floor"]["verdict"] for case in cases] == [REPRODUCED, ARTEFACT, NOT, NOT]


def test_to_beat_all_is_to_beat_the_strongest():
    rows = rows_of(loss_comparison=COMPARISON)
    unet, ours = rows["its diffusion model beats PCA and SAEs"], rows["diffusion beats PCA and SAEs, the method at its best"]
    assert (unet["value"], unet["verdict"]) == (-0.05, NOT) and (ours["value"], ours["verdict"], ours["note"]) == (0.1, REPRODUCED, "over mixture")


def test_what_was_not_measured_is_not_tested_and_says_why():
    rows = rows_of()
    assert all(row["verdict"] == UNTESTED and row["value"] is None for row in rows.values())
    assert "this run has no scaling.json" in rows["the loss falls smoothly with compute"]["definition"]


@pytest.mark.parametrize("interval, verdict", [((0.1, 0.3), REPRODUCED), ((-0.1, 0.3), UNDECIDED), ((-0.3, -0.1), NOT)])
def test_verdict_of_a_bound(interval, verdict):
    assert better_than(0, interval) == verdict


def test_dependence_is_more_than_chance():
    def baselines(share):
        return {"independence": {"coactivation": {"outside": share}, "whitened": {"squares": {"outside": 0.9}}}}

    latents, lines = "SAE features do not activate independently", "activations do not lie on lines"
    assert [rows_of(baselines=baselines(share))[latents]["verdict"] for share in (0.06, 0.7)] == [NOT, REPRODUCED]
    assert rows_of(baselines=baselines(0.06))[lines]["value"] == 0.9


def test_scaling_needs_a_law_that_holds_and_a_loss_that_falls():
    def scaling(losses=(3, 2, 1), edge=False, residual=0.02):
        law = {"alpha": {"value": 0.2, "ci95": [0.1, 0.3]}, "at_the_edge": edge, "worst_residual": residual}
        return {"rows": [{"d_model": 8, "compute": i, "loss": loss} for i, loss in enumerate(losses)], "extrapolated": "some", "laws": {"some": law}}

    cases = [scaling(), scaling((3, 1, 2)), scaling((1,)), scaling(edge=True), scaling(residual=0.06)]
    assert [rows_of(scaling=case)["the loss falls smoothly with compute"]["verdict"] for case in cases] == [REPRODUCED, NOT, NOT, NOT, NOT]
    assert rows_of(scaling=scaling())["with an exponent of 0.169"]["verdict"] == INCOMPARABLE


def test_words_quote_the_numbers():
    row = {"value": -0.1969, "ci95": [-0.204, -0.19], "unit": "%", "note": ""}
    assert in_words(row) == "−19.7 [−20.4, −19.0] %" and in_words({"value": None}) == "—"
    assert in_words({"value": 1.0412, "ci95": None, "unit": "times the floor", "note": "so"}) == "1.041 times the floor (so)"
    table = as_markdown(ledger({"loss_comparison": COMPARISON}.get, "default")).splitlines()
    assert len(table) == 2 + len(claims.CLAIMS) and all(line.count("|") == 7 for line in table)
    short = as_markdown(ledger({"loss_comparison": COMPARISON}.get, "default"), short=True).splitlines()
    assert len(short) == len(table) and all(line.count("|") == 6 for line in short)
    assert "46.0 [44.0, 48.0] % (the mean alone: −20.0 %) | reproduced | 04_compare_losses |" in table[3]


def test_probing_is_judged_by_the_papers_design_and_steering_by_what_it_saves():
    def probing(interval):
        rows = [{"name": name, "all": {"mean": mean}} for name, mean in (("mlp", 0.8), ("gated_mlp", 0.9), ("sae", 0.7), ("sae_dense", 0.8), ("random", 0.6))]
        pairs = [{"name": name, "other": "sae", "all": {"mean": 0.1, "ci95": interval if name == "mlp" else [0.1, 0.2]}} for name in ("mlp", "gated_mlp")]
        return {"rows": rows, "differences": pairs}

    statement = "one-unit probes on meta-neurons beat those on SAE latents, AUC 0.84 against 0.70"
    assert [rows_of(probing=probing(i))[statement]["verdict"] for i in ([-0.1, 0.3], [0.05, 0.15], [-0.3, -0.1])] == [UNDECIDED, REPRODUCED, NOT]
    assert "those of our recipe 0.90" in rows_of(probing=probing([0, 1]))[statement]["note"]

    def steering(area, interval):
        rows = [{"intervention": "sdedit", "against": against, "area": area, "ci95": interval, "up_to": 0.5, "mean_difference": area and area / 0.5}
                for against in ("additive", "mixture")]
        return {"areas": rows}

    found = rows_of(steering=steering(-0.1, [-0.2, -0.05]))["better behaviour editing"]
    assert (found["value"], found["ci95"], found["verdict"]) == (pytest.approx(0.1), pytest.approx([0.05, 0.2]), REPRODUCED)
    assert rows_of(steering=steering(0.1, [0.05, 0.2]))["better behaviour editing"]["verdict"] == NOT
    assert rows_of(steering=steering(None, None))["better behaviour editing"]["verdict"] == UNDECIDED
