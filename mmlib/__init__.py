"""Diffusion meta-models of language-model activations: the module that the notebooks share.

Text flows one way: documents → tokens → residual-stream activations → HDF5 store → standardised batches → meta-model →
measured claims → figures. Each file holds one concept and imports only files below it in the README's layout table.
"""

__version__ = "0.1.0"
