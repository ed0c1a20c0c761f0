"""The ledger: what the article and the paper say, what was measured for it here, and the verdict that follows.

Every verdict is computed from results/. *Reproduced*: what is measured agrees with the statement, interval and all. *Exceeded*: the whole
interval lies above a claimed number. *Not reproduced*: it contradicts the statement. *Undecided*: the interval leaves both open. *Not
tested here*: with the reason.
"""

from collections.abc import Callable
from dataclasses import dataclass

REPRODUCED, EXCEEDED, NOT, UNDECIDED, UNTESTED = "reproduced", "exceeded", "not reproduced", "undecided", "not tested here"
BY_CHANCE = 0.05  # share of pairs outside a 95 % band if nothing depends on anything
PAPER_AUC = "0.84 against 0.70"


@dataclass(frozen=True)
class Measured:
    """What one claim comes to."""

    value: float
    ci95: tuple[float, float] | None
    unit: str
    verdict: str


@dataclass(frozen=True)
class Claim:
    """One statement and how it is measured.

    Args:
        results: name of the file in results/ that `measure` reads; "" for a claim that is not tested.
        definition: what is measured for it; of a claim that is not tested, why not.
    """

    source: str  # "article" or "paper"
    statement: str
    definition: str
    results: str = ""
    notebook: str = ""
    measure: Callable[[dict], Measured] | None = None


def ledger(results: Callable[[str], dict | None], preset: str) -> list[dict]:
    """One row a claim: source, statement, definition, value, ci95, unit, verdict, preset, notebook, results.

    Args:
        results: content of the results file of a name, or None where this run has none: such claims are not tested.
    """
    rows = []
    for claim in CLAIMS:
        found = results(claim.results) if claim.results else None
        measured = claim.measure(found) if found else Measured(None, None, "", UNTESTED)
        rows.append({"source": claim.source, "statement": claim.statement,
                     "definition": claim.definition + ("" if found or not claim.results else f" (this run has no {claim.results}.json)"),
                     "value": measured.value, "ci95": measured.ci95 and list(measured.ci95), "unit": measured.unit, "verdict": measured.verdict,
                     "preset": preset, "notebook": claim.notebook, "results": claim.results})
    return rows


def as_markdown(rows: list[dict]) -> str:
    """The ledger as a table."""
    lines = ["| said by | statement | measured as | found | verdict | shown in |", "|---|---|---|---|---|---|"]
    for row in rows:
        lines.append(f"| {row['source']} | {row['statement']} | {row['definition']} | {in_words(row)} | {row['verdict']} | {row['notebook'] or '—'} |")
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
    return f"{number(row['value'])}{interval} {row['unit']}".strip()


def better_than(bound: float, interval: tuple[float, float]) -> str:
    """The verdict on "the value is above the bound"."""
    return REPRODUCED if interval[0] > bound else NOT if interval[1] < bound else UNDECIDED


def _reduction(row: dict) -> Measured:
    """The claimed reduction: reproduced only where the interval holds it."""
    verdicts = {"consistent with": REPRODUCED, "above": EXCEEDED, "below": NOT}
    return Measured(row["reduction"], row["ci95"], "%", verdicts[row["verdict"]])


def _primary(index: int) -> Callable[[dict], Measured]:
    return lambda results: _reduction(results["primary"][index])


def _beats(method: str, objective: str, baselines: tuple[str, ...]) -> Callable[[dict], Measured]:
    """The smallest of the reductions over several baselines is above nothing."""
    def measure(results: dict) -> Measured:
        rows = [row for row in results["reductions"] if (row["method"], row["objective"]) == (method, objective) and row["baseline"] in baselines]
        worst = min(rows, key=lambda row: row["reduction"])
        return Measured(worst["reduction"], worst["ci95"], "%", better_than(0, worst["ci95"]))
    return measure


def _lm_loss_reduction(results: dict) -> dict:
    """Reduction of Δ LM loss by our recipe over the mixed SAE, over all noise levels together."""
    return max((row for row in results["reductions"] if (row["method"], row["baseline"]) == ("gated_mlp", "sae")), key=lambda row: len(row["sigmas"]))


def _lower_lm_loss(results: dict) -> Measured:
    row = _lm_loss_reduction(results)
    return Measured(row["reduction"], row["ci95"], "%", better_than(0, row["ci95"]))


def _frechet(results: dict) -> Measured:
    """Distance of the samples over the floor, real training activations against test: near means within a tenth."""
    rows = results["frechet"]["all_dimensions"]
    ratio = rows["gated_mlp"]["distance"] / rows["floor"]["distance"]
    return Measured(ratio, None, "times the floor", REPRODUCED if ratio < 1.1 else NOT)


