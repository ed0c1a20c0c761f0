"""`MetaModel` against closed forms: solvers, projection, likelihood; hidden units; several layers;
checkpoints and their misuse.
"""

import json
import math
import shutil
from functools import partial

import pytest
import torch
import yaml
from known import unscaled
from safetensors.torch import load_file, save_file
from torch.distributions import MultivariateNormal

import mmlib
from mmlib.activations.store import ActivationStore, StoreError
from mmlib.activations.tokens import Normaliser
from mmlib.denoisers.checkpoints import CheckpointError, Origin
from mmlib.denoisers.gaussian import GaussianDenoiser
from mmlib.denoisers.meta_model import DENSITIES, MetaModel, stratified_levels
from mmlib.denoisers.networks import LinearSkip, MLPDenoiser, UNetDenoiser
from mmlib.denoisers.noise import (
    DDPM,
    SMOOTHING,
    FlowMatching,
    log_likelihood,
    noise_process,
    smoothed,
)
from mmlib.files import write_sealed

VARIANCES = torch.tensor([0.3, 1.0, 2.5])
MEAN = torch.tensor([0.5, -1.0, 0.0])
PROCESSES = pytest.mark.parametrize("objective", ["flow_velocity", "ddpm_epsilon"])
SOLVERS = pytest.mark.parametrize(
    "objective, solver",
    [(process.objective, s) for process in (FlowMatching, DDPM) for s in process.solvers],
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def gaussian():
    basis = torch.linalg.qr(torch.randn(3, 3, generator=generator(5)))[0]
    return GaussianDenoiser(MEAN, basis, VARIANCES, 0)


def covariance(model):
    return model.basis_dd @ torch.diag(model.eigenvalues_d) @ model.basis_dd.T


def exact(objective, normaliser=None):
    """A meta-model whose network is the Gaussian's own optimal prediction: a linear skip over a
    silent network.
    """
    inner = MLPDenoiser(3, 8, 16, 1, zero_init=True)
    network = LinearSkip.over(gaussian(), inner, objective).eval()
    return unscaled(network, 3, objective, normaliser)


@PROCESSES
def test_a_silent_network_over_a_linear_skip_is_the_gaussian_denoiser(objective):
    model, x = exact(objective), torch.randn(7, 3)
    for sigma, atol in ((0.01, 2e-4), (0.3, 2e-4), (0.9, 2e-4), (0.99, 2e-3)):
        assert torch.allclose(model.denoise(x, sigma), gaussian()(x, sigma), atol=atol)


@PROCESSES
def test_its_loss_is_the_closed_form(objective):
    z = gaussian().sample(40_000, generator(1))
    with torch.inference_mode():
        loss = exact(objective).loss(z, generator(2)).item()
    assert loss == pytest.approx(gaussian().expected_loss(objective, z), rel=0.01)


@SOLVERS
def test_every_solver_recovers_a_known_gaussian(objective, solver):
    drawn = exact(objective).sample(20_000, steps=100, solver=solver, generator=generator())
    assert torch.allclose(drawn.mean(0), MEAN, atol=0.05)
    assert torch.allclose(torch.cov(drawn.T), covariance(gaussian()), atol=0.12)


class Mixture(torch.nn.Module):
    """The exact prediction for an even mixture of N(±3, 0.1²) in one dimension."""

    def __init__(self, objective):
        super().__init__()
        self.process, self.unused = noise_process(objective), torch.nn.Parameter(torch.zeros(1))

    def forward(self, x, time_u):
        times = time_u.repeat_interleave(len(x) // len(time_u))
        a, s = (value[:, None] for value in self.process.at_time(times))
        centres, variance = torch.tensor([-3.0, 3.0]), 0.01
        power = a**2 * variance + s**2
        weight = torch.softmax(-((x - a * centres) ** 2) / (2 * power), 1)
        means = centres + a * variance / power * (x - a * centres)
        estimate = (weight * means).sum(1, keepdim=True)
        return self.process.target(estimate, (x - a * estimate) / s)


@SOLVERS
def test_every_solver_recovers_a_known_mixture(objective, solver):
    model = unscaled(Mixture(objective), 1, objective)
    drawn = model.sample(4000, steps=200, solver=solver, generator=generator())
    assert 0.46 < (drawn > 0).double().mean() < 0.54
    assert abs(drawn.abs().mean() - 3) < 0.02 and 0.07 < (drawn.abs() - 3).std() < 0.13


@pytest.mark.parametrize(
    "steps, sigma", [(20, 0.5), (10, 0.25), (20, 1.0), (1, 0.5), (5, 0.97), (40, 0.05)]
)
def test_a_projection_starts_at_its_level(steps, sigma):
    for solver in FlowMatching.solvers:
        schedule = FlowMatching().schedule(solver, steps, sigma)
        assert schedule.evaluations == (2 * steps - 1 if solver == "heun" else steps)
        assert schedule.scheduler.sigmas[0].item() == pytest.approx(sigma, abs=1e-6)
        assert schedule.times[0] == pytest.approx(1000 * sigma, abs=1e-3)
    for solver in DDPM.solvers:
        ddpm = DDPM().schedule(solver, steps, sigma)
        t = int(ddpm.scheduler.timesteps[0])
        s, a = math.sqrt(1 - DDPM()._alpha_bar[t]), math.sqrt(DDPM()._alpha_bar[t])
        assert s / (a + s) == pytest.approx(min(sigma, 0.9937), abs=0.002)


@PROCESSES
def test_projection_keeps_the_gaussian_and_forgets_more_with_more_noise(objective):
    z = gaussian().sample(8000, generator(3))
    near, far = (
        exact(objective).project(z, sigma=sigma, steps=40, generator=generator(4))
        for sigma in (0.1, 0.8)
    )
    for projected in (near, far):
        assert torch.allclose(torch.cov(projected.T), covariance(gaussian()), atol=0.15)
    assert (near - z).square().mean() < 0.2 * (far - z).square().mean()


@pytest.mark.parametrize("steps", [61, 77, 300])
def test_ddim_ends_at_the_clean_activation_whatever_the_number_of_steps(steps):
    schedule = DDPM().schedule("ddim", steps)
    strides = -schedule.scheduler.timesteps.diff()
    assert schedule.evaluations == pytest.approx(steps, rel=0.12)
    assert (strides == strides[0]).all()
    assert (schedule.scheduler.timesteps >= 0).all()
    drawn = exact("ddpm_epsilon").sample(8000, steps=steps, solver="ddim", generator=generator())
    assert torch.allclose(torch.cov(drawn.T), covariance(gaussian()), atol=0.12)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"sigma": 0}, "between 0 and 1"),
        ({"sigma": 1}, "between 0 and 1"),
        ({"sigma": 0.5, "solver": "rk4"}, r"'rk4' for flow_velocity: .*euler, heun, dpm\+\+"),
    ],
)
def test_impossible_projections_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        exact("flow_velocity").project(torch.zeros(2, 3), generator=generator(), **options)


