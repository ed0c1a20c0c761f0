"""Statements about losses: the diffusion loss, Δ LM loss, likelihood and Fréchet distance."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from mmlib.evaluation import claim as claimed
from mmlib.evaluation.claim import MIXTURES
from mmlib.plots import OURS, ours
from mmlib.runs.results import rows_of
from mmlib_studies.claims.rules import (
    HOLDS,
    INCOMPARABLE,
    NEAR,
    NOT,
    NOT_OWING,
    UNDECIDED,
    Measured,
    ahead,
    every,
    percent,
    reduction,
    with_control,
)

SHORT = {
    **dict.fromkeys(OURS, "ours"),
    "mlp": "the paper's MLP",
    "mean": "the mean alone",
    "gaussian": "one Gaussian",
    "mixture": "a mixture of Gaussians",
    "mixture_average": "an average of mixtures",
}
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
WHOLE_UNET = 50_000_000  # parameters: the article's has 59 million, all smaller ones are narrowed


def _ours_in(names: Iterable[str], method: str) -> str:
    """A method's key in results: that of our network where `method` is "ours"."""
    return ours(names) if method == "ours" else method


def _n_of_test(results: dict) -> str:
    test = results["test"]
    return f"{test['documents']} documents, {test['tokens_per_level']} tokens at each of 100 levels"


def _at_its_size(results: dict, measured: Measured) -> Measured:
    """A UNet narrower than the article's is not the one that the article speaks of."""
    if measured.model != "unet":
        return measured
    parameters = results["losses"]["ddpm_epsilon"]["unet"]["parameters"]
    if parameters >= WHOLE_UNET:
        return measured
    size = f"{parameters / 1e6:.1f} of 58.9 million parameters"
    return replace(measured, verdict=INCOMPARABLE, note=f"{size}; {measured.note}")


def primary(method: str, baseline: str) -> Callable[[dict], Measured]:
    """A primary definition of notebook 04; not owing to diffusion where the mean alone or a mixture
    of Gaussians is above the claim too.
    """

    def measure(results: dict) -> Measured:
        of_losses = results["losses"]["flow_velocity"]
        name = _ours_in(of_losses, method)
        row = results["primaries"][f"{name}_over_{baseline}"]
        same = results["losses"][row["objective"]]
        shares = {
            control: 1 - same[control]["value"] / same[baseline]["value"]
            for control in ("mean", *MIXTURES)
            if control in same
        }
        beside = shares
        if method == "mlp":  # a statement on no particular network: ours beside the paper's
            mine = results["primaries"].get(f"{ours(of_losses)}_over_{baseline}")
            beside = {ours(of_losses): mine["value"], **shares} if mine else shares
        note = ", ".join(f"{SHORT[one]}: {percent(share, 1)}" for one, share in beside.items())
        measured = replace(reduction(row, note), model=name, n=_n_of_test(results))
        found = with_control(measured, max(shares.values()) > row["claim"])
        return _at_its_size(results, found)

    return measure


def beats(method: str, objective: str, baselines: tuple[str, ...]) -> Callable[[dict], Measured]:
    """The reductions over all of several baselines are above nothing; the smallest is quoted. Not
    owing to diffusion unless that over the better mixture is too.
    """

    def measure(results: dict) -> Measured:
        name = _ours_in(results["reductions"][objective], method)
        by_baseline = results["reductions"][objective][name]
        compared = [one for one in baselines if one in by_baseline]
        least = min(compared, key=lambda baseline: by_baseline[baseline]["value"])
        verdict = every({ahead(by_baseline[one]["ci95"]) for one in compared})
        worst = Measured(by_baseline[least]["value"], by_baseline[least]["ci95"], "%", verdict)
        worst = replace(worst, model=name, n=_n_of_test(results))
        control = _hardest(by_baseline)
        if control is None:
            verdict = UNDECIDED if verdict == HOLDS else verdict
            found = replace(worst, verdict=verdict, note=f"over {least}; no control")
            return _at_its_size(results, found)
        over = percent(by_baseline[control]["value"], 1)
        note = f"over {least}; over {SHORT[control]} {over}"
        owing = ahead(by_baseline[control]["ci95"]) == HOLDS
        return _at_its_size(results, with_control(replace(worst, note=note), not owing))

    return measure


def _hardest(by_baseline: Mapping[str, dict]) -> str | None:
    """The mixture over which the reduction is least, since its loss is lowest; None where results
    have none.
    """
    known = [name for name in MIXTURES if name in by_baseline]
    return min(known, key=lambda name: by_baseline[name]["value"]) if known else None


