"""Training: exact resume, refusal of divergence, checkpoints, and what the loss converges to."""

import copy
import dataclasses

import pytest
import torch
from accelerate.tracking import GeneralTracker
from diffusers.training_utils import EMAModel
from known import tokens_of

from mmlib.activations.batches import multi_layer_batches, shuffled_batches
from mmlib.activations.store import ActivationStore, StoreError
from mmlib.activations.tokens import Normaliser
from mmlib.denoisers.checkpoints import Origin
from mmlib.denoisers.gaussian import PrincipalComponents
from mmlib.denoisers.meta_model import MetaModel
from mmlib.denoisers.networks import MLPDenoiser, MLPSize
from mmlib.evaluation.losses import evaluate
from mmlib.training.recipe import Recipe, Training, learning_rate, new_model
from mmlib.training.train import TrainingDiverged, TrainingRun, step_generator, train

EVERY = {"validate_every": 4, "save_every": 4, "log_every": 2, "keep": (("early", 4),)}
SETTINGS = Training("flow_velocity", steps=12, batch=64, lr=1e-3, bf16=False, **EVERY)


class Killed(RuntimeError):
    pass


def fresh(store, network=None, objective="flow_velocity"):
    torch.manual_seed(0)
    return MetaModel(network or MLPDenoiser(store.d, 16, 32, 2), objective, Origin.of(store))


def batches(store, size=64, kill_at=None):
    def source(start):
        for i, batch in enumerate(shuffled_batches(store, "train", size, 0, start=start), start):
            if i == kill_at:
                raise Killed
            yield batch

    return source


def held_out(model, store):
    return model.normaliser(store.read(store.rows("validation")))


def begun(model, store, settings, folder):
    return TrainingRun(model, settings, held_out(model, store), folder, 0, "", None)


def run(store, folder, settings=SETTINGS, kill_at=None, model=None, **changes):
    """Train a model on the store's training documents; gives it and its log."""
    settings, model = dataclasses.replace(settings, **changes), model or fresh(store)
    source = batches(store, settings.batch, kill_at)
    return model, train(model, settings, source, held_out(model, store), folder, seed=0)


def cut(store, folder, kill_at, **changes):
    """A training that ends before that batch."""
    with pytest.raises(Killed):
        run(store, folder, kill_at=kill_at, **changes)


def steps(log):
    return [entry["step"] for entry in log]


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.network.parameters()])


def test_the_averaged_weights_are_those_of_diffusers(store, tmp_path):
    model, settings = fresh(store), dataclasses.replace(SETTINGS, lr=0.1, ema=0.6)
    one = begun(model, store, settings, tmp_path)
    given, theirs = batches(store)(0), EMAModel(one.parameters, decay=0.6)
    for _ in range(12):
        one.advance(given)
        theirs.step(one.parameters)
    for ours, average, last in zip(one.ema.shadow_params, theirs.shadow_params, one.parameters):
        assert torch.allclose(ours, average, rtol=0, atol=1e-6)
        assert not torch.allclose(ours, last, rtol=0, atol=1e-3)


@pytest.mark.parametrize("clip", [0.05, 1e3], ids=["clipped", "as_it_is"])
def test_gradients_are_clipped_as_by_torch(store, tmp_path, clip):
    model = fresh(store)
    one = begun(model, store, dataclasses.replace(SETTINGS, clip=clip), tmp_path)
    seen, step = [], one.optimizer.step
    one.optimizer.step = lambda: seen.extend(p.grad.clone() for p in one.parameters) or step()
    z, twin = model.normaliser(next(batches(store)(0))), copy.deepcopy(one.network)
    one.advance(batches(store)(0))
    model.loss(z, step_generator(0, 0), network=twin).backward()
    torch.nn.utils.clip_grad_norm_(twin.parameters(), clip)
    assert all(torch.equal(ours, p.grad) for ours, p in zip(seen, twin.parameters(), strict=True))
    assert (torch.nn.utils.get_total_norm(seen) < 0.0501) == (clip == 0.05)


@pytest.mark.parametrize("kill_at", [2, 4, 7, 11])
def test_killed_and_resumed_ends_bit_identical(store, tmp_path, kill_at):
    whole, whole_log = run(store, tmp_path / "whole")
    cut(store, tmp_path / "cut", kill_at)
    resumed, log = run(store, tmp_path / "cut")
    assert torch.equal(weights(whole), weights(resumed))
    assert [e | {"seconds": 0} for e in whole_log] == [e | {"seconds": 0} for e in log]
    assert not list((tmp_path / "cut").glob("state*"))


