"""Statements about losses: the diffusion loss, Δ LM loss, likelihood and Fréchet distance."""

from collections.abc import Callable
from dataclasses import replace
from itertools import product

from mmlib.evaluation import claim as claimed
from mmlib.runs.results import rows_of
from mmlib_studies.claims.rules import (
    ARTEFACT,
    EXCEEDED,
    NEAR,
    NOT,
    REPRODUCED,
    UNDECIDED,
    Measured,
    ahead,
    every,
    percent,
    reduction,
    with_control,
)

SHORT = {"gated_mlp": "our recipe", "mixture": "a mixture of Gaussians"}
ROBUSTNESS = (  # names of the levels of its reductions
    "group",
    "{corpus}-layer{layer}-seed{training_seed}",
    "objective",
    "tokens",
    "method",
    "baseline",
)
FOUND = {"consistent with", "above"}  # verdicts of a reduction that is the claimed one or more
SAES, CONTROLS = ("sae", "sae_gaussian", "denoising_sae"), ("gaussian", "mixture")


def primary(name: str) -> Callable[[dict], Measured]:
    """A primary definition of notebook 04; an artefact where the mean alone is above the claim
    too.
    """

    def measure(results: dict) -> Measured:
        row = results["primaries"][name]
        same = results["losses"][row["objective"]]
        mean = 1 - same["mean"]["value"] / same[row["baseline"]]["value"]
        measured = reduction(row, f"the mean alone: {percent(mean, 1)}")
        return with_control(measured, measured.verdict == EXCEEDED and mean > row["claim"])

    return measure


def beats(method: str, objective: str, baselines: tuple[str, ...]) -> Callable[[dict], Measured]:
    """The reductions over all of several baselines are above nothing; the smallest is quoted. An
    artefact unless that over a mixture is too.
    """

    def measure(results: dict) -> Measured:
        by_baseline = results["reductions"][objective][method]
        control = by_baseline.get("mixture")
        least = min(baselines, key=lambda baseline: by_baseline[baseline]["value"])
        verdict = every({ahead(by_baseline[name]["ci95"]) for name in baselines})
        worst = Measured(by_baseline[least]["value"], by_baseline[least]["ci95"], "%", verdict)
        if control is None:
            verdict = UNDECIDED if verdict == REPRODUCED else verdict
            return replace(worst, verdict=verdict, note=f"over {least}; no control")
        note = f"over {least}; over a mixture of Gaussians {percent(control['value'], 1)}"
        return with_control(replace(worst, note=note), ahead(control["ci95"]) != REPRODUCED)

    return measure


def fresh(results: dict) -> Measured:
    """Our recipe over the full Gaussian, on the fresh documents of notebook 24."""
    return reduction(results["fresh"]["reductions"]["flow_velocity"]["gated_mlp"]["gaussian"])


def reducible(scaling: dict, comparison: dict) -> Measured:
    """The paper's MLP over the full Gaussian, of what lies above the law's E: the interval is that
    of E, which any verdict then rests on.
    """
    found = claimed.over_the_estimate(comparison, scaling)["rows"]
    rows = {row["method"]: {**row, "value": row["reduction"]} for row in found}
    note = ", ".join(
        f"{SHORT[name]} {percent(rows[name]['value'], 1)}"
        for name in SHORT
        if rows[name]["value"] is not None
    )
    measured = reduction(rows["mlp"], note and f"{note}; a choice of floor")
    return with_control(measured, rows["mixture"]["verdict"] in FOUND)


def _summed(results: dict) -> dict[tuple[str, str], dict]:
    """Reductions of Δ LM loss over all σ together, by method and baseline."""
    rows = rows_of(results["reductions"], "method", "baseline", "sigmas")
    most = max(len(row["sigmas"]) for row in rows)
    return {(row["method"], row["baseline"]): row for row in rows if len(row["sigmas"]) == most}


def _at_each_sigma(results: dict) -> list[dict]:
    """Our recipe over the mixed SAE at single σ, where the SAE's own Δ is above 0."""
    rows = results["reductions"]["gated_mlp"]["sae"].values()
    return [row for row in rows if len(row["sigmas"]) == 1 and row["value"] is not None]


def _lm_loss_note(results: dict) -> str:
    """What stands beside the sum over σ: each σ, their mean, the SAE trained to denoise, the
    controls; and what was not measured.
    """
    rows, alone = _summed(results), _at_each_sigma(results)
    parts = [f"{percent(row['value'])} at σ = {row['sigmas'][0]}" for row in alone]
    if (mean := rows["gated_mlp", "sae"].get("mean_reduction")) is not None:
        parts.append(f"{percent(mean)} in the mean of all σ")
    beside = {
        ("gated_mlp", "denoising_sae"): "over the SAE trained to denoise",
        ("gaussian", "sae"): "of one Gaussian",
        ("mixture", "sae"): "of a mixture",
    }
    parts += [
        f"{percent(rows[key]['value'])} {label}"
        for key, label in beside.items()
        if key in rows and rows[key]["value"] is not None
    ]
    wanted = product(("gated_mlp", *CONTROLS), SAES)
    complete = all("mean_ci95" in rows.get(pair, {}) for pair in wanted)
    return ", ".join(parts) + ("" if complete else "; not all of the SAEs and controls measured")