def fresh(results: dict) -> Measured:
    """Our network over the full Gaussian, on the frozen articles of notebook 26, seeds together."""
    row = results["reductions"]["fresh"]["gaussian"]
    losses = results["losses"]["fresh"]
    shares = {
        name: 1 - losses[name]["mean"] / losses["gaussian"]["mean"]
        for name in MIXTURES
        if name in losses
    }
    note = ", ".join(f"{SHORT[name]}: {percent(share, 1)}" for name, share in shares.items())
    judged = row | {"verdict": claimed.verdict(*row["ci95"])}
    name, seeds = ours(losses), len(row["by_seed"])
    n = f"{results['frozen']['documents']} articles, {seeds} training seeds"
    measured = replace(reduction(judged, note), model=name, n=n)
    return with_control(measured, max(shares.values(), default=0) > claimed.CLAIM)


def reducible(scaling: dict, comparison: dict) -> Measured:
    """The paper's MLP over the full Gaussian, of what lies above the law's E: the interval is that
    of E, which any verdict then rests on.
    """
    found = claimed.over_the_estimate(comparison, scaling)["rows"]
    rows = {row["method"]: {**row, "value": row["reduction"]} for row in found}
    note = ", ".join(
        f"{SHORT[name]} {percent(rows[name]['value'], 1)}"
        for name in (*OURS, *MIXTURES)
        if name in rows and rows[name]["value"] is not None
    )
    measured = reduction(rows["mlp"], note and f"{note}; a choice of floor")
    n = f"{len(scaling['trials'])} trainings"
    passed = any(rows[name]["verdict"] in FOUND for name in MIXTURES if name in rows)
    return with_control(replace(measured, model="mlp", n=n), passed)


def _summed(results: dict) -> dict[tuple[str, str], dict]:
    """Reductions of Δ LM loss over all σ together, by method and baseline."""
    rows = rows_of(results["reductions"], "method", "baseline", "sigmas")
    most = max(len(row["sigmas"]) for row in rows)
    return {(row["method"], row["baseline"]): row for row in rows if len(row["sigmas"]) == most}


def _at_each_sigma(results: dict) -> list[dict]:
    """The paper's MLP over the mixed SAE at single σ, where the SAE's own Δ is above 0."""
    rows = results["reductions"]["mlp"]["sae"].values()
    return [row for row in rows if len(row["sigmas"]) == 1 and row["value"] is not None]


def _lm_loss_note(results: dict) -> str:
    """What stands beside the sum over σ: each σ, their mean, the SAE trained to denoise, ours, the
    controls; and what was not measured.
    """
    rows, alone = _summed(results), _at_each_sigma(results)
    parts = [f"{percent(row['value'])} at σ = {row['sigmas'][0]}" for row in alone]
    if (mean := rows["mlp", "sae"].get("mean_reduction")) is not None:
        parts.append(f"{percent(mean)} in the mean of all σ")
    beside = {("mlp", "denoising_sae"): "over the SAE trained to denoise"}
    beside |= {(name, "sae"): f"of {SHORT[name]}" for name in (*OURS, "gaussian", *MIXTURES)}
    parts += [
        f"{percent(rows[key]['value'])} {label}"
        for key, label in beside.items()
        if key in rows and rows[key]["value"] is not None
    ]
    wanted = [("mlp", sae) for sae in SAES] + [(control, "sae") for control in CONTROLS]
    complete = all("mean_ci95" in rows.get(pair, {}) for pair in wanted)
    return ", ".join(parts) + ("" if complete else "; not all of the SAEs and controls measured")


def _lm_loss(results: dict) -> Measured:
    """The paper's MLP over the mixed SAE against 47 %."""
    measured = reduction(_summed(results)["mlp", "sae"], _lm_loss_note(results))
    test = results["test"]
    n = f"{test['documents']} documents, {test['predictions']:,} predictions"
    return replace(measured, model="mlp", n=n)


def lower_lm_loss(results: dict) -> Measured:
    """The paper compares SDEdit with an SAE that reads the clean activation: what is measured here
    is another thing.
    """
    return replace(_lm_loss(results), verdict=INCOMPARABLE)


def better_fidelity(results: dict) -> Measured:
    """Reduction of Δ LM loss over the SAE against 47 %: alike at every σ and over every SAE?"""
    rows, measured = _summed(results), _lm_loss(results)
    others = [rows["mlp", sae] for sae in SAES if ("mlp", sae) in rows]
    verdicts = {row["verdict"] for row in (*_at_each_sigma(results), *others)}
    verdicts |= {row["mean_verdict"] for row in others if "mean_verdict" in row}
    known = [name for name in ("gaussian", *MIXTURES) if (name, "sae") in rows]
    if len(verdicts) > 1:
        return replace(measured, verdict=UNDECIDED)
    judged = with_control(measured, any(rows[name, "sae"]["verdict"] in FOUND for name in known))
    if judged.verdict == HOLDS and not set(CONTROLS) <= set(known):
        return replace(measured, verdict=UNDECIDED)
    return judged