@pytest.mark.parametrize("objective, tolerance", [("flow_velocity", 0.01), ("ddpm_epsilon", 0.02)])
def test_log_likelihood_agrees_with_the_closed_form(objective, tolerance):
    """Of the raw activation, so the logarithm of the standard deviations comes in; smoothed at σ₀,
    as documented.
    """
    scale, z = torch.tensor([[1.0, 10.0, 100.0]]), gaussian().sample(50, generator(6))
    model = exact(objective, Normaliser(torch.zeros(1, 3), scale))
    x = smoothed(z, generator(7))
    a, blur = 1 - SMOOTHING, SMOOTHING**2 * torch.eye(3)
    density = MultivariateNormal(a * MEAN, a**2 * covariance(gaussian()) + blur)
    truth = density.log_prob(x) / 3 - scale.log().mean()
    result = model.log_likelihood(z, generator=generator(7), steps=200, batch=20)
    assert torch.allclose(result.nats_per_dimension_n.float(), truth, atol=tolerance)
    assert not result.standard_error_n.any()


def test_hutchinson_agrees_with_the_exact_trace_within_its_error():
    basis = torch.linalg.qr(torch.randn(12, 12, generator=generator(8)))[0]
    denoiser = GaussianDenoiser(torch.zeros(12), basis, torch.linspace(0.1, 3, 12), 0)
    x, options = denoiser.sample(60, generator(9)), {"last_sigma": 0.999, "steps": 40}
    exact_, estimate = (
        log_likelihood(denoiser, x, probes=16, exact=exact, generator=generator(10), **options)
        for exact in (True, False)
    )
    difference = estimate.nats_per_dimension_n - exact_.nats_per_dimension_n
    deviation = difference / estimate.standard_error_n
    assert (estimate.standard_error_n > 0).all()
    assert 0.8 < deviation.square().mean().sqrt() < 1.4  # Student's t of 15 degrees has 1.07