def test_a_finished_training_is_loaded_not_repeated(store, tmp_path, capsys):
    first, first_log = run(store, tmp_path)
    (tmp_path / "state.json").touch()  # as a kill leaves it that comes before it is removed
    again, log = run(store, tmp_path, kill_at=0)
    assert not list(tmp_path.glob("state*"))
    assert torch.equal(weights(first), weights(again))
    assert log == first_log
    assert "already trained" in capsys.readouterr().out


def test_divergence_names_the_step(store, tmp_path):
    with pytest.raises(TrainingDiverged, match="loss (nan|inf) at step .* of 12"):
        run(store, tmp_path, lr=1e30, clip=1e30)


def test_a_training_that_does_not_learn_is_stopped_unless_told_otherwise(store, tmp_path):
    """Weights that hardly move keep the loss of the beginning, which is above the mean
    predictor's.
    """
    stuck = {"lr": 1e-9, "log_every": 20, "save_every": 1000, "keep": ()}
    message = "at step [45]\\d\\d of 1000: for 250 steps it has been above"
    with pytest.raises(TrainingDiverged, match=message):
        run(store, tmp_path / "stopped", steps=1000, validate_every=1000, **stuck)
    patient = {"steps": 520, "validate_every": 520, "stop_if_stuck": False}
    assert steps(run(store, tmp_path / "patient", **stuck, **patient)[1])[-1] == 520


def test_one_denoiser_is_trained_on_several_layers(make_store, tmp_path):
    """Rows of all layers in each batch; the trained network does better at each layer than the mean
    alone.
    """
    stores = [
        ActivationStore(make_store(layer=layer, seed=layer, dtype="float32", d=4)[0])
        for layer in (0, 2)
    ]
    torch.manual_seed(0)
    model = MetaModel(MLPDenoiser(4, 32, 64, 2, 3), "flow_velocity", Origin.of(*stores))
    h = torch.stack([store.read(store.rows("validation")) for store in stores])
    changes = {"steps": 150, "batch": 256, "lr": 3e-3, "validate_every": 50, "ema": 0.95}
    settings = dataclasses.replace(SETTINGS, levels=64, keep=(), **changes)

    def source(start):
        return multi_layer_batches(stores, "train", 256, 0, start=start)

    log = train(model, settings, source, model.normaliser(h), tmp_path, seed=0)
    assert log[-1]["validation_loss"] < log[0]["loss"] - 0.1
    assert log[-1]["activations"] == 2 * 150 * 256
    assert MetaModel.from_pretrained(tmp_path).layers == (0, 2)


def test_a_linear_skip_needs_its_gaussian(store):
    z = Normaliser.of(store)(store.read(store.rows("train")))
    gaussian = PrincipalComponents.fit(z).gaussian()
    recipe = Recipe(MLPSize(1, 16, 32), SETTINGS, linear_skip=True)
    network = new_model(recipe, Origin.of(store), 0, gaussian).network
    assert torch.equal(network.eigenvalues_d, gaussian.eigenvalues_d)
    assert not any(p.shape == network.basis_dd.shape for p in network.parameters())
    with pytest.raises(ValueError, match="pass the one fitted"):
        new_model(recipe, Origin.of(store), 0)


def test_shared_levels_give_the_network_the_same_answer_as_one_a_row():
    torch.manual_seed(0)
    network = MLPDenoiser(6, 12, 24, 2, gated_skip=True)
    x = torch.randn(8, 6)
    time = torch.tensor([3.0, 500.0])
    assert torch.allclose(network(x, time), network(x, time.repeat_interleave(4)), atol=1e-6)
    with pytest.raises(ValueError, match="8 rows and 3 times"):
        network(x, torch.ones(3))


def test_a_tracker_gets_the_log(store, tmp_path):
    class Recorder(GeneralTracker):
        name, requires_logging_directory, seen = "recorder", False, []

        def __init__(self):
            super().__init__(_blank=True)

        @property
        def tracker(self):
            return self

        def store_init_configuration(self, values):
            assert values["batch"] == "64"

        def log(self, values, step, **more):
            self.seen.append((step, values))

    model = fresh(store)
    given = (model, SETTINGS, batches(store), held_out(model, store))
    log = train(*given, tmp_path / "run", seed=0, tracker=Recorder())
    assert [step for step, _ in Recorder.seen] == steps(log)
    assert Recorder.seen[-1][1]["loss"] == log[-1]["loss"]
    with pytest.raises(ValueError, match="install its package"):
        train(*given, tmp_path / "other", seed=0, tracker="tensorboard")