def _lower_than_saes(rows: dict[tuple[str, str], dict], method: str) -> str:
    """The test at the head of this file; undecided where a comparison is missing."""
    compared = [rows.get((method, sae), {}) for sae in SAES]
    intervals = [row.get(key) for row in compared for key in ("ci95", "mean_ci95")]
    return every({ahead(interval) if interval else UNDECIDED for interval in intervals})


def lower_lm_loss(results: dict) -> Measured:
    """Reduction of Δ LM loss over the SAE: lower than every SAE's, and than the controls'?"""
    rows = _summed(results)
    verdict = _lower_than_saes(rows, "gated_mlp")
    if verdict == REPRODUCED:
        controls = {_lower_than_saes(rows, control) for control in CONTROLS}
        measured = all(pair in rows for pair in product(CONTROLS, SAES))
        verdict = ARTEFACT if REPRODUCED in controls else REPRODUCED if measured else UNDECIDED
    over = rows["gated_mlp", "sae"]
    return Measured(over["value"], over["ci95"], "%", verdict, _lm_loss_note(results))


def better_fidelity(results: dict) -> Measured:
    """Reduction of Δ LM loss over the SAE against 47 %: alike at every σ and over every SAE?"""
    rows = _summed(results)
    measured = reduction(rows["gated_mlp", "sae"], _lm_loss_note(results))
    others = [rows["gated_mlp", sae] for sae in SAES if ("gated_mlp", sae) in rows]
    verdicts = {row["verdict"] for row in (*_at_each_sigma(results), *others)}
    verdicts |= {row["mean_verdict"] for row in others if "mean_verdict" in row}
    controls = [rows[name, "sae"]["verdict"] for name in CONTROLS if (name, "sae") in rows]
    if len(verdicts) > 1:
        return replace(measured, verdict=UNDECIDED)
    judged = with_control(measured, not FOUND.isdisjoint(controls))
    if judged.verdict in (REPRODUCED, EXCEEDED) and len(controls) < len(CONTROLS):
        return replace(measured, verdict=UNDECIDED)
    return judged


def density(results: dict) -> Measured:
    """Over the full Gaussian; an artefact unless ours is above a mixture of Gaussians too, by the
    paired interval.
    """
    ours, mixture = (results["rows"][name]["over_gaussian"] for name in ("gated_mlp", "mixture"))
    over = results["rows"]["gated_mlp"]["over_mixture"]
    note = (
        f"a mixture of Gaussians: {mixture['mean']:.3f}; ours less it {over['mean']:+.3f} "
        f"[{over['ci95'][0]:+.3f}, {over['ci95'][1]:+.3f}]"
    ).replace("-", "−")
    verdict = ahead(ours["ci95"], over["ci95"])
    return Measured(ours["mean"], ours["ci95"], "nats per dimension", verdict, note)


def elsewhere(results: dict) -> Measured:
    """The highest of all reductions of the velocity loss by a diffusion MLP over the Gaussian;
    undecided where they have unlike verdicts.
    """
    wanted = ("flow_velocity", "gaussian", "all")
    rows = [
        row
        for row in rows_of(results["reductions"], *ROBUSTNESS)
        if (row["objective"], row["baseline"], row["tokens"]) == wanted
        and row["method"].endswith("mlp")
    ]
    low, high = (choose(rows, key=lambda row: row["value"]) for choose in (min, max))
    note = f"the highest of {len(rows)}, {high['label']}; "
    note += f"the lowest {percent(low['value'], 1)}, {low['label']}"
    measured, alike = reduction(high, note), len({row["verdict"] for row in rows}) == 1
    return measured if alike else replace(measured, verdict=UNDECIDED)


def frechet(results: dict) -> Measured:
    """Distance of the samples over the floor, real training activations against test."""
    rows = {name: row["distance"] for name, row in results["frechet"]["all_dimensions"].items()}
    ours, gaussian = rows["gated_mlp"] / rows["floor"], rows["gaussian"] / rows["floor"]
    verdict = NOT if ours >= NEAR else ARTEFACT if gaussian < NEAR else REPRODUCED
    return Measured(ours, None, "times the floor", verdict, f"a fitted Gaussian's: {gaussian:.3f}")
