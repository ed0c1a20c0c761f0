"""Statements about scaling: whether the loss follows a power law of compute, and with which
exponent.
"""

from mmlib.runs.results import rows_of
from mmlib_studies.claims.rules import (
    HOLDS,
    INCOMPARABLE,
    NOT,
    UNDECIDED,
    WIDEST,
    Measured,
    percent,
)

# exponents among which the law of notebook 06 is sought (`mmlib_studies.scaling.ALPHAS`)
ALPHAS = (0.01, 3.0)
WORST_RESIDUAL = 0.05  # of a law that describes its points
PUBLISHED_COMPUTE = 2e18  # FLOP: 6·N·D of 0.4 billion parameters and 10⁹ activations


def _describes(law: dict) -> list[str]:
    """Why a fitted law is no description of its points; empty where it is one.

    That its exponent is above 0 says nothing, since only such are sought: its interval must stay
    away from both ends of the search.
    """
    reasons, (low, high) = [], law["alpha"]["ci95"]
    if law["at_the_edge"]:
        reasons.append("ends at the bounds of the fit")
    if not (low > 2 * ALPHAS[0] and high < ALPHAS[1] / 2):
        reasons.append(f"has an exponent anywhere from {low:.2g} to {high:.2g}")
    if law["worst_residual"] >= WORST_RESIDUAL:
        reasons.append(f"is off by {percent(law['worst_residual'], 1)}")
    return reasons


def power_law(results: dict) -> Measured:
    """Every width's loss, and that of the lower envelope, falls with each budget; and the law
    describes its points.

    Both for the cells below the loss of the mean alone, which was decided after their losses had
    been seen, and for all cells: where the two differ, that choice decides and the statement is
    undecided.
    """
    rows = sorted(rows_of(results["trials"], "name"), key=lambda row: row["compute"])
    lines = [
        [row["loss"] for row in rows if row["d_model"] == width]
        for width in {row["d_model"] for row in rows}
    ]
    lines.append([row["loss"] for row in rows if row["name"] in results["envelope"]])
    falls = all(len(line) > 2 and all(a > b for a, b in zip(line, line[1:])) for line in lines)
    chosen, law = results["extrapolated"], results["laws"][results["extrapolated"]]
    laws = {name: results["laws"].get(name) for name in (chosen, "all_cells")}
    reasons = {name: _describes(law) for name, law in laws.items() if law}
    holds = {name: falls and not why for name, why in reasons.items()}
    alpha, notes = law["alpha"], [f"off by at most {percent(law['worst_residual'], 1)}"]
    for name, why in reasons.items():
        if why:
            notes.append(f"through {name.replace('_', ' ')} it {' and '.join(why)}")
    if not falls:
        notes.append("the loss does not fall with every budget")
    verdict, note = UNDECIDED if any(holds.values()) else NOT, "; ".join(notes)
    if all(holds.values()) and "all_cells" in holds:
        verdict = HOLDS
    n = f"{len(rows)} trainings"
    return Measured(alpha["value"], alpha["ci95"], "exponent α", verdict, note, model="mlp", n=n)


def published_exponent(results: dict) -> Measured:
    """Ours beside the paper's: comparable where the largest network saw a tenth of the paper's
    compute or more.
    """
    alpha, theirs = results["laws"][results["extrapolated"]]["alpha"], results["published"]["alpha"]
    low, high = alpha["ci95"]
    if results["extrapolation"]["largest_measured"] < PUBLISHED_COMPUTE / 10:
        verdict = INCOMPARABLE
    elif low <= theirs <= high:
        verdict = HOLDS if high - low <= WIDEST else UNDECIDED
    else:
        verdict = NOT
    n = f"{len(results['trials'])} trainings"
    return Measured(alpha["value"], alpha["ci95"], "exponent α", verdict, model="mlp", n=n)