def test_one_probe_has_no_error_estimate_and_none_is_refused():
    options = {"last_sigma": 0.999, "steps": 2, "exact": False, "generator": generator()}
    found = log_likelihood(gaussian(), torch.randn(2, 3), probes=1, **options)
    assert found.standard_error_n.isnan().all()
    with pytest.raises(ValueError, match="at least one"):
        log_likelihood(gaussian(), torch.randn(2, 3), probes=0, **options)


def test_neurons_are_what_the_down_projections_see():
    torch.manual_seed(0)
    network = MLPDenoiser(3, 8, 16, 2).eval()
    model = unscaled(network, 3)
    z = torch.randn(5, 3)
    found = model.neurons(z, sigma=0.1, generator=generator())
    shapes = {name: tuple(units.shape) for name, units in found.items()}
    assert shapes == {"block 0": (5, 16), "block 1": (5, 16)}
    x = 0.9 * z + 0.1 * torch.randn(z.shape, generator=generator())
    block, h = network.layers[0], network.in_proj(x)
    n, e = block.ln(h), network.embedding(torch.tensor([100.0]), None)
    by_hand = torch.nn.functional.silu(block.gate_proj(n) * block.time_proj(e)) * block.up_proj(n)
    assert torch.allclose(found["block 0"], by_hand, atol=1e-5)
    unet = unscaled(UNetDenoiser(48, (32, 32, 32), 1).eval(), 48, "ddpm_epsilon")
    found = unet.neurons(torch.randn(2, 48), sigma=0.1, generator=generator())
    assert {tuple(units.shape) for units in found.values()} == {(2, 32)}


def test_the_parts_of_a_batch_have_the_loss_of_the_whole():
    torch.manual_seed(0)
    model = unscaled(MLPDenoiser(3, 8, 16, 1), 3)
    z = torch.randn(24, 3)
    for levels in (None, 6):
        whole = model.loss(z, generator(), levels=levels)
        parts = [model.loss(z, generator(), levels=levels, part=(i, 3)) for i in range(3)]
        assert torch.allclose(whole, torch.stack(parts).mean())
    with pytest.raises(ValueError, match="expected each to divide"):
        model.loss(z, generator(), levels=5)


def test_a_weighted_loss_weighs_each_row_by_its_level():
    model, draws = unscaled(MLPDenoiser(3, 8, 16, 1, zero_init=True), 3), generator()
    z = MEAN + torch.arange(12.0)[:, None]
    index, noise = stratified_levels(4, draws), torch.randn(z.shape, generator=draws)
    weights = DENSITIES["logit_normal"].weights[index].repeat_interleave(3)
    expected = ((noise - z).square().mean(1) * weights).mean()
    found = model.loss(z, generator(), levels=4, weighting="logit_normal")
    assert torch.allclose(found, expected)


@PROCESSES
@pytest.mark.parametrize(
    "network",
    [partial(MLPDenoiser, 48, 32, 64, 2), partial(UNetDenoiser, 48, (32, 32, 32), 1)],
    ids=["mlp", "unet"],
)
def test_both_denoisers_learn_under_both_processes(network, objective):
    """The loss of a new network is finite, and its gradient reaches every weight."""
    torch.manual_seed(0)
    model = unscaled(network(), 48, objective)
    loss = model.loss(torch.randn(16, 48), generator(), levels=8)
    loss.backward()
    assert 0.5 < loss.item() < 5
    for name, weight in model.network.named_parameters():
        assert weight.grad.isfinite().all() and weight.grad.any(), name


@pytest.fixture
def several(make_store):
    """Stores of two layers of the same texts, and a model of both."""
    stores = [ActivationStore(make_store(layer=layer, seed=layer)[0]) for layer in (1, 3)]
    torch.manual_seed(0)
    return stores, MetaModel(MLPDenoiser(8, 16, 32, 2, 4), "flow_velocity", Origin.of(*stores))


