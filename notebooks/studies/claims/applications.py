"""Statements about features and their uses: dependence, probing, steering and detection."""

from dataclasses import replace

from mmlib.evaluation.claim import MIXTURES
from mmlib.plots import OURS
from mmlib.runs.results import rows_of
from mmlib_studies.claims.rules import (
    UNDECIDED,
    Measured,
    ahead,
    beyond,
    of_most,
    percent,
    with_control,
)

EDIT = ("concept", "direction", "{intervention}@{sigma}")  # names of an edit's levels
LEAST = 0.01  # of a difference of two AUROCs that is counted
ALPHA = 0.05  # of a test, after Holm's correction


def _excess(found: dict) -> float:
    """Mutual information of a pair beyond what shifted latents show, as a share of a latent's
    entropy: it does not grow with the number of tokens.
    """
    return (found["mutual_information"] - found["mutual_information_null"]) / found["entropy"]


def latents_depend(results: dict) -> Measured:
    """Mutual information of pairs of latents over their entropy, beside its control, an SAE on
    draws from a Gaussian, at whose budget the real one is measured too.
    """
    independence = results["independence"]
    found, control = independence["coactivation"], independence.get("control", {})
    value, chance = _excess(found), found["mutual_information_null"] / found["entropy"]
    note = f"shifted latents: {percent(chance, 3)}"
    beside = same = None
    if "coactivation" in control:
        beside, same = _excess(control["coactivation"]), _excess(control["real_same_budget"])
        note += f"; an SAE on draws from a Gaussian: {percent(beside, 3)}, at whose budget it is "
        note += percent(same, 3)
    else:
        note += "; no control"
    verdict = beyond(value, chance, beside, same)
    n = f"{found['pairs']:,} pairs of latents, {found['tokens']:,} tokens"
    return Measured(value, None, "%", verdict, note, model="sae_clean", n=n)


def not_on_lines(results: dict) -> Measured:
    """Mean correlation of the squares of two whitened coordinates, beside its null and its control,
    independent latents that were decoded.
    """
    independence = results["independence"]
    found = independence["whitened"]["squares"]
    value, chance = found["correlation"], found["correlation_null"]
    control = independence.get("control", {}).get("whitened", {}).get("squares")
    beside = control and control["correlation"]
    note = f"shifted coordinates: {chance:.4f}; "
    note += f"independent latents on lines: {beside:.4f}" if control else "no control"
    verdict = beyond(value, chance, beside)
    n = f"{len(independence['whitened']['kurtosis'])} coordinates"
    return Measured(value, None, "correlation", verdict, note.replace("-", "−"), n=n)


def probing(results: dict) -> Measured:
    """Paired difference of the mean AUC, hidden units of the paper's MLP less SAE latents, each the
    best of its own units.

    Not owing to diffusion unless they are ahead of units that no diffusion model made too, by their
    paired differences.
    """
    over = {other: row["all"] for other, row in results["differences"]["mlp"].items()}
    found = results["dictionaries"]
    means = {
        label: found[name]["all"]["mean"] for name, label in _DICTIONARIES.items() if name in found
    }
    note = ", ".join(f"{label} {mean:.2f}" for label, mean in means.items())
    others = (over[name]["ci95"] for name in ("sae_dense", "lm_neurons", "raw"))
    verdict = ahead(over["sae"]["ci95"], *others)
    n = f"{over['sae']['tasks']} tasks" if "tasks" in over["sae"] else ""
    interval = tuple(over["sae"]["ci95"])
    return Measured(over["sae"]["mean"], interval, "AUC", verdict, note, model="mlp", n=n)


_DICTIONARIES = {
    "mlp": "meta-neurons",
    **dict.fromkeys(OURS, "those of our network"),
    "sae": "SAE",
    "sae_dense": "SAE before TopK",
    "lm_neurons": "neurons of the block",
    "raw": "plain dimensions",
    "random": "random directions",
}


def steering(results: dict) -> Measured:
    """The area between the fronts of plain addition and of SDEdit, concept against fluency, up to
    the level that both reach.

    Of the first concept and the first σ that the run lists. Not owing to diffusion where one step
    of the mixture saves something too.
    """
    concept, sigma = next(iter(results["directions"])), results["sigmas"][0]
    areas = results["areas"][concept]
    row, control = (areas[f"{name}@{sigma:g}"]["additive"] for name in ("sdedit", "mixture"))
    judged = {"model": results["meta_model"]["name"], "n": f"{results['prompts']} prompts"}
    if row["area"] is None:
        return Measured(None, None, "", UNDECIDED, **judged)
    low, high = (-end for end in reversed(row["ci95"]))
    reach = row["reach"]
    note = (
        f"{concept}, SDEdit from σ = {sigma}: area between fronts up to a change of "
        f"{row['up_to']:.2f} in VADER's score, {-row['mean_difference']:.2f} nats per token in the "
        f"mean; reach {reach['difference']:+.2f} [{reach['ci95'][0]:+.2f}, "
        f"{reach['ci95'][1]:+.2f}]; intervals over prompts"
    ).replace("-", "−")
    unit = "nats per token × VADER"
    saved = Measured(-row["area"], (low, high), unit, ahead((low, high)), note, **judged)
    return with_control(saved, control["area"] is not None and control["ci95"][1] < 0)


