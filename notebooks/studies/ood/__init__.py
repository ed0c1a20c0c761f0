"""Activations off the training distribution: how they are made, and what scores them."""
