"""The scale of verdicts, and the rules by which an interval gets one."""

from dataclasses import dataclass, replace

REPRODUCED, EXCEEDED, ARTEFACT, NOT = "reproduced", "exceeded", "artefact", "not reproduced"
UNDECIDED, INCOMPARABLE, UNTESTED = "undecided", "not comparable", "not tested here"

WIDEST = 0.10  # interval in which a claimed number counts as found
BY_CHANCE = 0.05  # share of pairs outside a 95 % band if nothing depends on anything
NEAR = 1.1  # times the floor, or the control, is as good as it


@dataclass(frozen=True)
class Measured:
    """What one claim comes to."""

    value: float | None
    ci95: tuple[float, float] | None
    unit: str
    verdict: str
    note: str = ""  # what to know of the value


def every(verdicts: set[str]) -> str:
    """The verdict on "all of these hold"."""
    return NOT if NOT in verdicts else UNDECIDED if UNDECIDED in verdicts else REPRODUCED


def ahead(interval: tuple[float, float], *controls: tuple[float, float]) -> str:
    """The verdict on "the value is above 0"; an artefact unless the margin over each control is
    too.
    """
    if interval[0] > 0:
        return REPRODUCED if all(low > 0 for low, _ in controls) else ARTEFACT
    return NOT if interval[1] < 0 else UNDECIDED


def with_control(measured: Measured, control: bool) -> Measured:
    """What was found is an artefact where it is found of the control too."""
    found = measured.verdict in (REPRODUCED, EXCEEDED)
    return replace(measured, verdict=ARTEFACT) if found and control else measured


def of_most(yes: int, no: int, of: int) -> str:
    """The verdict on "most of them do": reproduced where more than half do, not where more do
    not.
    """
    return REPRODUCED if 2 * yes > of else NOT if no > yes else UNDECIDED


def percent(value: float, digits: int = 0) -> str:
    """A share in per cent, with a minus sign."""
    return f"{100 * value:.{digits}f} %".replace("-", "−")


def reduction(row: dict, note: str = "") -> Measured:
    """A claimed reduction, from a row of reductions with its verdict on the claim."""
    if row["value"] is None:
        return Measured(None, None, "", UNDECIDED)
    narrow = row["ci95"][1] - row["ci95"][0] <= WIDEST
    verdicts = {
        "consistent with": REPRODUCED if narrow else UNDECIDED,
        "above": EXCEEDED,
        "below": NOT,
    }
    return Measured(row["value"], row["ci95"], "%", verdicts[row["verdict"]], note)
