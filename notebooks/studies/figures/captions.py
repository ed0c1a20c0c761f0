"""Captions of the committed figures: what each draws, and what a reader sees in it, without numbers."""

CAPTIONS = {
    "activations": "Norms of stored activations by position, spread and tails of their dimensions, "
    "and the spectrum of their covariance. A handful of dimensions lie far beyond the rest in both "
    "spread and tails.",
    "baselines": "Variance of clean validation activations that PCA and SAEs leave unexplained, and "
    "how often the latents of the main SAE fire. With as many active units, an SAE leaves less than "
    "PCA does.",
    "independence": "How often pairs of SAE latents fire together, and the tails of whitened "
    "principal components. Latents that are shifted apart, and so independent, have a much narrower "
    "spread.",
    "training": "Training and validation loss of the networks, by activations seen and by seconds. "
    "Both MLPs fall below the loss of the full Gaussian, while the UNet ends near the mean's.",
    "loss_by_noise": "Velocity loss and ε loss of every method at each noise level, on the same "
    "test tokens with the same noise. At both ends no method can win, though a bad one can lose without bound.",
    "reductions": "How much lower the ε loss and the velocity loss of each network are than each "
    "opponent's, with intervals by document. Beyond the claimed share lie only naive and fed "
    "opponents.",
    "floors": "The reduction of what can be reduced, for every floor that the velocity loss or the ε "
    "loss could have. The floor is unknown, and with it the same losses give other percentages.",
    "samples": "Samples of each model against test activations: principal components, norms and "
    "Fréchet distance. The full Gaussian has the smaller distance, although its norms are far too "
    "alike.",
    "density": "Log-likelihood of test activations under each model, and its gain over the full "
    "Gaussian by token. The mixture of Gaussians is ahead of our recipe.",
    "throughput": "Rates of extraction and of reading against references on the same machine. "
    "Extraction runs at the rate of the bare forward pass, and shuffled reading close to that of a "
    "plain file.",
    "solvers": "Fréchet distance of samples and error of the end point, by solver and number of "
    "evaluations. The distance is reached long before the end points are right.",
    "lm_loss": "Rise of the language model's loss when its activations are replaced, by noise level "
    "and by the squared error of the replacement. The less variance a replacement explains, the "
    "more it costs.",
    "scaling": "Test loss of networks of several widths and budgets against compute, with the fitted "
    "law and its interval. Where the law would meet the claim is uncertain.",
    "robustness": "Reductions of the loss over the Gaussian and over the mixture by layer and text, "
    "also by other methods. On texts of another kind our recipe beats the mixture, a small MLP does "
    "not.",
    "recipes": "Losses by learning rate and by seconds, times to two targets, and our recipe with "
    "one change at a time. Ours reaches the published architecture's losses in a fraction of its "
    "time.",
    "unet_recipes": "Loss of UNets at equal seconds, by learning rate and width, by layout, and with "
    "permuted dimensions. All that are in the picture end near the loss of predicting the mean.",
    "typicality": "How well scores tell shifted sets of activations from test documents, with "
    "intervals by document. The mixture's likelihood notices more sets than our recipe's denoising "
    "loss does.",
    "typicality_passage": "An article with code, French and shuffled words put in, each token the "
    "darker the less usual its activation is. Both scores mark the foreign parts.",
    "probing": "Held-out AUC of probes of one unit by dictionary, and by the noise level at which "
    "units are read. With all units, meta-neurons are not shown to be ahead of SAE latents or of "
    "plain dimensions.",
    "unit_contexts": "Contexts in which chosen units of our recipe are largest, shaded by the unit's "
    "value. The last two units were drawn at random.",
    "clamping": "Effect on the language model of setting one unit to its mean on positive examples. "
    "At one norm, meta-neurons are not shown to do more than plain dimensions or SAE latents.",
    "steering": "Concept against fluency for each repair of a steered activation, areas to plain "
    "addition, and what is left of the edit. No repair is shown to be cheaper than plain addition.",
    "steering_study": "Concept against fluency along several directions, for several concepts and "
    "noise levels. Where anything is decided, SDEdit costs more than plain addition.",
    "gpu": "Training rates on a GPU as shares of the rate of a matrix product, and the losses of "
    "other settings. The article's UNet uses a small part of what the machine can do.",
}
