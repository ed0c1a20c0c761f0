"""The claimed 47 %: where an interval lies against it, and what it would be a share of. Reads
results and needs no torch.

If the best possible loss is E, a method reduces what can be reduced by 1 − (L − E)/(L_baseline −
E). Notebook 06 estimates such an E: the velocity loss that its law gives networks of one kind with
endless compute, which is no bound for others. A floor above a loss that some method has reached is
impossible, so the interval of E is cut at the lowest loss measured on the same tokens.
"""

CLAIM = 0.47
OBJECTIVE = "flow_velocity"  # what the law is of
MIXTURES = {  # no networks: shown beside the primary definitions, where they were measured
    "mixture": "a mixture of Gaussians over the full Gaussian",
    "mixture_average": "an average of mixtures over the full Gaussian",
}


def verdict(low: float, high: float, claim: float = CLAIM) -> str:
    """Where an interval lies against the claim: "below", "consistent with" or "above"."""
    return "below" if high < claim else "above" if low > claim else "consistent with"


def over(floor: float, loss: float, baseline: float) -> float:
    """1 − (L − E)/(L_baseline − E).

    Raises:
        ValueError: the floor is not below the baseline's loss, of which then nothing can be
            reduced.
    """
    if floor >= baseline:
        raise ValueError(
            f"a floor of {floor:.4f} under a baseline's loss of {baseline:.4f}: expected a lower "
            "one"
        )
    return 1 - (loss - floor) / (baseline - floor)


def over_the_estimate(comparison: dict, scaling: dict) -> dict:
    """The reduction over the law's E for each primary definition on velocity, and for the mixture
    and the average of mixtures.

    The interval is that of E alone, cut; the choice of documents would widen it by a few points
    (notebook 04 has those intervals). The reduction is monotone in E, so its ends are those of E.

    Args:
        comparison: results of notebook 04, keyed (`losses`, `primaries`).
        scaling: results of notebook 06, keyed.
    Returns:
        law: which of the fits; e, ci95: as fitted; lowest_loss; cut_ci95; possible: whether E
            itself is below the lowest loss; rows, of which reduction and ci95 are None and the
            verdict is "undetermined" where E is impossible or the baseline itself is lowest.
    """
    losses = {method: row["value"] for method, row in comparison["losses"][OBJECTIVE].items()}
    estimate, lowest = scaling["laws"][scaling["extrapolated"]]["e"], min(losses.values())
    cut = [min(end, lowest) for end in estimate["ci95"]]
    found = {
        "law": scaling["extrapolated"],
        "e": estimate["value"],
        "ci95": estimate["ci95"],
        "lowest_loss": lowest,
        "cut_ci95": cut,
        "possible": estimate["value"] < lowest,
        "claim": CLAIM,
    }
    defined = [
        (row["definition"], row["method"], row["baseline"])
        for row in comparison["primaries"].values()
        if row["objective"] == OBJECTIVE
    ]
    beside = [(text, name, "gaussian") for name, text in MIXTURES.items() if name in losses]
    return found | {"rows": [_row(found, *names, losses) for names in (*defined, *beside)]}


def _row(
    found: dict, definition: str, method: str, baseline: str, losses: dict[str, float]
) -> dict:
    ours, theirs = losses[method], losses[baseline]
    row = {
        "definition": definition,
        "method": method,
        "baseline": baseline,
        "objective": OBJECTIVE,
        "claim": CLAIM,
        "over_zero": 1 - ours / theirs,
    }
    if not found["possible"] or theirs <= found["lowest_loss"]:
        return {**row, "reduction": None, "ci95": None, "verdict": "undetermined"}
    interval = sorted(over(end, ours, theirs) for end in found["cut_ci95"])
    reduction = over(found["e"], ours, theirs)
    return {**row, "reduction": reduction, "ci95": interval, "verdict": verdict(*interval)}
