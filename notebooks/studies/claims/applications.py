"""Statements about features and their uses: dependence, probing, steering and detection."""

from collections.abc import Callable

from mmlib.runs.run import rows_of
from mmlib_studies.claims.rules import (
    ARTEFACT,
    BY_CHANCE,
    NEAR,
    NOT,
    REPRODUCED,
    UNDECIDED,
    Measured,
    better_than,
    percent,
)

EDIT = ("concept", "direction", "{intervention}@{sigma}")  # names of an edit's levels


def dependent(*place: str, control: str, budget: str | None = None) -> Callable[[dict], Measured]:
    """More than twice as many pairs as by chance lie outside the band of independence, and more than of the control.

    Args:
        place: where the measure stands, in the results and in their control alike.
        control: what that is, in words.
        budget: where the same measure of what had the control's budget stands; None: the control had the budget of what is measured.
    """

    def measure(results: dict) -> Measured:
        found, of_control = results["independence"], results["independence"].get("control", {})
        same = of_control.get(budget)
        for key in place:
            found, of_control = found[key], of_control.get(key, {})
        value = found["outside"]
        interval = found.get("by_document", {}).get("outside", {}).get("ci95")
        same, known = same or found, "outside" in of_control
        note = "of the pairs, by chance 5 %; " + (
            f"{control}: {percent(of_control['outside'], 1)}" if known else f"no control: {control}"
        )
        if known and budget:
            note += f", at whose budget it is {percent(same['outside'], 1)}"
        if (interval or (value, value))[0] <= 2 * BY_CHANCE:
            return Measured(
                value, interval, "%", NOT if value <= 2 * BY_CHANCE else UNDECIDED, note
            )
        if not known:
            return Measured(value, interval, "%", UNDECIDED, note)
        return Measured(
            value,
            interval,
            "%",
            ARTEFACT if same["outside"] <= NEAR * of_control["outside"] else REPRODUCED,
            note,
        )

    return measure


def probing(results: dict) -> Measured:
    """Paired difference of the mean AUC, hidden units of the paper's MLP less SAE latents, each the best of its own units.

    An artefact unless they are ahead of units that no diffusion model made too, by their paired differences.
    """
    over = results["differences"]["mlp"]
    row = over["sae"]
    means = {name: row["all"]["mean"] for name, row in results["dictionaries"].items()}
    verdict = better_than(0, row["all"]["ci95"])
    note = ", ".join(
        f"{label} {means[name]:.2f}"
        for name, label in (
            ("mlp", "meta-neurons"),
            ("gated_mlp", "those of our recipe"),
            ("sae", "SAE"),
            ("sae_dense", "SAE before TopK"),
            ("lm_neurons", "neurons of the block"),
            ("raw", "plain dimensions"),
            ("random", "random directions"),
        )
    )
    if verdict == REPRODUCED and any(
        better_than(0, over[name]["all"]["ci95"]) != REPRODUCED
        for name in ("sae_dense", "lm_neurons", "raw")
    ):
        verdict = ARTEFACT
    return Measured(row["all"]["mean"], tuple(row["all"]["ci95"]), "AUC", verdict, note)


def steering(results: dict) -> Measured:
    """The area between the fronts of plain addition and of SDEdit, concept against fluency, up to the level that both reach.

    Of the first concept and the first σ that the run lists. An artefact where one step of the mixture saves something too.
    """
    concept, sigma = next(iter(results["directions"])), results["sigmas"][0]
    areas = results["areas"][concept]
    row, control = (areas[f"{name}@{sigma:g}"]["additive"] for name in ("sdedit", "mixture"))
    if row["area"] is None:
        return Measured(None, None, "", UNDECIDED)
    low, high = (-end for end in reversed(row["ci95"]))
    verdict = better_than(0, (low, high))
    if verdict == REPRODUCED and control["area"] is not None and control["ci95"][1] < 0:
        verdict = ARTEFACT
    note = (
        f"{concept}, SDEdit from σ = {sigma}: area between fronts up to a change of {row['up_to']:.2f} in VADER's score, "
        f"{-row['mean_difference']:.2f} nats per token in the mean; reach {row['reach']['difference']:+.2f} [{row['reach']['ci95'][0]:+.2f}, "
        f"{row['reach']['ci95'][1]:+.2f}]; intervals over prompts"
    ).replace("-", "−")
    return Measured(-row["area"], (low, high), "nats per token × VADER", verdict, note)


def steering_elsewhere(results: dict) -> Measured:
    """The share of directions, concepts and σ at which SDEdit is cheaper than plain addition, by the interval of the area between fronts.

    Of those alone where plain addition raises the concept: its interval is above 0 at some strength. Reproduced where that is more than half of
    them, an artefact unless SDEdit by the mixture is shown to cost more wherever it was tried; not where more are dearer than cheaper.
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
    rows = [row for row in found if place(row) in steered and row["area"]["ci95"] is not None]
    told = [row["area"]["ci95"] for row in rows]
    compared, reach = len(told), results["counts"]["sdedit"]["reach"]
    if not compared:
        return Measured(None, None, "", UNDECIDED, "no level of a concept is reached by both")
    cheaper, dearer = sum(high < 0 for _, high in told), sum(low > 0 for low, _ in told)
    projections = rows_of(results["projections"], *EDIT, "against")
    alike = [
        row
        for row in projections
        if row["area"]["ci95"] is not None and row["area"]["ci95"][1] >= 0
    ]
    verdict = REPRODUCED if 2 * cheaper > compared else NOT if dearer > cheaper else UNDECIDED
    by_sigma = ", ".join(
        f"{sum(low > 0 for low, _ in mine)} of {len(mine)} from σ = {sigma:g}"
        for sigma in sorted({row["sigma"] for row in rows})
        for mine in [[row["area"]["ci95"] for row in rows if row["sigma"] == sigma]]
    )
    note = (
        f"{cheaper} of {compared} cheaper and {dearer} dearer ({by_sigma}) at equal concept, where plain addition raises it; {len(found) - compared} further, where "
        f"it does not or no level is reached by both, tell nothing; reach higher in {reach.get('higher', 0)} and lower in {reach.get('lower', 0)} of all; SDEdit by a mixture of Gaussians "
        f"not shown to cost more at equal concept in {len(alike)} of {len(projections)} tried"
    )
    return Measured(
        cheaper / compared,
        None,
        "%",
        ARTEFACT if verdict == REPRODUCED and alike else verdict,
        note,
    )


def detection(results: dict) -> Measured:
    """The share of sets on which our recipe's denoising loss tells better than the mixture's likelihood, by paired intervals.

    Reproduced where that is more than half of them, not where more are told worse than better; as corrected for the number of sets by Holm.
    """
    counts = {
        name: [found.get(kind, 0) for kind in ("better", "worse", "neither")]
        for name, found in results["verdicts_holm"].items()
    }
    better, worse, neither = counts["mixture"]
    sets = better + worse + neither
    verdict = REPRODUCED if 2 * better > sets else NOT if worse > better else UNDECIDED
    note = "; ".join(
        f"{counts[name][0]} of {sets} better and {counts[name][1]} worse than {label}"
        for name, label in (
            ("mixture", "the mixture's likelihood"),
            ("mahalanobis", "Mahalanobis distance"),
            ("denoise_mixture", "the mixture under the same score"),
        )
        if name in counts
    )
    return Measured(better / sets, None, "%", verdict, note)