def test_a_state_of_an_older_training_is_not_taken_up_after_another_began(store, tmp_path, capsys):
    cut(store, tmp_path, kill_at=9)
    cut(store, tmp_path, kill_at=1, lr=2e-3)
    assert "another configuration" in capsys.readouterr().out
    assert steps(run(store, tmp_path)[1]) == [2, 4, 6, 8, 10, 12]


def test_a_gradient_that_is_not_finite_stops_before_it_spoils_the_weights(store, tmp_path):
    model = fresh(store)
    model.network.in_proj.weight.register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(TrainingDiverged, match="gradient norm nan at step 1"):
        run(store, tmp_path, model=model)
    assert weights(model).isfinite().all()


def test_a_compiled_network_trains(store, tmp_path, monkeypatch):
    compiled = torch.compile
    monkeypatch.setattr(torch, "compile", lambda module: compiled(module, backend="eager"))
    model, _ = run(store, tmp_path / "compiled", compile=True)
    plain, _ = run(store, tmp_path / "plain")
    assert torch.allclose(weights(model), weights(plain), atol=1e-5)


def test_validation_at_steps_that_are_not_logged_is_refused():
    with pytest.raises(ValueError, match="multiples of log_every=10"):
        Training("flow_velocity", steps=30, batch=8, lr=1e-3, validate_every=15)


def test_checkpoint_round_trip_and_kept_copy(store, tmp_path):
    model, _ = run(store, tmp_path)
    again = MetaModel.from_pretrained(tmp_path)
    early = MetaModel.from_pretrained(tmp_path / "early")
    x = torch.randn(5, store.d)
    assert torch.equal(model.denoise(x, 0.3), again.denoise(x, 0.3))
    assert not torch.equal(model.denoise(x, 0.3), early.denoise(x, 0.3))
    assert not list(tmp_path.glob("**/*.bin")) and not list(tmp_path.glob("**/*.pt"))


def test_store_of_other_documents_is_refused_unless_asked_for(store, make_store):
    other = ActivationStore(make_store(seed=5, corpus="other")[0])
    with pytest.raises(StoreError, match="may have been trained on"):
        fresh(store).check_store(other)
    fresh(store).check_store(other, same_documents=False)


def test_a_training_of_former_code_is_not_taken_for_this_one(store, tmp_path):
    """Its done.json was a list, and its state had no digest."""
    (tmp_path / "done.json").write_text('[{"steps": 12}, 0]')
    (tmp_path / "state.pt").write_bytes(b"of former code")
    assert steps(run(store, tmp_path)[1]) == [2, 4, 6, 8, 10, 12]
    assert not list(tmp_path.glob("state*"))


def test_a_fresh_training_forgets_the_copies_of_an_earlier_one(store, tmp_path):
    run(store, tmp_path)
    cut(store, tmp_path, kill_at=2, lr=2e-3)
    for folder in (tmp_path, tmp_path / "early"):
        with pytest.raises(FileNotFoundError, match="03_train_meta_model"):
            MetaModel.from_pretrained(folder)


def test_learning_rate_by_hand():
    settings = Training("flow_velocity", steps=100, batch=1, lr=1.0, warmup=0.1, final_lr=0.2)
    rates = [learning_rate(step, settings) for step in (0, 9, 55, 100)]
    assert rates == pytest.approx([0.1, 1.0, 0.6, 0.2])
    late = dataclasses.replace(settings, decay="late")
    rates = [learning_rate(step, late) for step in (9, 55, 82, 91, 100)]
    assert rates == pytest.approx([1.0, 1.0, 1.0, 0.6, 0.2]), "over the last fifth"


