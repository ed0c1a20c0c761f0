"""Units of dictionaries as one-dimensional probes, and what clamping them does."""
