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
        protocol: what was done to measure it.
        seen_in: the notebook that shows something of it, though it is not tested.
    """

    source: str  # "article" or "paper", or "here": this repository's own
    name: str  # for good: its key in results
    statement: str
    definition: str
    results: str = ""
    measure: Callable[..., Measured] | None = None
    protocol: str = ""
    beside: str = ""
    seen_in: str = ""

    @property
    def notebook(self) -> str:
        """The notebook that writes its results, or shows something of it."""
        return NOTEBOOKS.get(self.results, self.seen_in)


article, paper, here = (partial(Claim, source) for source in ("article", "paper", "here"))

CLASSICAL = ("pca_k64_mixed", "ppca_k64", "gaussian", "sae", "sae_gaussian", "sae_best")

# protocols
DENOISED = "one estimate of each noisy activation of test documents, all noise levels alike"
SPLICED = (
    "the same noisy activations of test documents denoised in one step and put into the language "
    "model; the paper's is SDEdit from σ = 0.5 against an SAE that reads clean activations"
)
SAMPLED = "samples by Euler steps against activations of test documents"
SCALED = "networks of the paper's kind, five widths and five budgets, one training each"
STEERED = "20 tokens continued while a direction is added to each; SDEdit from σ = 0.5 in 20 steps"


CLAIMS = (
    article(
        "less_loss_than_pca",
        "diffusion loss decreases by 47 % compared to PCA",
        "primary: its UNet, repaired, over unmixed PCA-64, ε loss",
        "loss_comparison",
        losses.primary("unet", "pca_k64"),
        DENOISED,
    ),
    article(
        "less_loss_than_saes",
        "diffusion loss decreases by 47 % compared to sparse autoencoders",
        "primary: the same UNet over the mixed SAE, ε loss",
        "loss_comparison",
        losses.primary("unet", "sae"),
        DENOISED,
    ),
    article(
        "less_loss_than_linear",
        "diffusion loss decreases by 47 % compared to traditional methods",
        "added to the primary definitions: the paper's MLP over the full Gaussian, velocity loss",
        "loss_comparison",
        losses.primary("mlp", "gaussian"),
        DENOISED,
    ),
    article(
        "less_loss_at_its_best",
        "the same, the method at its best",
        "primary: our network over the full Gaussian, velocity loss; the definition was fixed in "
        "advance, the network chosen after these test documents had been looked at",
        "loss_comparison",
        losses.primary("ours", "gaussian"),
        DENOISED,
    ),
    article(
        "less_loss_on_fresh_documents",
        "the same, on fresh documents",
        "our network over the full Gaussian, velocity loss, on articles that a commit froze before "
        "any loss on them was known",
        "best_model",
        losses.fresh,
        "one estimate of each noisy activation, all noise levels alike; training seeds together",
    ),
    article(
        "less_loss_elsewhere",
        "the same, at other layers and on other texts",
        "the highest reduction of the velocity loss over the full Gaussian by any diffusion MLP of "
        "notebook 23, each text as a whole",
        "robustness",
        losses.elsewhere,
        DENOISED,
    ),
    article(
        "less_reducible_loss",
        "47 % of the reducible loss",
        "the paper's MLP over the full Gaussian, of the velocity loss above the E of the scaling "
        "law; the interval is that of E, cut at the lowest loss measured",
        "scaling",
        losses.reducible,
        SCALED,
        beside="loss_comparison",
    ),
    article(
        "better_fidelity",
        "47 % better fidelity",
        "reduction of Δ LM loss by the paper's MLP over the mixed SAE, Δ summed over all σ; "
        "controls: one Gaussian and mixtures",
        "lm_loss",
        losses.better_fidelity,
        SPLICED,
    ),
    article(
        "unet_beats_classical",
        "its diffusion model beats PCA and SAEs",
        "the UNet's least reduction of the ε loss over mixed PCA-64, probabilistic PCA-64, the "
        "full Gaussian and mixed SAEs is above 0",
        "loss_comparison",
        losses.beats("unet", "ddpm_epsilon", CLASSICAL),
        DENOISED,
    ),
    article(
        "ours_beats_classical",
        "diffusion beats PCA and SAEs, the method at its best",
        "our network's least reduction of the velocity loss over the same and over an SAE trained "
        "to denoise is above 0; control: the better of mixture and average",
        "loss_comparison",
        losses.beats("ours", "flow_velocity", (*CLASSICAL, "denoising_sae")),
        DENOISED,
    ),
    article(
        "features_depend",
        "SAE features do not activate independently",
        "mutual information of two frequent latents beyond that of shifted, so independent, ones, "
        "over a latent's entropy; control: an SAE on draws from a Gaussian",
        "baselines",
        applications.latents_depend,
        "which of the 500 most frequent latents fire at each validation token",
    ),
    article(
        "not_on_lines",
        "activations do not lie on lines",
        "read as: independent features on lines would look otherwise; mean correlation of the "
        "squares of two PCA-whitened coordinates; control: the SAE's latents, made independent and "
        "decoded, which do lie on lines",
        "baselines",
        applications.not_on_lines,
        "validation tokens, whitened by the principal components of training tokens",
    ),
    paper(
        "lower_lm_loss",
        "lower Δ LM loss than SAEs",
        "our analogue: that reduction of Δ LM loss by the paper's MLP over the mixed SAE",
        "lm_loss",
        losses.lower_lm_loss,
        SPLICED,
    ),
    paper(
        "models_the_distribution",
        "it models the distribution of activations",
        "log-likelihood of test activations under the paper's MLP less that under the full "
        "Gaussian is above 0; control: mixtures of Gaussians",
        "density",
        losses.density,
        "activations smoothed at σ = 0.02; the network's by its ODE with estimated traces",
    ),
    paper(
        "frechet_near_floor",
        "Fréchet distance near the floor",
        "distance of the samples of the paper's MLP from test activations is within 10 % of that "
        "of real training activations",
        "sample_quality",
        losses.frechet,
        SAMPLED,
    ),
    paper(
        "loss_falls_with_compute",
        "the loss falls smoothly with compute",
        "every width and the lower envelope improve with each budget, and a power law is within 5 "
        "% of the best cells, off the bounds of its fit, both through the cells below the mean's "
        "loss (chosen after they had been seen) and through all",
        "scaling",
        scaling.power_law,
        SCALED,
    ),
    paper(
        "exponent",
        "with an exponent of 0.169",
        "the exponent of the same fit; comparable from a tenth of the paper's compute on",
        "scaling",
        scaling.published_exponent,
        f"{SCALED}; the paper's are of another language model and other data",
    ),
    paper(
        "loss_predicts_use",
        "a lower diffusion loss means a more useful model",
        "to be measured: losses and uses of networks between bad and good are not yet paired here",
    ),
    paper(
        "meta_neurons_beat_saes",
        "one-unit probes on meta-neurons beat those on SAE latents, AUC 0.84 against 0.70",
        "mean AUC of the best hidden unit of the paper's MLP less that of the best SAE latent, "
        "paired over tasks; control: units that no diffusion model made",
        "probing",
        applications.probing,
        "one unit for each task, chosen on other examples; another language model and other tasks "
        "than the paper's",
    ),
    article(
        "better_steering",
        "better behaviour editing",
        "sentiment steered by adding a direction: what SDEdit saves in log-likelihood over plain "
        "addition at equal sentiment (VADER), up to what both reach",
        "steering",
        applications.steering,
        STEERED,
    ),
    article(
        "better_steering_elsewhere",
        "the same, along other directions, towards other concepts, at other σ",
        "the share of them at which SDEdit is cheaper than plain addition at equal concept (area "
        "between fronts); control: SDEdit by a mixture of Gaussians",
        "steering_study",
        applications.steering_elsewhere,
        "as before, from three σ, along several directions, for several concepts",
    ),
    article(
        "safety_interventions",
        "better safety interventions",
        "no intervention for safety was built, and no safety behaviour is steered here",
    ),
    article(
        "unusual_noticed",
        "what such interventions would need: unusual activations are noticed",
        "the share of sets of shifted activations that our network's denoising loss tells from "
        "test activations better than a mixture's likelihood does, by at least "
        f"{applications.LEAST} of AUROC and corrected for their number",
        "typicality",
        applications.detection,
        "tokens scored one by one, documents resampled; samples of a score's own model left out",
    ),
    here(
        "off_the_distribution",
        "off the training distribution the network beats the mixture",
        "our network's reduction of the velocity loss over the better of mixture and average, on "
        "newsgroups, after training on Wikipedia, is above 0",
        "robustness",
        losses.off_the_distribution,
        "one estimate of each noisy activation of the posts, all noise levels alike",
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
