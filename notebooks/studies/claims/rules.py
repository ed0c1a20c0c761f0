"""The scale of verdicts, and the rules by which an interval gets one."""

from dataclasses import dataclass, replace

HOLDS, NOT_OWING, NOT = "holds", "holds, but not owing to diffusion", "does not hold"
UNDECIDED, INCOMPARABLE, UNTESTED = "undecided", "not comparable", "not tested"
SCALE = (HOLDS, NOT_OWING, NOT, UNDECIDED, INCOMPARABLE, UNTESTED)

WIDEST = 0.10  # interval in which a claimed number counts as found
NEAR = 1.1  # times the floor, or the control, is as good as it
TWICE = 2.0  # times the control is more than it where no interval says so


@dataclass(frozen=True)
class Measured:
    """What one claim comes to."""

    value: float | None
    ci95: tuple[float, float] | None
    unit: str
    verdict: str
    note: str = ""  # what to know of the value
    model: str = ""  # the method that is judged, by its key in results; "" where none is
    n: str = ""  # how many there are of what was measured, in words


def every(verdicts: set[str]) -> str:
    """The verdict on "all of these hold"."""
    return NOT if NOT in verdicts else UNDECIDED if UNDECIDED in verdicts else HOLDS


def ahead(interval: tuple[float, float], *controls: tuple[float, float]) -> str:
    """The verdict on "the value is above 0"; not owing to diffusion unless the margin over each
    control is too.
    """
    if interval[0] > 0:
        return HOLDS if all(low > 0 for low, _ in controls) else NOT_OWING
    return NOT if interval[1] < 0 else UNDECIDED


def beyond(value: float, chance: float, control: float | None, same: float | None = None) -> str:
    """The verdict on "there is more of it than by chance, and than of the control", of values
    without intervals.

    Args:
        control: None where it was not measured.
        same: the value at the control's budget, where `value` had another.
    """
    if value <= TWICE * abs(chance):
        return NOT
    if control is None:
        return UNDECIDED
    same = value if same is None else same
    return HOLDS if same > TWICE * control else NOT_OWING if same <= NEAR * control else UNDECIDED


def with_control(measured: Measured, control: bool) -> Measured:
    """What was found is not owing to diffusion where it is found of the control too."""
    found = measured.verdict == HOLDS
    return replace(measured, verdict=NOT_OWING) if found and control else measured


def of_most(yes: int, no: int, of: int) -> str:
    """The verdict on "most of them do": holds where more than half do, not where more do not."""
    return HOLDS if 2 * yes > of else NOT if no > yes else UNDECIDED


def percent(value: float, digits: int = 0) -> str:
    """A share in per cent, with a minus sign."""
    return f"{100 * value:.{digits}f} %".replace("-", "−")


def reduction(row: dict, note: str = "") -> Measured:
    """A claimed reduction, from a row of reductions with its verdict on the claim."""
    if row["value"] is None:
        return Measured(None, None, "", UNDECIDED)
    narrow = row["ci95"][1] - row["ci95"][0] <= WIDEST
    verdicts = {"consistent with": HOLDS if narrow else UNDECIDED, "above": HOLDS, "below": NOT}
    return Measured(row["value"], row["ci95"], "%", verdicts[row["verdict"]], note)
