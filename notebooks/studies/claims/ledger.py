"""The ledger: one row for each statement."""

from collections.abc import Callable
from dataclasses import asdict

from mmlib.plots import LABELS
from mmlib_studies.claims.rules import UNTESTED, Measured
from mmlib_studies.claims.statements import CLAIMS


def ledger(results: Callable[[str], dict | None], preset: str) -> list[dict]:
    """One row a claim: source, statement, definition, protocol, value, ci95, unit, verdict, note,
    model, n, preset, notebook, results.

    Args:
        results: content of the results file of a name, or None where this run has none: such claims
            are not tested.
    """
    rows = []
    for claim in CLAIMS:
        found = {name: results(name) for name in (claim.results, claim.beside) if name}
        missing = [name for name, content in found.items() if content is None]
        tested = found and not missing
        measured = claim.measure(*found.values()) if tested else Measured(None, None, "", UNTESTED)
        lacking = "".join(f" (this run has no {name}.json)" for name in missing)
        said = {"name": claim.name, "source": claim.source, "statement": claim.statement}
        said |= {"definition": claim.definition + lacking, "protocol": claim.protocol}
        known = asdict(measured) | {"ci95": measured.ci95 and list(measured.ci95)}
        place = {"preset": preset, "notebook": claim.notebook, "results": claim.results}
        rows.append(said | known | place)
    return rows


def as_table(rows: list[dict]) -> str:
    """The ledger as a table in Markdown."""
    heads = ("said by", "statement", "measured as", "model", "n", "found", "verdict", "shown in")
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row in rows:
        how = "; ".join(part for part in (row["definition"], row["protocol"]) if part)
        judged = (LABELS.get(row["model"], row["model"]) or "—", row["n"] or "—")
        cells = (row["source"], row["statement"], how, *judged, in_words(row), row["verdict"])
        lines.append(f"| {' | '.join((*cells, row['notebook'] or '—'))} |")
    return "\n".join(lines)


def in_words(row: dict) -> str:
    """Value and interval of a row, with its unit."""
    if row["value"] is None:
        return "—"
    share = row["unit"] == "%"

    def number(value: float) -> str:
        return (f"{100 * value:.1f}" if share else f"{value:.3f}").replace("-", "−")

    interval = f" [{', '.join(map(number, row['ci95']))}]" if row["ci95"] else ""
    note = f" ({row['note']})" if row["note"] else ""
    return f"{number(row['value'])}{interval} {row['unit']}{note}"
