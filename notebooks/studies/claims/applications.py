"""Statements about features and their uses: dependence, probing, steering and detection."""

from collections.abc import Callable

from mmlib.runs.results import rows_of
from mmlib_studies.claims.rules import (
    ARTEFACT,
    BY_CHANCE,
    NEAR,
    NOT,
    REPRODUCED,
    UNDECIDED,
    Measured,
    ahead,
    of_most,
    percent,
    with_control,
)

EDIT = ("concept", "direction", "{intervention}@{sigma}")  # names of an edit's levels


def dependent(*place: str, control: str, budget: str | None = None) -> Callable[[dict], Measured]:
    """More than twice as many pairs as by chance lie outside the band of independence, and more
    than of the control.

    Args:
        place: where the measure stands, in the results and in their control alike.
        control: what that is, in words.
        budget: where the same measure of what had the control's budget stands; None: the control
            had the budget of what is measured.
    """

    def measure(results: dict) -> Measured:
        found, of_control = results["independence"], results["independence"].get("control", {})
        same = of_control.get(budget)
        for key in place:
            found, of_control = found[key], of_control.get(key, {})
        value, beside = found["outside"], of_control.get("outside")
        interval = found.get("by_document", {}).get("outside", {}).get("ci95")
        same = (same or found)["outside"]
        note = f"no control: {control}" if beside is None else f"{control}: {percent(beside, 1)}"
        if beside is not None and budget:
            note += f", at whose budget it is {percent(same, 1)}"
        if (interval or (value, value))[0] <= 2 * BY_CHANCE:
            verdict = NOT if value <= 2 * BY_CHANCE else UNDECIDED
        elif beside is None:
            verdict = UNDECIDED
        else:
            verdict = ARTEFACT if same <= NEAR * beside else REPRODUCED
        return Measured(value, interval, "%", verdict, f"of the pairs, by chance 5 %; {note}")

    return measure


def probing(results: dict) -> Measured:
    """Paired difference of the mean AUC, hidden units of the paper's MLP less SAE latents, each the
    best of its own units.

    An artefact unless they are ahead of units that no diffusion model made too, by their paired
    differences.
    """
    over = {other: row["all"] for other, row in results["differences"]["mlp"].items()}
    found = results["dictionaries"]
    means = {label: found[name]["all"]["mean"] for name, label in _DICTIONARIES.items()}
    note = ", ".join(f"{label} {mean:.2f}" for label, mean in means.items())
    others = (over[name]["ci95"] for name in ("sae_dense", "lm_neurons", "raw"))
    verdict = ahead(over["sae"]["ci95"], *others)
    return Measured(over["sae"]["mean"], tuple(over["sae"]["ci95"]), "AUC", verdict, note)


_DICTIONARIES = {
    "mlp": "meta-neurons",
    "gated_mlp": "those of our recipe",
    "sae": "SAE",
    "sae_dense": "SAE before TopK",
    "lm_neurons": "neurons of the block",
    "raw": "plain dimensions",
    "random": "random directions",
}


def steering(results: dict) -> Measured:
    """The area between the fronts of plain addition and of SDEdit, concept against fluency, up to
    the level that both reach.

    Of the first concept and the first σ that the run lists. An artefact where one step of the
    mixture saves something too.
    """
    concept, sigma = next(iter(results["directions"])), results["sigmas"][0]
    areas = results["areas"][concept]
    row, control = (areas[f"{name}@{sigma:g}"]["additive"] for name in ("sdedit", "mixture"))
    if row["area"] is None:
        return Measured(None, None, "", UNDECIDED)
    low, high = (-end for end in reversed(row["ci95"]))
    reach = row["reach"]
    note = (
        f"{concept}, SDEdit from σ = {sigma}: area between fronts up to a change of "
        f"{row['up_to']:.2f} in VADER's score, {-row['mean_difference']:.2f} nats per token in the "
        f"mean; reach {reach['difference']:+.2f} [{reach['ci95'][0]:+.2f}, "
        f"{reach['ci95'][1]:+.2f}]; intervals over prompts"
    ).replace("-", "−")
    unit = "nats per token × VADER"
    saved = Measured(-row["area"], (low, high), unit, ahead((low, high)), note)
    return with_control(saved, control["area"] is not None and control["ci95"][1] < 0)


def steering_elsewhere(results: dict) -> Measured:
    """The share of directions, concepts and σ at which SDEdit is cheaper than plain addition, by
    the interval of the area between fronts.

    Of those alone where plain addition raises the concept: its interval is above 0 at some
    strength. Reproduced where that is more than half of them, an artefact unless SDEdit by the
    mixture is shown to cost more wherever it was tried; not where more are dearer than cheaper.
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
    if not compared:
        return Measured(None, None, "", UNDECIDED, "no level of a concept is reached by both")
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
    return with_control(Measured(cheaper / compared, None, "%", verdict, note), alike > 0)


def detection(results: dict) -> Measured:
    """The share of sets on which our recipe's denoising loss tells better than the mixture's
    likelihood, by paired intervals.

    Reproduced where that is more than half of them, not where more are told worse than better; as
    corrected for the number of sets by Holm.
    """
    counts = {
        name: [found.get(kind, 0) for kind in ("better", "worse", "neither")]
        for name, found in results["verdicts_holm"].items()
    }
    better, worse, _ = counts["mixture"]
    sets = sum(counts["mixture"])
    beside = {
        "mixture": "the mixture's likelihood",
        "mahalanobis": "Mahalanobis distance",
        "denoise_mixture": "the mixture under the same score",
    }
    note = "; ".join(
        f"{counts[name][0]} of {sets} better and {counts[name][1]} worse than {label}"
        for name, label in beside.items()
        if name in counts
    )
    return Measured(better / sets, None, "%", of_most(better, worse, sets), note)
