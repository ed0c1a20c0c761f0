"""The ledger: what the article and the paper say, what was measured for it here, and the verdict that follows.

Every verdict is computed from results/, by the rules below, of which each claim's definition names the measure.

- *Reproduced*: a claimed number lies in an interval at most ten points wide; or the whole interval is on the side of a claimed bound.
- *Exceeded*: the whole interval is above a claimed number. *Artefact*: what is claimed is found, and so it is of a control
  that needs no network: the mean alone, or one Gaussian.
- *Not reproduced*: the interval contradicts the statement. *Undecided*: it leaves both open, or is too wide to tell, or what it is
  depends on a noise level of which the statement names none.
- *Not comparable*: measured, but in other units or at another scale than the statement's. *Not tested here*: with the reason.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

REPRODUCED, EXCEEDED, ARTEFACT, NOT = "reproduced", "exceeded", "artefact", "not reproduced"
UNDECIDED, INCOMPARABLE, UNTESTED = "undecided", "not comparable", "not tested here"
WIDEST = 0.10  # interval in which a claimed number counts as found
BY_CHANCE = 0.05  # share of pairs outside a 95 % band if nothing depends on anything
NEAR = 1.1  # times the floor
PAPER_AUC = "0.84 against 0.70"


@dataclass(frozen=True)
class Measured:
    """What one claim comes to."""

    value: float | None
    ci95: tuple[float, float] | None
    unit: str
    verdict: str
    note: str = ""  # what to know of the value


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
                     "value": measured.value, "ci95": measured.ci95 and list(measured.ci95), "unit": measured.unit, "verdict": measured.verdict, "note": measured.note,
                     "preset": preset, "notebook": claim.notebook, "results": claim.results})
    return rows


def as_markdown(rows: list[dict], short: bool = False) -> str:
    """The ledger as a table; the short one names the notebook in place of the definition."""
    heads = ("said by", "statement", *(() if short else ("measured as",)), "found", "verdict", "shown in")
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row in rows:
        definition = () if short else (row["definition"],)
        lines.append(f"| {' | '.join((row['source'], row['statement'], *definition, in_words(row), row['verdict'], row['notebook'] or '—'))} |")
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


def better_than(bound: float, interval: tuple[float, float]) -> str:
    """The verdict on "the value is above the bound"."""
    return REPRODUCED if interval[0] > bound else NOT if interval[1] < bound else UNDECIDED


def _reduction(row: dict, note: str = "") -> Measured:
    """A claimed reduction, from a row of reductions with its verdict on the claim."""
    if row["reduction"] is None:
        return Measured(None, None, "", UNDECIDED)
    narrow = row["ci95"][1] - row["ci95"][0] <= WIDEST
    verdicts = {"consistent with": REPRODUCED if narrow else UNDECIDED, "above": EXCEEDED, "below": NOT}
    return Measured(row["reduction"], row["ci95"], "%", verdicts[row["verdict"]], note)


def _primary(index: int) -> Callable[[dict], Measured]:
    def measure(results: dict) -> Measured:
        row = results["primary"][index]
        same = {r["method"]: r["loss"] for r in results["rows_common_subset"] if r["objective"] == row["objective"]}
        mean = 1 - same["mean"] / same[row["baseline"]]
        measured = _reduction(row, f"the mean alone: {100 * mean:.1f} %".replace("-", "−"))
        return replace(measured, verdict=ARTEFACT) if measured.verdict == EXCEEDED and mean > row["claim"] else measured
    return measure


def _beats(method: str, objective: str, baselines: tuple[str, ...]) -> Callable[[dict], Measured]:
    """The reductions over all of several baselines are above nothing; the smallest is quoted."""
    def measure(results: dict) -> Measured:
        by_baseline = {row["baseline"]: row for row in results["reductions"] if (row["method"], row["objective"]) == (method, objective)}
        rows = [by_baseline[baseline] for baseline in baselines]
        worst = min(rows, key=lambda row: row["reduction"])
        verdicts = {better_than(0, row["ci95"]) for row in rows}
        verdict = NOT if NOT in verdicts else UNDECIDED if UNDECIDED in verdicts else REPRODUCED
        return Measured(worst["reduction"], worst["ci95"], "%", verdict, f"over {worst['baseline']}")
    return measure


def _lm_loss_rows(results: dict) -> list[dict]:
    """Reductions of Δ LM loss by our recipe over the mixed SAE: at each σ, and over all together."""
    return sorted((row for row in results["reductions"] if (row["method"], row["baseline"]) == ("gated_mlp", "sae")), key=lambda row: len(row["sigmas"]))


def _at_each_sigma(results: dict) -> str:
    rows = [row for row in _lm_loss_rows(results) if len(row["sigmas"]) == 1 and row["reduction"] is not None]
    return ", ".join(f"{100 * row['reduction']:.0f} % at σ = {row['sigmas'][0]}" for row in rows).replace("-", "−")


def _better_fidelity(results: dict) -> Measured:
    """Of all levels together; undecided where single levels, of which the statement names none, have unlike verdicts."""
    measured = _reduction(_lm_loss_rows(results)[-1], _at_each_sigma(results))
    each = {row["verdict"] for row in _lm_loss_rows(results) if len(row["sigmas"]) == 1 and row["reduction"] is not None}
    return replace(measured, verdict=UNDECIDED) if len(each) > 1 else measured


def _lower_lm_loss(results: dict) -> Measured:
    row = _lm_loss_rows(results)[-1]
    verdict = UNDECIDED if row["reduction"] is None else better_than(0, row["ci95"])
    return Measured(row["reduction"], row["ci95"], "%", verdict, _at_each_sigma(results))


def _frechet(results: dict) -> Measured:
    """Distance of the samples over the floor, real training activations against test."""
    rows = {name: row["distance"] for name, row in results["frechet"]["all_dimensions"].items()}
    ours, gaussian = rows["gated_mlp"] / rows["floor"], rows["gaussian"] / rows["floor"]
    verdict = NOT if ours >= NEAR else ARTEFACT if gaussian < NEAR else REPRODUCED
    return Measured(ours, None, "times the floor", verdict, f"a fitted Gaussian's: {gaussian:.3f}")


def _dependent(*place: str) -> Callable[[dict], Measured]:
    """More than twice as many pairs as by chance lie outside the band of independence."""
    def measure(results: dict) -> Measured:
        found = results["independence"]
        for key in place:
            found = found[key]
        return Measured(found["outside"], None, "%", REPRODUCED if found["outside"] > 2 * BY_CHANCE else NOT)
    return measure


def _power_law(results: dict) -> Measured:
    """A power law with an exponent above 0 describes the envelope to 5 %, and the widest network improves with each budget."""
    law = results["laws"][results["extrapolated"]]
    widest = max(row["d_model"] for row in results["rows"])
    losses = [row["loss"] for row in sorted(results["rows"], key=lambda row: row["compute"]) if row["d_model"] == widest]
    falls = len(losses) > 2 and all(a > b for a, b in zip(losses, losses[1:]))
    holds = falls and not law["at_the_edge"] and law["worst_residual"] < 0.05
    alpha = law["alpha"]
    return Measured(alpha["value"], alpha["ci95"], "exponent α", REPRODUCED if holds else NOT, f"off by at most {100 * law['worst_residual']:.1f} %")


def _published_exponent(results: dict) -> Measured:
    """Ours beside theirs, of another language model, other data and another scale: neither confirms nor contradicts."""
    alpha = results["laws"][results["extrapolated"]]["alpha"]
    return Measured(alpha["value"], alpha["ci95"], "exponent α", INCOMPARABLE)


def _probing(results: dict) -> Measured:
    """Paired difference of the mean AUC, hidden units of the paper's MLP less SAE latents, each the best of its own units."""
    row, = (row for row in results["differences"] if (row["name"], row["other"]) == ("mlp", "sae"))
    means = {row["name"]: row["all"]["mean"] for row in results["rows"]}
    note = ", ".join(f"{label} {means[name]:.2f}" for name, label in (("mlp", "meta-neurons"), ("gated_mlp", "those of our recipe"), ("sae", "SAE"),
                                                                    ("sae_dense", "SAE before TopK"), ("random", "random directions")))
    return Measured(row["all"]["mean"], tuple(row["all"]["ci95"]), "AUC", better_than(0, row["all"]["ci95"]), note)


