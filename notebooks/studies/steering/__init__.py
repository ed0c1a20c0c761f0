"""Steered generation and repairs of edited activations."""
