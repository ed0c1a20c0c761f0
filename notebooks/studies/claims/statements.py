"""The statements of the article and of the paper, as data: what each is measured by, and where."""

from collections.abc import Callable
from dataclasses import dataclass

from mmlib_studies.claims import applications, losses, scaling
from mmlib_studies.claims.rules import Measured

PAPER_AUC = "0.84 against 0.70"


@dataclass(frozen=True)
class Claim:
    """One statement and how it is measured.

    Args:
        results: name of the file in results/ that `measure` reads; "" for a claim that is not tested.
        beside: name of a second one, which it also needs.
        definition: what is measured for it; of a claim that is not tested, why not.
    """

    name: str  # for good: its key in results
    source: str  # "article" or "paper"
    statement: str
    definition: str
    results: str = ""
    notebook: str = ""
    measure: Callable[..., Measured] | None = None
    beside: str = ""


OPTIONAL = (
    "06_scaling",
    "11_steer",
    "12_meta_neurons",
    "13_off_manifold",
    "23_robustness",
    "24_replication",
    "25_steering_study",
)  # notebooks that `make reproduce` does not run: their results may be missing


CLASSICAL = ("pca_k64_mixed", "ppca_k64", "gaussian", "sae", "sae_gaussian")


CLAIMS = (
    Claim(
        "less_loss_than_pca",
        "article",
        "diffusion loss decreases by 47 % compared to PCA",
        "primary: its UNet, repaired and narrowed to 2.6 M parameters, over unmixed PCA-64, ε loss of test documents",
        "loss_comparison",
        "04_compare_losses",
        losses.primary("unet_over_pca_k64"),
    ),
    Claim(
        "less_loss_than_saes",
        "article",
        "diffusion loss decreases by 47 % compared to sparse autoencoders",
        "primary: the same UNet over the mixed SAE, ε loss of test documents",
        "loss_comparison",
        "04_compare_losses",
        losses.primary("unet_over_sae"),
    ),
    Claim(
        "less_loss_than_linear",
        "article",
        "diffusion loss decreases by 47 % compared to traditional methods",
        "added to the primary definitions: the paper's MLP over the full Gaussian, velocity loss of test documents",
        "loss_comparison",
        "04_compare_losses",
        losses.primary("mlp_over_gaussian"),
    ),
    Claim(
        "less_loss_at_its_best",
        "article",
        "the same, the method at its best",
        "primary: our recipe over the full Gaussian, velocity loss; the definition was fixed in advance, the recipe made after these test documents had been looked at",
        "loss_comparison",
        "04_compare_losses",
        losses.primary("gated_mlp_over_gaussian"),
    ),
    Claim(
        "less_loss_on_fresh_documents",
        "article",
        "the same, on fresh documents",
        "that definition, trained anew, on test documents that were training documents when the recipe was made",
        "replication",
        "24_replication",
        losses.fresh,
    ),
    Claim(
        "less_loss_elsewhere",
        "article",
        "the same, at other layers and on other texts",
        "the highest reduction of the velocity loss over the full Gaussian by any diffusion MLP of notebook 23, each text as a whole",
        "robustness",
        "23_robustness",
        losses.elsewhere,
    ),
    Claim(
        "less_reducible_loss",
        "article",
        "47 % of the reducible loss",
        "the paper's MLP over the full Gaussian, of the velocity loss above the E of the scaling law; the interval is that of E, cut at the lowest loss measured",
        "scaling",
        "06_scaling",
        losses.reducible,
        beside="loss_comparison",
    ),
    Claim(
        "better_fidelity",
        "article",
        "47 % better fidelity",
        "reduction of Δ LM loss by our recipe over the mixed SAE, the same noisy activations denoised in one step, Δ summed over all σ; controls: one Gaussian and a mixture",
        "lm_loss",
        "08_lm_loss",
        losses.better_fidelity,
    ),
    Claim(
        "unet_beats_classical",
        "article",
        "its diffusion model beats PCA and SAEs",
        "the UNet's least reduction of the ε loss over mixed PCA-64, probabilistic PCA-64, the full Gaussian and the SAE of notebook 02 (mixed, also with the Gaussian) is above 0",
        "loss_comparison",
        "04_compare_losses",
        losses.beats("unet", "ddpm_epsilon", CLASSICAL),
    ),
    Claim(
        "ours_beats_classical",
        "article",
        "diffusion beats PCA and SAEs, the method at its best",
        "our recipe's least reduction of the velocity loss over the same and over an SAE trained to denoise is above 0; control: a mixture of Gaussians",
        "loss_comparison",
        "04_compare_losses",
        losses.beats("gated_mlp", "flow_velocity", (*CLASSICAL, "denoising_sae")),
    ),
    Claim(
        "features_depend",
        "article",
        "SAE features do not activate independently",
        "pairs of frequent latents whose rate of firing together lies outside the 95 % band of shifted, so independent, ones; by chance "
        "5 %, but a TopK dictionary larger than the space gives dependence for any input",
        "baselines",
        "02_fit_baselines",
        applications.dependent(
            "coactivation", control="an SAE on draws from a Gaussian", budget="real_same_budget"
        ),
    ),
    Claim(
        "not_on_lines",
        "article",
        "activations do not lie on lines",
        "read as: independent features on lines would look otherwise; pairs of PCA-whitened coordinates whose squares correlate outside the 95 % band of "
        "shifted ones; of a Gaussian 5 %; control: the SAE's latents, made independent and decoded, which do lie on lines",
        "baselines",
        "02_fit_baselines",
        applications.dependent("whitened", "squares", control="independent latents on lines"),
    ),
    Claim(
        "lower_lm_loss",
        "paper",
        "lower Δ LM loss than SAEs",
        "our analogue: that reduction is above 0 over the SAE mixed with its input, mixed with the Gaussian too, and trained to denoise, by the sum and by the mean over σ",
        "lm_loss",
        "08_lm_loss",
        losses.lower_lm_loss,
    ),
    Claim(
        "models_the_distribution",
        "paper",
        "it models the distribution of activations",
        "log-likelihood of test activations (smoothed at σ = 0.02) under our recipe less that under the full Gaussian is above 0; control: a mixture of Gaussians",
        "density",
        "07_density",
        losses.density,
    ),
    Claim(
        "frechet_near_floor",
        "paper",
        "Fréchet distance near the floor",
        "distance of our recipe's samples from test activations is within 10 % of that of real training activations",
        "sample_quality",
        "05_sample_quality",
        losses.frechet,
    ),
    Claim(
        "loss_falls_with_compute",
        "paper",
        "the loss falls smoothly with compute",
        "every width and the lower envelope improve with each budget, and a power law is within 5 % of the best cells, off the bounds of its fit, both through "
        "the cells below the mean's loss (chosen after they had been seen) and through all",
        "scaling",
        "06_scaling",
        scaling.power_law,
    ),
    Claim(
        "exponent",
        "paper",
        "with an exponent of 0.169",
        "the exponent of the same fit: another language model, other data, a thousandth of the compute",
        "scaling",
        "06_scaling",
        scaling.published_exponent,
    ),
    Claim(
        "meta_neurons_beat_saes",
        "paper",
        f"one-unit probes on meta-neurons beat those on SAE latents, AUC {PAPER_AUC}",
        "mean AUC of the best hidden unit of the paper's MLP less that of the best SAE latent, paired over tasks; another language model, other tasks; control: units that no diffusion model made",
        "probing",
        "12_meta_neurons",
        applications.probing,
    ),
    Claim(
        "better_steering",
        "article",
        "better behaviour editing",
        "sentiment steered by adding a direction: what SDEdit by our recipe saves in log-likelihood over plain addition at equal sentiment (VADER), up to what both reach",
        "steering",
        "11_steer",
        applications.steering,
    ),
    Claim(
        "better_steering_elsewhere",
        "article",
        "the same, along other directions, towards other concepts, at other σ",
        "the share of them at which SDEdit by our recipe is cheaper than plain addition at equal concept (area between fronts); control: SDEdit by a mixture of Gaussians",
        "steering_study",
        "25_steering_study",
        applications.steering_elsewhere,
    ),
    Claim(
        "safety_interventions",
        "article",
        "better safety interventions",
        "no intervention for safety was built, and no safety behaviour is steered here",
    ),
    Claim(
        "unusual_noticed",
        "article",
        "what such interventions would need: unusual activations are noticed",
        "the share of sets of shifted activations that our recipe's denoising loss tells from test activations better than a mixture's likelihood does, "
        "corrected for their number",
        "typicality",
        "13_off_manifold",
        applications.detection,
    ),
    Claim(
        "model_editing",
        "article",
        "better model editing",
        "no edit of weights or facts was built; a loss says nothing about it",
    ),
    Claim(
        "feature_visualisation",
        "article",
        "better feature visualisation",
        "notebook 12 shows what hidden units respond to, beside other units; whether it is easier to read, nobody was asked",
        notebook="12_meta_neurons",
    ),
    Claim(
        "circuit_analysis",
        "article",
        "better circuit analysis",
        "no circuit was traced; a loss says nothing about it",
    ),
)
