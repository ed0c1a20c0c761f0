"""The posterior mean of a mixture of Gaussians, fast, for a batch whose rows differ in noise level.

`mmlib.denoisers.mixture` has the exact one, which computes every component that may count. Here,
for x = a z + σ ε with a = 1 − σ:

1. All components are weighed along their few widest axes. What these leave of the squared distance
   from a μ_k is divided by one mean variance, as in probabilistic PCA.
2. The best few of each row are weighed exactly, and give their exact posterior means.
3. From σ = 0.6 on, where many components share a row, the others join with the weights of step 1
   and the posterior means that go with them. Below, the others count for nothing.

With 256 components in 640 dimensions this takes about 15 MFLOP a row; all components take 420.
"""

import math

import torch
from torch import Tensor, nn

from mmlib.denoisers.mixture import GaussianMixtureDenoiser
from mmlib.denoisers.networks import by_run

AXES = 16  # of each component, along which all are weighed
CANDIDATES = 8  # components of a row that are weighed exactly, at most
WITHIN = 150.0  # nats that a candidate may lie below the best, as first weighed
SHARED_FROM = 0.6  # σ from which the others count
LIVE = 1e-4  # probability from which an exact posterior mean is computed
NODES = 257  # of the table of log-volumes, evenly spaced in logit σ
LAST = 7.6  # logit σ of the last node; its σ is 0.9995
CHUNK = 4096  # rows at a time