def _steering(results: dict) -> Measured:
    """The area between the fronts of plain addition and of SDEdit, concept against fluency, up to the level that both reach."""
    rows = {row["against"]: row for row in results["areas"] if row["intervention"] == "sdedit"}
    row = rows["additive"]
    if row["area"] is None:
        return Measured(None, None, "", UNDECIDED)
    low, high = (-end for end in reversed(row["ci95"]))
    return Measured(-row["area"], (low, high), "nats per token × VADER", better_than(0, (low, high)), "area between fronts")


OPTIONAL = ("06_scaling", "11_steer", "12_meta_neurons", "24_replication")  # notebooks that `make reproduce` does not run: their results may be missing
CLASSICAL = ("pca_k64_mixed", "ppca_k64", "gaussian", "sae", "sae_gaussian")

CLAIMS = (
    Claim("article", "diffusion loss decreases by 47 % compared to PCA", "primary: its UNet, repaired and narrowed to 2.6 M parameters, over unmixed PCA-64, ε loss of test documents",
          "loss_comparison", "04_compare_losses", _primary(0)),
    Claim("article", "diffusion loss decreases by 47 % compared to sparse autoencoders",
          "primary: the same UNet over the mixed SAE, ε loss of test documents", "loss_comparison", "04_compare_losses", _primary(1)),
    Claim("article", "diffusion loss decreases by 47 % compared to traditional methods",
          "primary: the paper's MLP over the full Gaussian, velocity loss of test documents", "loss_comparison", "04_compare_losses", _primary(2)),
    Claim("article", "the same, the method at its best",
          "our recipe over the full Gaussian, velocity loss; made after these test documents had been looked at", "loss_comparison",
          "04_compare_losses", _primary(3)),
    Claim("article", "the same, on fresh documents",
          "that definition, trained anew, on test documents that were training documents when the recipe was made", "replication",
          "24_replication", lambda results: _reduction(results["fresh"]["primary"])),
    Claim("article", "47 % better fidelity",
          "reduction of Δ LM loss by our recipe over the mixed SAE, the same noisy activations denoised in one step, all σ together",
          "lm_loss", "08_lm_loss", _better_fidelity),
    Claim("article", "its diffusion model beats PCA and SAEs",
          "the UNet's least reduction of the ε loss over mixed PCA-64, probabilistic PCA-64, the full Gaussian and the SAE of notebook 02 (mixed, also with the Gaussian) is above 0",
          "loss_comparison", "04_compare_losses", _beats("unet", "ddpm_epsilon", CLASSICAL)),
    Claim("article", "diffusion beats PCA and SAEs, the method at its best",
          "our recipe's least reduction of the velocity loss over the same, a mixture of Gaussians and an SAE trained to denoise is above "
          "0", "loss_comparison", "04_compare_losses", _beats("gated_mlp", "flow_velocity", (*CLASSICAL, "mixture", "denoising_sae"))),
    Claim("article", "SAE features do not activate independently",
          "pairs of frequent latents whose rate of firing together lies outside the 95 % band of shifted, so independent, ones; by chance "
          "5 %, but a TopK dictionary larger than the space gives dependence for any input", "baselines", "02_fit_baselines", _dependent("coactivation")),
    Claim("article", "activations do not lie on lines",
          "read as: are not Gaussian; pairs of PCA-whitened coordinates whose squares correlate outside the 95 % band of shifted ones; of a Gaussian 5 %", "baselines",
          "02_fit_baselines", _dependent("whitened", "squares")),
    Claim("paper", "lower Δ LM loss than SAEs",
          "our analogue: the same reduction is above 0", "lm_loss",
          "08_lm_loss", _lower_lm_loss),
    Claim("paper", "Fréchet distance near the floor",
          "distance of our recipe's samples from test activations is within 10 % of that of real training activations", "sample_quality",
          "05_sample_quality", _frechet),
    Claim("paper", "the loss falls smoothly with compute",
          "power law fitted to the best of five widths at five budgets: its exponent is above 0, and the widest network improves with "
          "each budget", "scaling", "06_scaling", _power_law),
    Claim("paper", "with an exponent of 0.169",
          "the exponent of the same fit: another language model, other data, a thousandth of the compute", "scaling", "06_scaling",
          _published_exponent),
    Claim("paper", f"one-unit probes on meta-neurons beat those on SAE latents, AUC {PAPER_AUC}",
          "mean AUC of the best hidden unit of the paper's MLP less that of the best SAE latent, paired over tasks; another language model, other tasks",
          "probing", "12_meta_neurons", _probing),
    Claim("article", "better behaviour editing",
          "sentiment steered by adding a direction: what SDEdit by our recipe saves in log-likelihood over plain addition at equal sentiment (VADER), up to what both reach",
          "steering", "11_steer", _steering),
    Claim("article", "better safety interventions, model editing, feature visualisation, circuit analysis", "not built; a loss says nothing about them"),
)