def steering_elsewhere(results: dict) -> Measured:
    """The share of directions, concepts and σ at which SDEdit is cheaper than plain addition, by
    the interval of the area between fronts.

    Of those alone where plain addition raises the concept: its interval is above 0 at some
    strength. It holds where that is more than half of them, not owing to diffusion unless SDEdit by
    the mixture is shown to cost more wherever it was tried; not where more are dearer than cheaper.
    """

    def place(row: dict) -> tuple[str, str]:
        return row["concept"], row["direction"]

    steered = {
        place(row)
        for row in rows_of(results["rows"], *EDIT, "strength")
        if row["intervention"] == "additive" and row["strength"] > 0 and row["change_ci95"][0] > 0
    }
    compared_rows = rows_of(results["against_addition"], *EDIT)
    found = [row for row in compared_rows if row["intervention"] == "sdedit"]
    told = [
        (row["sigma"], *row["area"]["ci95"])
        for row in found
        if place(row) in steered and row["area"]["ci95"] is not None
    ]
    compared, reach = len(told), results["counts"]["sdedit"]["reach"]
    n = f"{compared} directions, concepts and σ, {results['prompts']} prompts each"
    judged = {"model": results["meta_model"]["name"], "n": n}
    if not compared:
        nothing = "no level of a concept is reached by both"
        return Measured(None, None, "", UNDECIDED, nothing, **judged)
    cheaper, dearer = sum(high < 0 for *_, high in told), sum(low > 0 for _, low, _ in told)
    by_sigma = ", ".join(
        f"{sum(mine)} of {len(mine)} from σ = {sigma:g}"
        for sigma in sorted({sigma for sigma, *_ in told})
        for mine in [[low > 0 for own, low, _ in told if own == sigma]]
    )
    projections = rows_of(results["projections"], *EDIT, "against")
    intervals = [row["area"]["ci95"] for row in projections]
    alike = sum(interval is not None and interval[1] >= 0 for interval in intervals)
    note = (
        f"{cheaper} of {compared} cheaper and {dearer} dearer ({by_sigma}) at equal concept, where "
        f"plain addition raises it; {len(found) - compared} further, where it does not or no level "
        f"is reached by both, tell nothing; reach higher in {reach.get('higher', 0)} and lower in "
        f"{reach.get('lower', 0)} of all; SDEdit by a mixture of Gaussians not shown to cost more "
        f"at equal concept in {alike} of {len(projections)} tried"
    )
    verdict = of_most(cheaper, dearer, compared)
    measured = Measured(cheaper / compared, None, "%", verdict, note, **judged)
    return with_control(measured, alike > 0)


def detection(results: dict) -> Measured:
    """The share of sets on which our network's denoising loss tells better than the likelihood of
    the better mixture, by paired differences of at least `LEAST`, as corrected for the number of
    sets by Holm.

    It holds where that is more than half of them, not where more are told worse than better.
    """
    sets = list(results["differences"].values())
    better, worse, of = _told(sets, *MIXTURES)
    beside = {
        "mahalanobis": "Mahalanobis distance",
        "denoise_mixture": "the mixture under the same score",
    }
    note = f"{better} of {of} better and {worse} worse by at least {LEAST} of AUROC"
    for name, label in beside.items():
        ahead_of, behind, compared = _told(sets, name)
        note += f"; {ahead_of} of {compared} better and {behind} worse than {label}"
    verdict, judged = of_most(better, worse, of), str(results["meta_model"])
    measured = Measured(better / of, None, "%", verdict, note, model=judged)
    return replace(measured, n=f"{of} sets of activations")


def _told(sets: list[dict], *scores: str) -> tuple[int, int, int]:
    """On how many sets ours is better than each of some scores, worse than one of them, and how
    many were compared. What is not corrected was not to be compared: a score's own samples, the
    control.
    """
    better = worse = of = 0
    for one in sets:
        rows = [one[name] for name in scores if "p_holm" in one.get(name, {})]
        told = [
            row["difference"] if row["p_holm"] <= ALPHA and abs(row["difference"]) >= LEAST else 0
            for row in rows
        ]
        of += bool(rows)
        better += bool(rows) and min(told) > 0
        worse += bool(rows) and min(told) < 0
    return better, worse, of
