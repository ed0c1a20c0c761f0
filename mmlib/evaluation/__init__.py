"""Losses, intervals and distances: what a denoiser is judged by."""
