"""The ledger: one row for each statement."""

from collections.abc import Callable

from mmlib_studies.claims.rules import UNTESTED, Measured
from mmlib_studies.claims.statements import CLAIMS


def ledger(results: Callable[[str], dict | None], preset: str) -> list[dict]:
    """One row a claim: source, statement, definition, value, ci95, unit, verdict, preset, notebook, results.

    Args:
        results: content of the results file of a name, or None where this run has none: such claims are not tested.
    """
    rows = []
    for claim in CLAIMS:
        names = [name for name in (claim.results, claim.beside) if name]
        found = {name: results(name) for name in names}
        missing = [name for name in names if found[name] is None]
        measured = (
            claim.measure(*found.values())
            if names and not missing
            else Measured(None, None, "", UNTESTED)
        )
        rows.append(
            {
                "name": claim.name,
                "source": claim.source,
                "statement": claim.statement,
                "definition": claim.definition
                + "".join(f" (this run has no {name}.json)" for name in missing),
                "value": measured.value,
                "ci95": measured.ci95 and list(measured.ci95),
                "unit": measured.unit,
                "verdict": measured.verdict,
                "note": measured.note,
                "preset": preset,
                "notebook": claim.notebook,
                "results": claim.results,
            }
        )
    return rows


def as_table(rows: list[dict]) -> str:
    """The ledger as a table in Markdown."""
    heads = ("said by", "statement", "measured as", "found", "verdict", "shown in")
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row in rows:
        cells = (row["source"], row["statement"], row["definition"], in_words(row), row["verdict"])
        lines.append(f"| {' | '.join((*cells, row['notebook'] or '—'))} |")
    return "\n".join(lines)


def in_words(row: dict) -> str:
    """Value and interval of a row, with its unit."""
    if row["value"] is None:
        return "—"
    share = row["unit"] == "%"
    digits = 1 if share else 3

    def number(value: float) -> str:
        return f"{100 * value if share else value:.{digits}f}".replace("-", "−")

    interval = f" [{number(row['ci95'][0])}, {number(row['ci95'][1])}]" if row["ci95"] else ""
    note = f" ({row['note']})" if row["note"] else ""
    return f"{number(row['value'])}{interval} {row['unit']}{note}"