def test_several_layers_share_a_network_that_is_told_the_layer(several, tmp_path):
    (first, third), model = several
    x, raw = torch.randn(5, 8), third.read(range(5))
    at_3, expected = model.at(3), Normaliser.of(third)
    assert not torch.allclose(model.at(1).denoise(x, 0.5), at_3.denoise(x, 0.5))
    assert torch.allclose(at_3.normaliser(raw), expected(raw))
    assert torch.allclose(at_3.normaliser.inverse(expected(raw)), raw.float(), atol=1e-5)
    at_3.check_store(third)
    with pytest.raises(StoreError, match="layer 3"):
        at_3.check_store(first)
    for impossible, message in (
        (lambda: model.denoise(x, 0.5), "choose one with .at"),
        (lambda: model.at(2), r"trained on \[1, 3\]"),
    ):
        with pytest.raises(ValueError, match=message):
            impossible()
    model.save_pretrained(tmp_path)
    again = MetaModel.from_pretrained(tmp_path).at(3)
    assert torch.equal(again.denoise(x, 0.5), at_3.denoise(x, 0.5))


def test_the_loss_of_several_layers_is_the_mean_of_each(several):
    stores, model = several
    z = model.normaliser(torch.stack([store.read(range(16)) for store in stores]))
    whole, draws = model.loss(z, generator()), generator()
    index = torch.stack([stratified_levels(16, draws) for _ in range(2)])
    noise = torch.randn(z.shape, generator=draws)
    losses = []
    for i, layer in enumerate((1, 3)):
        sigma = noise_process("flow_velocity").training_sigmas[index[i]][:, None]
        x, layer_n = (1 - sigma) * z[i] + sigma * noise[i], torch.full((16,), layer)
        prediction = model.network(x, 1000 * sigma[:, 0], layer_n)
        losses.append((prediction - (noise[i] - z[i])).square().mean())
    assert torch.allclose(whole, torch.stack(losses).mean())


def test_layers_of_other_texts_are_refused(several, make_store):
    other = ActivationStore(make_store(layer=3, corpus="other")[0])
    with pytest.raises(StoreError, match="same texts"):
        MetaModel(MLPDenoiser(8, 16, 32, 2, 4), "flow_velocity", Origin.of(several[0][0], other))


@pytest.fixture
def saved(tmp_path):
    exact("flow_velocity").save_pretrained(tmp_path, {"seed": 3})
    return tmp_path


def test_a_checkpoint_comes_with_a_model_card(saved):
    card = (saved / "README.md").read_text()
    assert card.startswith("---\n")
    assert all(words in card for words in ("toy@1, block 1", "- seed: 3", "Limits"))


BIAS = "inner.in_proj.bias"


def weights(change):
    """Damage of a checkpoint's tensors."""

    def spoil(folder):
        path = folder / "network" / "diffusion_pytorch_model.safetensors"
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path)
        sealed_again(folder)

    return spoil


def sealed_again(folder, **changes):
    """With digests of what is there now, as somebody might who makes such a folder."""
    facts = json.loads((folder / "meta_model.json").read_text())
    del facts["digest"]
    files = [folder / name for name in facts["files"]]
    write_sealed(folder / "meta_model.json", {**facts, **changes}, files)


def without_digests(folder):
    (folder / "meta_model.json").write_text('{"network": "MLPDenoiser", "layers": [1]}')


@pytest.mark.parametrize(
    "spoil, message",
    [
        (weights(lambda w: w.pop("inner.in_proj.weight")), "lacks inner.in_proj.weight and 0 more"),
        (weights(lambda w: w.update(extra=torch.zeros(1))), "has extra and 0 more"),
        (weights(lambda w: w.update({BIAS: torch.zeros(9)})), r"shape \(9,\), expected \(8,\)"),
        (weights(lambda w: w[BIAS][0].fill_(math.nan)), "NaN or infinity"),
        (without_digests, "of a former version, which kept no digests .* train or fit it again"),
        (lambda folder: (folder / "network" / "config.json").unlink(), "lacks network/config.json"),
        (
            partial(sealed_again, network="Transformer"),
            "MLPDenoiser, UNetDenoiser, SparseDenoiser, LinearSkip",
        ),
    ],
)
def test_damaged_and_incomplete_checkpoints_are_refused_by_name(saved, spoil, message):
    spoil(saved)
    with pytest.raises(CheckpointError, match=message):
        MetaModel.from_pretrained(saved)


@pytest.mark.parametrize("name", ["nobody/nothing", "not a name"])
def test_a_name_that_is_neither_folder_nor_reachable_is_refused(name):
    with pytest.raises(FileNotFoundError, match="no Hub repository within reach"):
        MetaModel.from_pretrained(name)