def density(results: dict) -> Measured:
    """The paper's MLP over the full Gaussian; not owing to diffusion unless it is above every
    mixture of Gaussians too, by the paired intervals.
    """
    rows = results["rows"]
    known = [name for name in MIXTURES if name in rows]
    over = {name: rows["mlp"].get(f"over_{name}") for name in known}
    nats = {name: rows[name]["over_gaussian"]["mean"] for name in (ours(rows), *known)}
    labels = SHORT | {"mixture_average": "the union of mixtures"}  # an average has no density
    note = ", ".join(f"{labels[name]}: {value:.3f}" for name, value in nats.items())
    for name, row in over.items():
        if row:
            low, high = row["ci95"]
            note += f"; the MLP less {labels[name]} {row['mean']:+.3f} [{low:+.3f}, {high:+.3f}]"
    found = rows["mlp"]["over_gaussian"]
    verdict = ahead(found["ci95"], *(row["ci95"] for row in over.values() if row))
    return Measured(
        found["mean"],
        found["ci95"],
        "nats per dimension",
        verdict,
        note.replace("-", "−"),
        model="mlp",
        n=f"{results['tokens']:,} tokens of {results['documents']} documents",
    )


def _of_velocity(results: dict, baseline: str) -> list[dict]:
    """Reductions of the velocity loss of notebook 23 over a baseline, each text as a whole."""
    wanted = ("flow_velocity", baseline, "all")
    return [
        row
        for row in rows_of(results["reductions"], *ROBUSTNESS)
        if (row["objective"], row["baseline"], row["tokens"]) == wanted
    ]


def elsewhere(results: dict) -> Measured:
    """The highest of all reductions of the velocity loss by a diffusion MLP over the Gaussian;
    undecided where they have unlike verdicts.
    """
    rows = [row for row in _of_velocity(results, "gaussian") if row["method"].endswith("mlp")]
    low, high = (choose(rows, key=lambda row: row["value"]) for choose in (min, max))
    note = f"the highest of {len(rows)}, {high['label']}; "
    note += f"the lowest {percent(low['value'], 1)}, {low['label']}"
    measured, alike = reduction(high, note), len({row["verdict"] for row in rows}) == 1
    measured = replace(measured, model=high["method"], n=f"{len(rows)} measurements")
    return measured if alike else replace(measured, verdict=UNDECIDED)


OTHER_TEXT = "newsgroups"


def off_the_distribution(results: dict) -> Measured:
    """Our network over the better mixture on texts of another kind, at the middle block; the other
    networks stand in the note.
    """
    found: dict[str, list[dict]] = {}
    for baseline in MIXTURES:
        for row in _of_velocity(results, baseline):
            if (row["corpus"], row["layer"]) == (OTHER_TEXT, results["middle"]):
                found.setdefault(row["method"], []).append(row)
    hardest = {name: min(rows, key=lambda row: row["value"]) for name, rows in found.items()}
    if not hardest:
        return Measured(None, None, "", UNDECIDED, "no other text was measured")
    name = ours(hardest)
    row = hardest[name]
    note = f"over {SHORT[row['baseline']]}; " + ", ".join(
        f"{other['label']}: {percent(other['value'], 1)}"
        for method, other in hardest.items()
        if method.endswith("mlp") and method != name
    )
    verdict, n = ahead(row["ci95"]), f"{row['documents']} documents"
    return Measured(row["value"], row["ci95"], "%", verdict, note, model=name, n=n)


def frechet(results: dict) -> Measured:
    """Distance of the samples of the paper's MLP over the floor, real training activations against
    test.
    """
    rows = results["frechet"]["all_dimensions"]
    floor = rows["floor"]["distance"]
    of_mlp = rows["mlp"]["distance"] / floor
    classical = [name for name in ("gaussian", *MIXTURES) if name in rows]
    times = {name: rows[name]["distance"] / floor for name in (ours(rows), *classical)}
    near = min(times[name] for name in classical) < NEAR
    verdict = NOT if of_mlp >= NEAR else NOT_OWING if near else HOLDS
    note = ", ".join(f"{SHORT[name]}: {value:.3f}" for name, value in times.items())
    n = f"{rows['mlp']['n']:,} samples" if "n" in rows["mlp"] else ""
    return Measured(of_mlp, None, "times the floor", verdict, note, model="mlp", n=n)
