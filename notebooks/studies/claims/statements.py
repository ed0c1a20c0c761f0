"""The statements of the article and of the paper, as data: what each is measured by, and where."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from mmlib_studies.claims import applications, losses, scaling
from mmlib_studies.claims.rules import Measured
from mmlib_studies.notebooks import NOTEBOOKS


@dataclass(frozen=True)
class Claim:
    """One statement and how it is measured.

    Args:
        results: name of the file in results/ that `measure` reads; "" for a claim that is not
            tested.
        beside: name of a second one, which it also needs.
        definition: what is measured for it; of a claim that is not tested, why not.
        seen_in: the notebook that shows something of it, though it is not tested.
    """

    source: str  # "article" or "paper"
    name: str  # for good: its key in results
    statement: str
    definition: str
    results: str = ""
    measure: Callable[..., Measured] | None = None
    beside: str = ""
    seen_in: str = ""

    @property
    def notebook(self) -> str:
        """The notebook that writes its results, or shows something of it."""
        return NOTEBOOKS.get(self.results, self.seen_in)


article, paper = (partial(Claim, source) for source in ("article", "paper"))

CLASSICAL = ("pca_k64_mixed", "ppca_k64", "gaussian", "sae", "sae_gaussian")


CLAIMS = (
    article(
        "less_loss_than_pca",
        "diffusion loss decreases by 47 % compared to PCA",
        "primary: its UNet, repaired and narrowed to 2.6 M parameters, over unmixed PCA-64, ε loss "
        "of test documents",
        "loss_comparison",
        losses.primary("unet_over_pca_k64"),
    ),
    article(
        "less_loss_than_saes",
        "diffusion loss decreases by 47 % compared to sparse autoencoders",
        "primary: the same UNet over the mixed SAE, ε loss of test documents",
        "loss_comparison",
        losses.primary("unet_over_sae"),
    ),
    article(
        "less_loss_than_linear",
        "diffusion loss decreases by 47 % compared to traditional methods",
        "added to the primary definitions: the paper's MLP over the full Gaussian, velocity loss "
        "of test documents",
        "loss_comparison",
        losses.primary("mlp_over_gaussian"),
    ),
    article(
        "less_loss_at_its_best",
        "the same, the method at its best",
        "primary: our recipe over the full Gaussian, velocity loss; the definition was fixed in "
        "advance, the recipe made after these test documents had been looked at",
        "loss_comparison",
        losses.primary("gated_mlp_over_gaussian"),
    ),
    article(
        "less_loss_on_fresh_documents",
        "the same, on fresh documents",
        "that definition, trained anew, on test documents that were training documents when the "
        "recipe was made",
        "replication",
        losses.fresh,
    ),
    article(
        "less_loss_elsewhere",
        "the same, at other layers and on other texts",
        "the highest reduction of the velocity loss over the full Gaussian by any diffusion MLP of "
        "notebook 23, each text as a whole",
        "robustness",
        losses.elsewhere,
    ),
    article(
        "less_reducible_loss",
        "47 % of the reducible loss",
        "the paper's MLP over the full Gaussian, of the velocity loss above the E of the scaling "
        "law; the interval is that of E, cut at the lowest loss measured",
        "scaling",
        losses.reducible,
        beside="loss_comparison",
    ),
    article(
        "better_fidelity",
        "47 % better fidelity",
        "reduction of Δ LM loss by our recipe over the mixed SAE, the same noisy activations "
        "denoised in one step, Δ summed over all σ; controls: one Gaussian and a mixture",
        "lm_loss",
        losses.better_fidelity,
    ),
    article(
        "unet_beats_classical",
        "its diffusion model beats PCA and SAEs",
        "the UNet's least reduction of the ε loss over mixed PCA-64, probabilistic PCA-64, the "
        "full Gaussian and the SAE of notebook 02 (mixed, also with the Gaussian) is above 0",
        "loss_comparison",
        losses.beats("unet", "ddpm_epsilon", CLASSICAL),
    ),
    article(
        "ours_beats_classical",
        "diffusion beats PCA and SAEs, the method at its best",
        "our recipe's least reduction of the velocity loss over the same and over an SAE trained "
        "to denoise is above 0; control: a mixture of Gaussians",
        "loss_comparison",
        losses.beats("gated_mlp", "flow_velocity", (*CLASSICAL, "denoising_sae")),
    ),
    article(
        "features_depend",
        "SAE features do not activate independently",
        "pairs of frequent latents whose rate of firing together lies outside the 95 % band of "
        "shifted, so independent, ones; by chance 5 %, but a TopK dictionary larger than the space "
        "gives dependence for any input",
        "baselines",
        applications.dependent(
            "coactivation", control="an SAE on draws from a Gaussian", budget="real_same_budget"
        ),
    ),
    article(
        "not_on_lines",
        "activations do not lie on lines",
        "read as: independent features on lines would look otherwise; pairs of PCA-whitened "
        "coordinates whose squares correlate outside the 95 % band of shifted ones; of a Gaussian "
        "5 %; control: the SAE's latents, made independent and decoded, which do lie on lines",
        "baselines",
        applications.dependent("whitened", "squares", control="independent latents on lines"),
    ),
    paper(
        "lower_lm_loss",
        "lower Δ LM loss than SAEs",
        "our analogue: that reduction is above 0 over the SAE mixed with its input, mixed with the "
        "Gaussian too, and trained to denoise, by the sum and by the mean over σ",
        "lm_loss",
        losses.lower_lm_loss,
    ),
    paper(
        "models_the_distribution",
        "it models the distribution of activations",
        "log-likelihood of test activations (smoothed at σ = 0.02) under our recipe less that "
        "under the full Gaussian is above 0; control: a mixture of Gaussians",
        "density",
        losses.density,
    ),
    paper(
        "frechet_near_floor",
        "Fréchet distance near the floor",
        "distance of our recipe's samples from test activations is within 10 % of that of real "
        "training activations",
        "sample_quality",
        losses.frechet,
    ),
    paper(
        "loss_falls_with_compute",
        "the loss falls smoothly with compute",
        "every width and the lower envelope improve with each budget, and a power law is within 5 "
        "% of the best cells, off the bounds of its fit, both through the cells below the mean's "
        "loss (chosen after they had been seen) and through all",
        "scaling",
        scaling.power_law,
    ),
    paper(
        "exponent",
        "with an exponent of 0.169",
        "the exponent of the same fit: another language model, other data, a thousandth of the "
        "compute",
        "scaling",
        scaling.published_exponent,
    ),
    paper(
        "meta_neurons_beat_saes",
        "one-unit probes on meta-neurons beat those on SAE latents, AUC 0.84 against 0.70",
        "mean AUC of the best hidden unit of the paper's MLP less that of the best SAE latent, "
        "paired over tasks; another language model, other tasks; control: units that no diffusion "
        "model made",
        "probing",
        applications.probing,
    ),
    article(
        "better_steering",
        "better behaviour editing",
        "sentiment steered by adding a direction: what SDEdit by our recipe saves in "
        "log-likelihood over plain addition at equal sentiment (VADER), up to what both reach",
        "steering",
        applications.steering,
    ),
    article(
        "better_steering_elsewhere",
        "the same, along other directions, towards other concepts, at other σ",
        "the share of them at which SDEdit by our recipe is cheaper than plain addition at equal "
        "concept (area between fronts); control: SDEdit by a mixture of Gaussians",
        "steering_study",
        applications.steering_elsewhere,
    ),
    article(
        "safety_interventions",
        "better safety interventions",
        "no intervention for safety was built, and no safety behaviour is steered here",
    ),
    article(
        "unusual_noticed",
        "what such interventions would need: unusual activations are noticed",
        "the share of sets of shifted activations that our recipe's denoising loss tells from test "
        "activations better than a mixture's likelihood does, corrected for their number",
        "typicality",
        applications.detection,
    ),
    article(
        "model_editing",
        "better model editing",
        "no edit of weights or facts was built; a loss says nothing about it",
    ),
    article(
        "feature_visualisation",
        "better feature visualisation",
        "notebook 12 shows what hidden units respond to, beside other units; whether it is easier "
        "to read, nobody was asked",
        seen_in="12_meta_neurons",
    ),
    article(
        "circuit_analysis",
        "better circuit analysis",
        "no circuit was traced; a loss says nothing about it",
    ),
)