@pytest.fixture
def published(tmp_path):
    """A checkpoint in the published format, with random weights."""

    def write(layers=(7,), multi=None, statistics=1):
        torch.manual_seed(0)
        sizes = {"d_input": 6, "d_model": 12, "d_mlp": 24, "n_layers": 2}
        sizes["multi_layer_n_layers"] = multi
        network = MLPDenoiser(**sizes)
        weights = {f"model.{key}": value for key, value in network.state_dict().items()}
        save_file(weights, tmp_path / "final.safetensors")
        mean = torch.arange(6.0) + 10 * torch.arange(statistics)[:, None]
        numbers = {"mean": mean.squeeze(0), "var": torch.full((statistics, 6), 4.0).squeeze(0)}
        torch.save(numbers, tmp_path / "rep_statistics.pt")
        traced = {"layer_prefix": "model.layers", "layers": list(layers), "retain": "output"}
        arguments = {"denoiser_config": sizes, "tracedict_config": traced}
        config = {"model_name": "toy/llama", "glp_kwargs": arguments}
        path_as_omegaconf_writes_it = (
            "output_path: !!python/object/apply:pathlib.PosixPath\n- runs\n- glp\n"
        )
        (tmp_path / "config.yaml").write_text(path_as_omegaconf_writes_it + yaml.safe_dump(config))
        return tmp_path

    return write


