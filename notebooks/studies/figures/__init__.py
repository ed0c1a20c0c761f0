"""Figures of results, drawn from JSON alone."""
