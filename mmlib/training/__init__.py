"""Training a denoiser from batches given by a callable; knows no store, run or language model."""
