"""The ledger: verdicts that follow from numbers, and words that quote them."""

import pytest

from mmlib import claims
from mmlib.claims import EXCEEDED, NOT, REPRODUCED, UNDECIDED, UNTESTED, as_markdown, better_than, in_words, ledger


def reduction(method, baseline, objective, value, verdict="below"):
    return {"method": method, "baseline": baseline, "objective": objective, "reduction": value, "ci95": [value - 0.02, value + 0.02], "verdict": verdict}


COMPARISON = {
    "primary": [reduction("unet", "pca_k64", "ddpm_epsilon", 0.97, "above"), reduction("unet", "sae", "ddpm_epsilon", 0.46, "consistent with"),
                reduction("gated_mlp", "gaussian", "flow_velocity", 0.25)],
    "reductions": [reduction(method, baseline, objective, value) for method, objective, values in
                   (("unet", "ddpm_epsilon", (0.2, 0.1, -0.05, 0.01, 0.3)), ("gated_mlp", "flow_velocity", (0.3, 0.25, 0.24, 0.2, 0.1)))
                   for baseline, value in zip(claims.CLASSICAL, values)]}


def rows_of(**files):
    return {row["statement"]: row for row in ledger(files.get, "default")}


def test_a_claimed_number_is_reproduced_only_where_the_interval_holds_it():
    rows = rows_of(loss_comparison=COMPARISON)
    assert rows["diffusion loss decreases by 47 % compared to PCA"]["verdict"] == EXCEEDED
    assert rows["diffusion loss decreases by 47 % compared to sparse autoencoders"]["verdict"] == REPRODUCED
    assert rows["diffusion loss decreases by 47 % compared to traditional methods"]["verdict"] == NOT


def test_to_beat_all_is_to_beat_the_strongest():
    rows = rows_of(loss_comparison=COMPARISON)
    unet, ours = rows["its diffusion model beats PCA and SAEs"], rows["diffusion beats PCA and SAEs, the method at its best"]
    assert (unet["value"], unet["verdict"]) == (-0.05, NOT) and (ours["value"], ours["verdict"]) == (0.1, REPRODUCED)


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

    latents, lines = "SAE features do not activate independently", "activations do not lie on lines (are not linear-Gaussian)"
    assert [rows_of(baselines=baselines(share))[latents]["verdict"] for share in (0.06, 0.7)] == [NOT, REPRODUCED]
    assert rows_of(baselines=baselines(0.06))[lines]["value"] == 0.9


def test_scaling_needs_a_loss_that_falls_and_an_exponent_above_nothing():
    def scaling(losses, low):
        return {"rows": [{"d_model": 8, "compute": i, "loss": loss} for i, loss in enumerate(losses)], "published": {"alpha": 0.169},
                "extrapolated": "some", "laws": {"some": {"alpha": {"value": 0.2, "ci95": [low, 0.3]}}}}

    smooth, exponent = "the loss falls smoothly with compute", "with an exponent of 0.169"
    assert [rows_of(scaling=scaling(losses, low))[smooth]["verdict"] for losses, low in (((3, 2, 1), 0.1), ((3, 1, 2), 0.1), ((3, 2, 1), -0.1))] == [REPRODUCED, NOT, NOT]
    assert [rows_of(scaling=scaling((3, 2, 1), low))[exponent]["verdict"] for low in (0.1, 0.18)] == [REPRODUCED, NOT]


def test_words_quote_the_numbers():
    row = {"value": -0.1969, "ci95": [-0.204, -0.19], "unit": "%"}
    assert in_words(row) == "−19.7 [−20.4, −19.0] %" and in_words({"value": None}) == "—"
    assert in_words({"value": 1.0412, "ci95": None, "unit": "times the floor"}) == "1.041 times the floor"
    table = as_markdown(ledger({"loss_comparison": COMPARISON}.get, "default")).splitlines()
    assert len(table) == 2 + len(claims.CLAIMS) and all(line.count("|") == 7 for line in table)
    assert "46.0 [44.0, 48.0] % | reproduced | 04_compare_losses |" in table[3]
