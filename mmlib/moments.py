"""Mean and variance of more rows than fit in memory."""

import numpy as np


class RunningMoments:
    """Mean and variance of rows seen so far, merged in float64 (Chan, Golub and LeVeque 1979, eq. 2.1)."""

    def __init__(self, d: int):
        self.count, self.mean, self._m2 = 0, np.zeros(d), np.zeros(d)

    def update(self, rows_nd: np.ndarray) -> None:
        """Merge a block of rows, (n, d)."""
        if not len(rows_nd):
            return
        centred = rows_nd.astype(np.float64)
        mean = centred.mean(0)
        centred -= mean
        self.merge(len(rows_nd), mean, np.einsum("nd,nd->d", centred, centred) / len(rows_nd))

    def merge(self, n: int, mean: np.ndarray, variance: np.ndarray) -> None:
        """Merge n rows of known mean and population variance, (d,) each."""
        delta, total = mean - self.mean, self.count + n
        self._m2 += variance * n + delta**2 * self.count * n / max(1, total)
        self.mean += delta * n / max(1, total)
        self.count = total

    @property
    def variance(self) -> np.ndarray:
        """Population variance, (d,); 0 before any row."""
        return self._m2 / max(1, self.count)