def _dependent(*place: str) -> Callable[[dict], Measured]:
    """More than twice as many pairs as by chance lie outside the band of independence."""
    def measure(results: dict) -> Measured:
        found = results["independence"]
        for key in place:
            found = found[key]
        return Measured(found["outside"], None, "%", REPRODUCED if found["outside"] > 2 * BY_CHANCE else NOT)
    return measure


def _power_law(results: dict) -> Measured:
    """The exponent is above 0 and every larger budget of the widest network has a lower loss."""
    alpha = results["laws"][results["extrapolated"]]["alpha"]
    widest = max(row["d_model"] for row in results["rows"])
    losses = [row["loss"] for row in sorted(results["rows"], key=lambda row: row["compute"]) if row["d_model"] == widest]
    falls = all(a > b for a, b in zip(losses, losses[1:]))
    return Measured(alpha["value"], alpha["ci95"], "exponent α", REPRODUCED if falls and alpha["ci95"][0] > 0 else NOT)


def _published_exponent(results: dict) -> Measured:
    """Whether our interval of α holds the published one."""
    alpha, published = results["laws"][results["extrapolated"]]["alpha"], results["published"]["alpha"]
    return Measured(alpha["value"], alpha["ci95"], "exponent α", REPRODUCED if alpha["ci95"][0] <= published <= alpha["ci95"][1] else NOT)


STUDIES = ("06_scaling",)  # notebooks that `make studies` runs: their results may be missing
CLASSICAL = ("pca_k64_mixed", "ppca_k64", "gaussian", "sae", "sae_gaussian")

CLAIMS = (
    Claim("article", "diffusion loss decreases by 47 % compared to PCA", "primary: its UNet over PCA-64, ε loss, test documents",
          "loss_comparison", "04_compare_losses", _primary(0)),
    Claim("article", "diffusion loss decreases by 47 % compared to sparse autoencoders",
          "primary: its UNet over the mixed SAE, ε loss, test documents", "loss_comparison", "04_compare_losses", _primary(1)),
    Claim("article", "diffusion loss decreases by 47 % compared to traditional methods",
          "primary: our recipe over the full Gaussian, velocity loss, test documents", "loss_comparison", "04_compare_losses", _primary(2)),
    Claim("article", "47 % better fidelity",
          "reduction of Δ LM loss by our recipe over the mixed SAE, the same noisy activations denoised in one step, all σ together",
          "lm_loss", "08_lm_loss", lambda results: _reduction(_lm_loss_reduction(results))),
    Claim("article", "its diffusion model beats PCA and SAEs",
          "the UNet's least reduction of the ε loss over PCA and SAE, both at their best (mixed, probabilistic, full Gaussian), is above 0",
          "loss_comparison", "04_compare_losses", _beats("unet", "ddpm_epsilon", CLASSICAL)),
    Claim("article", "diffusion beats PCA and SAEs, the method at its best",
          "our recipe's least reduction of the velocity loss over the same, a mixture of Gaussians and an SAE trained to denoise is above "
          "0", "loss_comparison", "04_compare_losses", _beats("gated_mlp", "flow_velocity", (*CLASSICAL, "mixture", "denoising_sae"))),
    Claim("article", "SAE features do not activate independently",
          "pairs of frequent latents whose rate of firing together lies outside the 95 % band of shifted, so independent, ones; by chance "
          "5 %", "baselines", "02_fit_baselines", _dependent("coactivation")),
    Claim("article", "activations do not lie on lines (are not linear-Gaussian)",
          "pairs of PCA-whitened coordinates whose squares correlate outside the 95 % band of shifted ones; of a Gaussian 5 %", "baselines",
          "02_fit_baselines", _dependent("whitened", "squares")),
    Claim("paper", "lower Δ LM loss than SAEs",
          "our recipe against the mixed SAE on the same noisy activations, all σ together: the reduction is above 0", "lm_loss",
          "08_lm_loss", _lower_lm_loss),
    Claim("paper", "Fréchet distance near the floor",
          "distance of our recipe's samples from test activations is within 10 % of that of real training activations", "sample_quality",
          "05_sample_quality", _frechet),
    Claim("paper", "the loss falls smoothly with compute",
          "power law fitted to the best of five widths at five budgets: its exponent is above 0, and the widest network improves with "
          "each budget", "scaling", "06_scaling", _power_law),
    Claim("paper", "with an exponent of 0.169",
          "the 95 % interval of that exponent holds it (another language model, other data, other sizes)", "scaling", "06_scaling",
          _published_exponent),
    Claim("paper", f"one-unit probes on meta-neurons beat those on SAE latents, AUC {PAPER_AUC}", "probing is not built yet"),
    Claim("article", "better behaviour editing, safety interventions, model editing, feature visualisation, circuit analysis",
          "applications are not built yet; a loss says nothing about them"),
)
