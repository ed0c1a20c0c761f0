"""Which notebook writes which results."""

MAIN_LINE = {
    "activations": "01_extract_activations",
    "baselines": "02_fit_baselines",
    "training": "03_train_meta_model",
    "loss_comparison": "04_compare_losses",
    "sample_quality": "05_sample_quality",
    "density": "07_density",
    "lm_loss": "08_lm_loss",
}
OPTIONAL = {  # of applications and studies, which `make reproduce` does not run
    "scaling": "06_scaling",
    "steering": "11_steer",
    "probing": "12_meta_neurons",
    "typicality": "13_off_manifold",
    "recipes": "21_recipes",
    "benchmarks": "22_benchmarks",
    "robustness": "23_robustness",
    "replication": "24_replication",
    "steering_study": "25_steering_study",
    "best_model": "26_best_model",
}
NOTEBOOKS = MAIN_LINE | OPTIONAL