@pytest.mark.parametrize("objective", ["flow_velocity", "ddpm_epsilon"])
def test_a_small_network_approaches_but_never_beats_the_gaussian_on_gaussian_data(
    make_store, tmp_path, objective
):
    """The optimal denoiser of Gaussian data is known in closed form: a trained network must end
    just above its loss.
    """
    store = ActivationStore(make_store(rows=(20_000, 5000, 10), d=4, dtype="float32")[0])
    steps = {"steps": 400, "validate_every": 400}
    settings = Training(objective, batch=512, lr=3e-3, bf16=False, ema=0.98, **steps)
    model = fresh(store, MLPDenoiser(4, 32, 64, 2), objective)
    run(store, tmp_path, settings, model=model)
    z = Normaliser.of(store)(store.read(store.rows("validation")))
    optimum = PrincipalComponents.fit(z).gaussian().expected_loss(objective, z)
    tokens = tokens_of(z, torch.zeros(len(z), dtype=int).numpy())
    losses = evaluate({"mlp": model}, tokens, objective, per_level=2000, seed=0)
    # ε divided by a vanishing signal is what a short training gets wrong; the objective's own
    # weight forgives it
    most = {"flow_velocity": 1.10, "ddpm_epsilon": 1.25}[objective]
    assert 0.98 * optimum < losses.mean("mlp") < most * optimum


def test_the_saved_model_reproduces_the_last_logged_validation_loss(store, tmp_path):
    """It is saved with the averaged weights, which that loss is of, and not with those of the last
    step.
    """
    model, log = run(store, tmp_path, lr=0.05, ema=0.9)
    again = MetaModel.from_pretrained(tmp_path)
    z, generator = held_out(model, store), step_generator(0, 2**31)
    parts = z.split(SETTINGS.batch)
    with torch.inference_mode():
        losses = [again.loss(part, generator).item() * len(part) for part in parts]
    assert sum(losses) / len(z) == pytest.approx(log[-1]["validation_loss"], rel=1e-5)


def validation_losses(store, folder, validation, seed=0, **changes):
    """Losses that a training logs, whose weights do not move."""
    settings = dataclasses.replace(SETTINGS, lr=1e-30, keep=(), **changes)
    source = batches(store, settings.batch)
    log = train(fresh(store), settings, source, validation, folder, seed=seed)
    return [entry["validation_loss"] for entry in log if "validation_loss" in entry]


def test_validation_has_the_same_noise_at_every_step_and_seed(store, tmp_path):
    """Else losses of recipes, seeds and steps would not be paired."""
    z = torch.randn(500, store.d, generator=torch.Generator().manual_seed(1))
    found = validation_losses(store, tmp_path / "one", z)
    assert len(found) == 3 and len(set(found)) == 1
    assert validation_losses(store, tmp_path / "two", z, seed=1) == found


def test_validation_reads_rows_of_all_documents(store, tmp_path):
    """Five documents of a thousand rows, of which it reads 512: wherever one is unlike the others,
    the loss tells.
    """
    z = torch.randn(5000, store.d, generator=torch.Generator().manual_seed(1))
    (plain,) = validation_losses(store, tmp_path / "plain", z, steps=4)
    for document in range(5):
        unlike = z.clone()
        unlike[1000 * document : 1000 * (document + 1)] *= 10
        (loss,) = validation_losses(store, tmp_path / str(document), unlike, steps=4)
        assert loss > 3 * plain, document


def test_how_often_one_validates_changes_nothing(store, tmp_path):
    """The trained weights, and not the averaged ones, are trained on after each validation."""
    often, seldom = (
        weights(run(store, tmp_path / str(n), lr=0.05, validate_every=n)[0]) for n in (2, 12)
    )
    assert torch.equal(often, seldom)


@pytest.mark.parametrize("beta2", [0.6, 0.99])
def test_the_second_moment_of_adamw_decays_as_asked(store, tmp_path, beta2):
    """Against torch's own AdamW over the same batches and noise."""
    settings = dataclasses.replace(
        SETTINGS, beta2=beta2, ema=0.0, clip=1e9, lr=0.01, keep=(), weight_decay=0.5
    )
    model, _ = run(store, tmp_path, settings)
    plain, given = fresh(store), batches(store)(0)
    own = {"betas": (0.9, beta2), "weight_decay": settings.weight_decay}
    optimizer = torch.optim.AdamW(plain.network.parameters(), **own)
    for step in range(settings.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, settings)
        optimizer.zero_grad()
        plain.loss(plain.normaliser(next(given)), step_generator(0, step)).backward()
        optimizer.step()
    assert torch.allclose(weights(model), weights(plain), atol=1e-5)
