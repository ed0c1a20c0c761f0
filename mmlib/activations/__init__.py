"""Text to tokens to the residual stream of a language model, and its HDF5 store."""