def published_forward(weights, x, t, layer=None):
    """The published equations, with plain tensor operations on the file's own tensors."""
    from torch.nn import functional as F

    w = {key.removeprefix("model."): value for key, value in weights.items()}

    def linear(name, value):
        return F.linear(value, w[f"{name}.weight"], w[f"{name}.bias"])

    def norm(name, value):
        return F.layer_norm(value, value.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"])

    def embed(name, value):
        angles = value[:, None] * torch.tensor([10000 ** (-i / 6) for i in range(6)])
        waves = torch.cat([angles.cos(), angles.sin()], 1)
        return linear(f"{name}.2", F.silu(linear(f"{name}.0", waves)))

    e = embed("time_embed", t) + (0 if layer is None else embed("layer_embed", layer))
    h = linear("in_proj", x)
    for block in ("layers.0", "layers.1"):
        n = norm(f"{block}.ln", h)
        gate = F.silu(linear(f"{block}.gate_proj", n) * linear(f"{block}.time_proj", e))
        h = h + linear(f"{block}.down_proj", gate * linear(f"{block}.up_proj", n))
    return linear("out_proj", norm("ln", h))


@pytest.mark.parametrize(
    "layers, multi, statistics, mean",
    [((7,), None, 1, 0), ((0, 2), 4, 2, 10), ((0, 2), 4, 4, 20)],
    ids=["one layer", "statistics of its layers", "statistics of all layers"],
)
def test_a_published_checkpoint_gives_the_published_outputs(
    published, layers, multi, statistics, mean
):
    folder = published(layers, multi, statistics)
    whole, weights = MetaModel.from_pretrained(folder), load_file(folder / "final.safetensors")
    assert (whole.layers, whole.language_model) == (layers, "toy/llama")
    assert whole.process.objective == "flow_velocity"
    model, told = whole.at(layers[-1]), multi and torch.full((5,), 2 / 3)
    x, t = torch.randn(5, 6), torch.tensor([1.0, 10.0, 400.0, 999.0, 1000.0])
    with torch.inference_mode():
        expected = published_forward(weights, x, t, told)
        assert torch.allclose(model.predict(x, t), expected, rtol=1e-5, atol=1e-6)
        expected = x - 0.4 * published_forward(weights, x, torch.full((5,), 400.0), told)
        assert torch.allclose(model.denoise(x, 0.4), expected, rtol=1e-5, atol=1e-6)
    raw = torch.arange(6.0)[None] + mean + 2
    assert torch.allclose(model.normaliser(raw), torch.ones(1, 6))


def test_a_published_checkpoint_has_the_common_protocol(published, tmp_path):
    model = mmlib.load(published())
    x = torch.randn(5, 6)
    assert torch.equal(model.denoise(x, 0.4), MetaModel.from_pretrained(tmp_path).denoise(x, 0.4))
    assert torch.allclose(model.standardise(torch.arange(6.0)[None] + 2), torch.ones(1, 6))
    assert model.check(language_model="toy/llama@9f2c", layer=7) is model
    with pytest.raises(StoreError, match="toy/llama layer 7"):
        model.check(layer=8)
    assert torch.equal(mmlib.load(model.save(tmp_path / "mine")).denoise(x, 0.4), model(x, 0.4))


def test_an_epoch_is_read_where_there_is_no_final(published):
    folder = published()
    epochs = folder / "checkpoints"
    epochs.mkdir()
    (folder / "final.safetensors").rename(epochs / "epoch_16.safetensors")
    weights = load_file(epochs / "epoch_16.safetensors")
    doubled = {key: 2 * value for key, value in weights.items()}
    save_file(doubled, epochs / "epoch_8.safetensors")
    latest = MetaModel.from_pretrained(folder)
    eighth = MetaModel.from_pretrained(folder, checkpoint="epoch_8")
    assert torch.equal(2 * latest.network.in_proj.weight, eighth.network.in_proj.weight)
    with pytest.raises(CheckpointError, match="there are epoch_16, epoch_8"):
        MetaModel.from_pretrained(folder, checkpoint="epoch_9")
    shutil.rmtree(epochs)
    with pytest.raises(CheckpointError, match="neither final.safetensors nor"):
        MetaModel.from_pretrained(folder)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A Hub whose one repository is a folder: what is asked for is copied from it, the rest is
    not.
    """

    def of(repository):
        def download(name, revision, allow_patterns):
            assert (name, revision) == ("someone/meta-model", "v1")
            for pattern in allow_patterns:
                for path in repository.glob(pattern):
                    copy = tmp_path / "cache" / path.relative_to(repository)
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy(path, copy)
            return str(tmp_path / "cache")

        monkeypatch.setattr("mmlib.denoisers.checkpoints.snapshot_download", download)
        return partial(MetaModel.from_pretrained, "someone/meta-model", revision="v1")

    return of


def test_a_model_of_ours_is_read_from_the_hub(hub, tmp_path):
    model, x = exact("flow_velocity"), torch.randn(4, 3)
    model.save_pretrained(tmp_path / "ours")
    expected = model.denoise(x, 0.5)
    assert torch.allclose(hub(tmp_path / "ours")().denoise(x, 0.5), expected, atol=1e-6)


def test_a_published_model_is_read_from_the_hub(hub, published, tmp_path):
    folder, x = published().rename(tmp_path.with_name("published")), torch.randn(4, 6)
    (folder / "checkpoints").mkdir()
    shutil.copy(folder / "final.safetensors", folder / "checkpoints" / "epoch_2.safetensors")
    from_hub = hub(folder)
    expected = MetaModel.from_pretrained(folder).denoise(x, 0.5)
    assert torch.equal(from_hub().denoise(x, 0.5), expected)
    # as large as the model, and not asked for
    assert not list(tmp_path.rglob("epoch_2.safetensors"))
    expected = MetaModel.from_pretrained(folder).denoise(x, 0.5)
    assert torch.equal(from_hub(checkpoint="epoch_2").denoise(x, 0.5), expected)


class Malicious:
    def __reduce__(self):
        return (print, ("executed",))


def configured(there, instead):
    def change(folder):
        text = (folder / "config.yaml").read_text()
        assert there in text
        (folder / "config.yaml").write_text(text.replace(there, instead))

    return change


def statistics(**tensors):
    return lambda folder: torch.save(tensors, folder / "rep_statistics.pt")


@pytest.mark.parametrize(
    "spoil_it, message",
    [
        (lambda f: (f / "rep_statistics.pt").unlink(), "rep_statistics.pt is missing"),
        (statistics(mean=torch.zeros(5), var=torch.ones(5)), "expected tensors mean and var"),
        (statistics(mean=torch.zeros(6), var=torch.zeros(6)), "variance not positive"),
        (statistics(mean=Malicious()), "expected tensors mean and var"),
        (lambda f: (f / "rep_statistics.pt").write_bytes(b"no pickle"), "expected tensors mean"),
        (lambda f: (f / "config.yaml").write_text("glp_kwargs: {}"), "lacks 'denoiser_config'"),
        (lambda f: (f / "config.yaml").write_text("a: [1"), "is no YAML"),
        (configured("retain: output", "retain: input"), "retain is 'input', expected .*output"),
        (configured("model.layers", "model.layers.mlp"), "layer_prefix is 'model.layers.mlp'"),
    ],
)
def test_misfit_published_checkpoints_are_refused(published, spoil_it, message, capsys):
    folder = published()
    spoil_it(folder)
    with pytest.raises(CheckpointError, match=message):
        MetaModel.from_pretrained(folder)
    assert "executed" not in capsys.readouterr().out