class FastPosterior(nn.Module):
    """E[z | x] and the components' probabilities.

    Args:
        mixture: what z is drawn from.

    >>> from mmlib.denoisers.mixture import full_gaussian
    >>> means = torch.tensor([[-3.0, 0.0], [3.0, 0.0]])
    >>> parts = tuple(full_gaussian(mean, torch.eye(2), torch.ones(2)) for mean in means)
    >>> mixture = GaussianMixtureDenoiser.of(torch.tensor([0.5, 0.5]).log(), parts)
    >>> x = torch.tensor([[-2.0, 0.1], [1.0, 0.5]])
    >>> estimate, probabilities = FastPosterior(mixture)(x, torch.tensor([0.3, 0.8]))
    >>> exact = torch.cat([mixture(x[:1], 0.3), mixture(x[1:], 0.8)])
    >>> bool(torch.allclose(estimate, exact, atol=1e-5)), tuple(probabilities.shape)
    (True, (2, 2))
    """

    def __init__(self, mixture: GaussianMixtureDenoiser):
        super().__init__()
        log_weights_k, mean_kd, basis_kdd, eigenvalues_kd = mixture.tensors().values()
        k, d = mean_kd.shape
        q = min(AXES, d)
        wide_kdq = basis_kdd[:, :, d - q :]  # eigenvalues ascend
        sigmas = torch.linspace(-LAST, LAST, NODES).sigmoid().tolist()
        volumes = [((1 - s) ** 2 * eigenvalues_kd + s**2).log().sum(1) for s in sigmas]
        self._keep("log_weights_k", log_weights_k)
        self._keep("mean_kd", mean_kd)
        self._keep("basis_kdd", basis_kdd)
        self._keep("eigenvalues_kd", eigenvalues_kd)
        self._keep("wide_dm", wide_kdq.permute(1, 0, 2).reshape(d, k * q).contiguous())  # m = k q
        self._keep("centre_kq", torch.einsum("kd,kdq->kq", mean_kd, wide_kdq))
        self._keep("wide_eigenvalues_kq", eigenvalues_kd[:, d - q :].contiguous())
        others_kp = eigenvalues_kd[:, : d - q] if d > q else torch.ones(k, 1)
        self._keep("other_eigenvalue_k", others_kp.mean(1))
        self._keep("volumes_gk", torch.stack(volumes))

    def _keep(self, name: str, tensor: Tensor) -> None:
        """A buffer that moves with the module and is in no checkpoint: a mixture has its file."""
        self.register_buffer(name, tensor, persistent=False)

    def forward(self, x_nd: Tensor, sigma_u: Tensor) -> tuple[Tensor, Tensor]:
        """E[z | x] (n, d) and the probability of each component given x (n, k).

        Args:
            x_nd: (1 − σ) z + σ ε, in u runs of n/u rows that share a level.
            sigma_u: the levels, (u,), each between 0 and 1.
        Raises:
            ValueError: the runs cannot have the same length.
        """
        run = by_run(x_nd, len(sigma_u)).shape[1]
        if run == 0:
            return x_nd.float(), x_nd.new_zeros(0, len(self.log_weights_k))
        if run >= CHUNK:  # one level after another, each in pieces
            levels = zip(x_nd.split(run), sigma_u.split(1))
            pieces = [(part, sigma) for rows, sigma in levels for part in rows.split(CHUNK)]
        else:
            together = max(1, CHUNK // run)
            pieces = list(zip(x_nd.split(together * run), sigma_u.split(together)))
        found = [self._chunk(part.float(), sigma.float()) for part, sigma in pieces]
        return torch.cat([one for one, _ in found]), torch.cat([one for _, one in found])

    def _chunk(self, x_nd: Tensor, sigma_u: Tensor) -> tuple[Tensor, Tensor]:
        run = len(x_nd) // len(sigma_u)
        coarse = Coarse(self, x_nd, sigma_u)
        row_p, k_p = _candidates(coarse.joint_nk)
        sigma_p1 = sigma_u.repeat_interleave(run)[row_p, None]
        a_p1, eigenvalues_pd = 1 - sigma_p1, self.eigenvalues_kd[k_p]
        variance_pd = a_p1**2 * eigenvalues_pd + sigma_p1**2
        scores_pd = self._rotated(x_nd[row_p] - a_p1 * self.mean_kd[k_p], k_p)
        distance_p = (scores_pd.square() / variance_pd + variance_pd.log()).sum(1)

        shared_n1 = (sigma_u >= SHARED_FROM).repeat_interleave(run)[:, None]
        joint_nk = coarse.joint_nk.masked_fill(~shared_n1, -math.inf)
        joint_nk[row_p, k_p] = self.log_weights_k[k_p] - distance_p / 2
        probability_nk = joint_nk.softmax(1)

        probability_p = probability_nk[row_p, k_p]
        live = probability_p > LIVE
        row_p, k_p, share_p1 = row_p[live], k_p[live], probability_p[live, None]
        gain_pd = (a_p1 * eigenvalues_pd / variance_pd)[live]
        mean_pd = self._rotated(share_p1 * gain_pd * scores_pd[live], k_p, back=True)
        mean_pd += share_p1 * self.mean_kd[k_p]
        estimate_nd = torch.zeros_like(x_nd).index_add_(0, row_p, mean_pd)
        others_nk = probability_nk.clone()
        others_nk[row_p, k_p] = 0
        coarse.add_means(estimate_nd, others_nk, sigma_u >= SHARED_FROM)
        return estimate_nd, probability_nk

    def _rotated(self, rows_pd: Tensor, k_p: Tensor, back: bool = False) -> Tensor:
        """Each row times its component's basis, or its transpose; k_p ascends."""
        basis_kdd, rotated_pd = self.basis_kdd.mT if back else self.basis_kdd, []
        found, counts = k_p.unique_consecutive(return_counts=True)
        for k, part_md in zip(found.tolist(), rows_pd.split(counts.tolist())):
            rotated_pd.append(part_md @ basis_kdd[k])
        return torch.cat(rotated_pd) if rotated_pd else rows_pd


class Coarse:
    """All components along their widest axes alone: `joint_nk`, about log w_k + log N(x; a μ_k, a²
    Σ_k + σ² I), without the constant that all share.
    """

    def __init__(self, posterior: FastPosterior, x_nd: Tensor, sigma_u: Tensor):
        p, u = posterior, len(sigma_u)
        self.posterior, self.x_urd, self.a_u1 = p, x_nd.unflatten(0, (u, -1)), 1 - sigma_u[:, None]
        k, q = p.centre_kq.shape
        centre_ukq = self.a_u1[..., None] * p.centre_kq
        self.scores_urkq = (x_nd @ p.wide_dm).view(u, -1, k, q) - centre_ukq[:, None]
        noise_u1 = sigma_u.square()[:, None]
        self.variance_ukq = self.a_u1[..., None] ** 2 * p.wide_eigenvalues_kq + noise_u1[..., None]
        self.other_uk = self.a_u1**2 * p.other_eigenvalue_k + noise_u1
        squares_urk = (
            self.x_urd.square().sum(-1, keepdim=True)
            - 2 * self.a_u1[..., None] * (self.x_urd @ p.mean_kd.T)
            + (self.a_u1**2 * p.mean_kd.square().sum(1))[:, None]
        )
        # Σ y²/v + (‖x − a μ‖² − Σ y²)/v̄ over the widest axes, in one pass over y
        weight_ukq = 1 / self.variance_ukq - 1 / self.other_uk[..., None]
        distance_urk = (self.scores_urkq.square() * weight_ukq[:, None]).sum(-1)
        distance_urk += squares_urk / self.other_uk[:, None]
        joint_urk = p.log_weights_k - (distance_urk + self._volumes(sigma_u)[:, None]) / 2
        self.joint_nk = joint_urk.flatten(0, 1)

    def _volumes(self, sigma_u: Tensor) -> Tensor:
        """log det(a² Σ_k + σ² I), (u, k), between the nodes of the table."""
        place_u = (torch.logit(sigma_u).clamp(-LAST, LAST) / LAST + 1) * (NODES - 1) / 2
        below_u = place_u.long().clamp(max=NODES - 2)
        table_gk = self.posterior.volumes_gk
        between_u1 = (place_u - below_u)[:, None]
        return torch.lerp(table_gk[below_u], table_gk[below_u + 1], between_u1)

    def add_means(self, estimate_nd: Tensor, probability_nk: Tensor, at_u: Tensor) -> None:
        """Add Σ_k r_k E_k[z | x], with the gain of the mean variance off the widest axes, to the
        rows of some levels.
        """
        if not at_u.any():
            return
        p, u = self.posterior, len(at_u)
        a_u1, share_urk = self.a_u1[at_u], probability_nk.unflatten(0, (u, -1))[at_u]
        gain_ukq = a_u1[..., None] * p.wide_eigenvalues_kq / self.variance_ukq[at_u]
        other_uk = a_u1 * p.other_eigenvalue_k / self.other_uk[at_u]
        extra_ukq = gain_ukq - other_uk[..., None]
        weighed_urkq = self.scores_urkq[at_u] * extra_ukq[:, None] * share_urk[..., None]
        mean_urd = weighed_urkq.flatten(2) @ p.wide_dm.T
        mean_urd += (share_urk * (1 - a_u1 * other_uk)[:, None]) @ p.mean_kd
        mean_urd += (share_urk @ other_uk[..., None]) * self.x_urd[at_u]
        estimate_nd.view_as(self.x_urd)[at_u] += mean_urd


def _candidates(joint_nk: Tensor) -> tuple[Tensor, Tensor]:
    """(row, component) of the best components of each row, ordered by component, (p,) each."""
    best_nc, component_nc = joint_nk.topk(min(CANDIDATES, joint_nk.shape[1]), dim=1)
    row_p, place_p = (best_nc >= best_nc[:, :1] - WITHIN).nonzero(as_tuple=True)
    component_p, order_p = component_nc[row_p, place_p].sort()
    return row_p[order_p], component_p


class FastMixture:
    """The mixture as a denoiser, by its fast posterior."""

    def __init__(self, mixture: GaussianMixtureDenoiser):
        self.posterior = FastPosterior(mixture)
        self.parameters = mixture.parameters
        self.train_seconds = mixture.train_seconds
        self.train_activations = mixture.train_activations

    def __call__(self, x_nd: Tensor, sigma: float) -> Tensor:
        """E[z | x], (n, d)."""
        return self.posterior(x_nd, torch.tensor([sigma], device=x_nd.device))[0]
