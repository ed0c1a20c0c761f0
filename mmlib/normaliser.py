"""Raw activations h and standardised ones z: every loss of this repository is measured on z."""

from dataclasses import dataclass

import torch
from torch import Tensor

from mmlib.store import ActivationStore, StoreError


@dataclass(frozen=True)
class Normaliser:
    """z = (h − mean)/std per dimension, with training statistics."""

    mean_d: Tensor
    std_d: Tensor

    @classmethod
    def of(cls, store: ActivationStore) -> "Normaliser":
        """From a store's statistics.

        Raises:
            StoreError: a dimension never varies.
        """
        if not (store.variance > 0).all():
            raise StoreError(f"{store.path}: dimensions {(store.variance <= 0).nonzero()[0].tolist()} never vary")
        return cls(torch.from_numpy(store.mean).float(), torch.from_numpy(store.variance).sqrt().float())

    def __call__(self, activations_nd: Tensor) -> Tensor:
        """Standardised z (n, d) of raw activations (n, d)."""
        return (activations_nd.float() - self.mean_d.to(activations_nd.device)) / self.std_d.to(activations_nd.device)
