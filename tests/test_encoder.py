"""Runs with an encoder in the discriminator's place, and runs that begin with what they have learned."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from functools import partial

import keras
import numpy as np
import pytest
import under_jax

from facegen_keras.runs.start import load_gan
from facegen_keras.runs import start as start_module
from facegen_keras.runs.checkpoint import checkpoints
from facegen_keras.runs.folder import Run
from facegen_keras.base.errors import InputError
from facegen_keras.config import RunConfig
from facegen_keras.engine.backend import backend
from facegen_keras.engine.encoder import (
    DETAIL, PIXEL_STD, SLACK, Chain, NoisyDensity, choose_component, decoder, fit_chain, sample_codes,
    variational_loss)
from facegen_keras.faces import load_faces
from facegen_keras.gan import FaceGAN
from facegen_keras.training import train

SMALL = dict(image_size=32, width=4, latent_dim=8, components=3, batch_size=8, limit=40, precision="float32")
pytestmark = pytest.mark.usefixtures("quick_pictures")
VARIATIONAL = SMALL | dict(loss="variational", gamma=(0, 0), g_learning_rate=1e-3, d_learning_rate=1e-3)


def quiet(line):
    pass


def arrays(variables):
    return [keras.ops.convert_to_numpy(variable) for variable in variables]


def batch():
    rng = np.random.default_rng(0)
    return rng.uniform(-1, 1, (8, 32, 32, 3)).astype("float32"), rng.normal(size=(8, 8)).astype("float32")


def updates():
    "What four updates on a batch give, and where they lead."
    gan = FaceGAN.from_run_config(RunConfig.preset("small", **VARIATIONAL))
    rng = np.random.default_rng(1)
    for variable in gan.generator.variables + gan.second.variables:  # the same under both backends
        variable.assign(0.1 * rng.normal(size=variable.shape))
    seen = [[float(value) for value in gan.update(*batch(), 1.0)] for _ in range(4)]
    variables = gan.generator.variables + gan.second.variables
    sums = [float(np.abs(array).sum()) for array in arrays(variables)]
    return seen, sums, gan.fit(batch()[0], batch_size=8, epochs=3, verbose=0).history["reconstruction_loss"]  # compiled


@pytest.mark.slow
def test_the_loss_is_what_its_page_says():
    """By hand: one Gaussian is the prior, so that the divergence is a textbook's."""
    gan = FaceGAN.from_run_config(RunConfig.preset("small", **VARIATIONAL | {"components": 1}))
    mixture = gan.generator.get_layer("mixture")
    for name, value in (("means", 0.0), ("log_scales", 0.0)):  # a standard normal one
        variable = getattr(mixture, name)
        variable.assign(np.full(variable.shape, value))
    images = np.repeat(batch()[0][:1], 4_000, 0)
    noise = np.random.default_rng(0).normal(size=(4_000, 8)).astype("float32")
    loss, error, divergence = map(float, variational_loss(gan.generator, gan.encoder, images, noise))
    means, log_variances = np.split(arrays([gan.encoder(images[:1])])[0][0], 2)
    textbook = 0.5 * (means**2 + np.exp(log_variances) - 1 - log_variances).sum()
    assert divergence == pytest.approx(textbook, abs=0.3)  # by one sample a face
    assert loss == pytest.approx(error + PIXEL_STD**2 * divergence, rel=1e-5)
    codes = (means + np.exp(log_variances / 2) * noise).astype("float32")
    errors = arrays([decoder(gan.generator)(codes[:100])])[0].astype(float) - images[:100]
    padded = np.pad(errors, ((0, 0), (1, 1), (1, 1), (0, 0)))
    counts = np.pad(np.ones((32, 32)), 1)
    sums, neighbours = (sum(array[..., y:y + 32, x:x + 32] for y in range(3) for x in range(3)) for array in (
        padded.transpose(0, 3, 1, 2), counts))
    fine = errors - (sums / neighbours).transpose(0, 2, 3, 1)
    by_hand = 0.5 * (errors**2 + DETAIL * fine**2).sum((1, 2, 3)).mean()
    assert error == pytest.approx(by_hand, rel=0.02)


@pytest.mark.slow
def test_both_backends_make_the_same_updates():
    pytest.importorskip("jax")
    code = "import json, test_encoder; print(json.dumps(test_encoder.updates()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=os.path.dirname(__file__),
                          env=under_jax.environment())
    assert done.returncode == 0, done.stderr
    (seen, sums, losses), (jax_seen, jax_sums, jax_losses) = updates(), json.loads(done.stdout.splitlines()[-1])
    np.testing.assert_allclose(jax_seen, seen, rtol=1e-4)
    np.testing.assert_allclose(jax_losses, losses, rtol=0.02)  # other noise
    np.testing.assert_allclose(jax_sums, sums, rtol=1e-3)
    assert losses[-1] < seen[-1][0]
    assert seen[-1][0] < seen[0][0], "it learns"


def curved_codes(count, seed):
    """A number, its square with a coin's sign, and one that has nothing to do with either."""
    rng = np.random.default_rng(seed)
    first, other = rng.normal(size=(2, count))
    second = first**2 * rng.choice([-1, 1], count) + 0.1 * rng.normal(size=count)
    return np.stack([5 + 10 * first, second, other], 1).astype("float32")


@pytest.mark.slow
def test_a_chain_learns_what_depends_on_what():
    keras.utils.set_random_seed(0)
    chain, codes = Chain(4, trainable=False), curved_codes(5_000, 0)
    chain.build((None, 3))
    fit_chain(chain, codes, seed=0, passes=80)
    assert not chain.trainable
    drawn = arrays([chain(np.random.default_rng(1).normal(size=(5_000, 3)).astype("float32"))])[0]
    np.testing.assert_allclose(drawn.mean(0), codes.mean(0), atol=0.5)
    np.testing.assert_allclose(drawn.std(0), codes.std(0), rtol=0.1)
    first = (drawn[:, 0] - 5) / 10
    off = np.abs(np.abs(drawn[:, 1]) - first**2)
    assert np.quantile(off, 0.8) < 0.6, "the second number is on one of its two branches"
    shuffled = np.abs(np.abs(np.random.default_rng(2).permutation(drawn[:, 1])) - first**2)
    assert np.quantile(shuffled, 0.8) > 1.2, "which says something"
    assert 0.4 < (drawn[:, 1] > 0).mean() < 0.6
    assert abs(np.corrcoef(drawn[:, 2], drawn[:, 0])[0, 1]) < 0.1


@pytest.mark.slow
def test_a_chain_draws_from_the_density_that_it_gives():
    """Chances of boxes, from the density on a grid and from codes, of weights that nobody has fitted."""
    keras.utils.set_random_seed(0)
    chain = Chain(3)
    chain.build((None, 2))
    for variable in chain.trainable_variables:
        variable.assign(arrays([variable])[0] + 0.3 * np.random.default_rng(3).normal(size=variable.shape) * (
            variable.shape[-1] != 512))
    chain.centre.assign([1, -1])
    turn = np.array([[0.6, 0.8], [-0.8, 0.6]]) * [[2.0], [0.5]]
    chain.axes.assign(turn)
    middles = np.arange(-29.95, 30, 0.1)
    grid = np.stack(np.meshgrid(middles, middles, indexing="ij"), -1).reshape(-1, 2).astype("float32")
    density = np.exp(arrays([chain.log_density(grid)])[0]).reshape(600, 600) / (2 * np.pi) / abs(np.linalg.det(turn))
    assert density.sum() * 0.01 == pytest.approx(1, abs=0.02)
    codes = arrays([chain(np.random.default_rng(1).normal(size=(40_000, 2)).astype("float32"))])[0]
    for x, y in ((0, 0), (1, -1), (-1, 1), (2, 0)):
        inside = density[middles < x][:, middles < y].sum() * 0.01
        assert ((codes < [x, y]).all(1)).mean() == pytest.approx(inside, abs=0.01)


def test_codes_get_noise_while_a_chain_is_fitted_and_only_then():
    chain, lengths = Chain(1), np.array([3.0, 1.0], "float32")
    chain.build((None, 2))
    chain.axes.assign(np.diag(lengths))
    chain.log_density = lambda codes: codes
    density, codes = NoisyDensity(chain, seed=0), np.full((20_000, 2), 5.0, "float32")
    np.testing.assert_allclose(arrays([density(codes, training=True)])[0].std(0), SLACK * lengths, rtol=0.03)
    assert np.array_equal(arrays([density(codes)])[0], codes)


def test_a_chain_is_saved_with_its_generator(tmp_path):
    gan = FaceGAN.from_run_config(RunConfig.preset("small", **SMALL, start="any"))
    gan.generator.save(tmp_path / "generator.keras")
    copy = keras.models.load_model(tmp_path / "generator.keras")
    assert np.array_equal(arrays([copy(batch()[1])])[0], arrays([gan.generator(batch()[1])])[0])


def test_codes_are_drawn_as_training_draws_them():
    gan = FaceGAN.from_run_config(RunConfig.preset("small", **VARIATIONAL))
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), "uint8")
    codes = sample_codes(gan.encoder, [images] * 2_000, seed=0).reshape(2_000, 2, 8)
    means, log_variances = np.split(arrays([gan.encoder(images / np.float32(127.5) - 1)])[0], 2, axis=1)
    np.testing.assert_allclose(codes.mean(0), means, atol=0.15 * np.exp(log_variances / 2).max())
    np.testing.assert_allclose(codes.std(0), np.exp(log_variances / 2), rtol=0.1)
    assert np.array_equal(codes.reshape(-1, 8), sample_codes(gan.encoder, [images] * 2_000, seed=0))


def last_state(out):
    with np.load(checkpoints(out / "checkpoints")[-1]) as file:
        return dict(file)


@pytest.fixture(scope="module")
def first_run(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "variational"
    train(RunConfig.preset("small", **VARIATIONAL, epochs=2, out=str(out)), report=quiet)
    return out


@pytest.mark.slow
def test_a_run_with_an_encoder_resumes_exactly(first_run, tmp_path):
    config = RunConfig.preset("small", **VARIATIONAL, epochs=2, out=str(tmp_path / "broken"))
    assert train(config, hours=0, report=quiet).status["state"] == "paused"
    lines = []
    assert train(config, report=lines.append).status["state"] == "finished"
    assert (tmp_path / "broken/log.jsonl").read_bytes() == (first_run / "log.jsonl").read_bytes()
    broken, unbroken = last_state(tmp_path / "broken"), last_state(first_run)
    assert broken.keys() == unbroken.keys()
    assert all(np.array_equal(broken[name], unbroken[name]) for name in unbroken)
    told = [line for line in lines if "reconstruction_loss" in line]
    assert told and "divergence" in told[-1] and "told right" not in told[-1]
    assert load_gan(first_run).generate(4).shape == (4, 32, 32, 3)


@pytest.mark.slow
def test_a_gan_begins_with_what_an_encoder_has_taught(first_run, tmp_path, monkeypatch):
    monkeypatch.setattr(start_module, "fit_chain", partial(fit_chain, passes=2_000))
    config = RunConfig.preset("small", **SMALL, epochs=1, start=str(first_run), out=str(tmp_path / "gan"),
                              g_learning_rate=1e-9, final_rate=1.0)
    lines = []
    run = train(config, report=lines.append)
    assert run.status["state"] == "finished" and lines[0].startswith("learning the codes that")
    taught, gan = load_gan(first_run), load_gan(tmp_path / "gan")
    faces = load_faces("toy", 32, limit=40).batches(8, flip=config.flip)
    codes = sample_codes(taught.encoder, faces, seed=0)
    for old, new in zip(taught.ema_generator.layers[2:], gan.generator.layers[2:], strict=True):
        for before, after in zip(arrays(old.variables), arrays(new.variables), strict=True):
            np.testing.assert_allclose(after, before, atol=1e-6)
    chain = gan.generator.get_layer("mixture")
    np.testing.assert_allclose(*arrays([chain.centre, codes.mean(0)]), atol=1e-5)
    assert float(np.mean(chain.log_density(codes))) > 2.0, "fitted to these forty codes"
    frozen, generator = (arrays(network.variables) for network in (chain, gan.generator))
    gan.g_optimizer.learning_rate = 1e-2
    gan.update(*batch(), 1.0)
    assert all(map(np.array_equal, frozen, arrays(chain.variables)))
    moved = [np.abs(old - new).max() for old, new in zip(generator, arrays(gan.generator.variables))]
    assert sum(step > 5e-3 for step in moved) == len(generator) - len(frozen), "all but the chain"


@pytest.mark.slow
@pytest.mark.parametrize(("changes", "line"), [
    (dict(width=8), "width, with start=.*: expected 4, got 8; set width as in that run"),
    (dict(components=0), "components, with start=.*: expected at least 1, got 0; set components=8"),
    (dict(loss="variational", gamma=(0, 0), components=4), "components, with start=.*: expected 3, got 4"),
    (dict(start="nowhere"), "start: expected a folder that holds a run with a checkpoint, got 'nowhere'")])
def test_another_generator_is_refused_before_anything_is_written(first_run, tmp_path, changes, line):
    config = RunConfig.preset("small", **SMALL | dict(start=str(first_run), out=str(tmp_path / "gan")) | changes)
    with pytest.raises(InputError, match=line):
        train(config, report=quiet)
    assert not Run(tmp_path / "gan").exists()


@pytest.mark.slow
def test_a_generator_without_its_encoder_is_refused(first_run, tmp_path):
    shutil.copytree(first_run, tmp_path / "bare", ignore=shutil.ignore_patterns("checkpoints"))
    config = RunConfig.preset("small", **SMALL, start=str(tmp_path / "bare"), out=str(tmp_path / "gan"))
    with pytest.raises(InputError, match="start: expected a run with a checkpoint, for its encoder, got 'only"):
        train(config, report=quiet)
    assert not Run(tmp_path / "gan").exists()


@pytest.mark.parametrize("shares", [[[1.0, 0.0]], [[0.0, 1.0]], [[1e-30, 1.0]]])
def test_a_share_of_zero_leaves_numbers_and_gradients_finite(shares):
    shares, latents = keras.Variable(shares), keras.Variable([-8.0, -1.0, 0.0, 1.0, 8.0])

    def total():
        chosen, left = choose_component(latents, shares)
        return keras.ops.sum(left), chosen, left

    (chosen, left), [gradients] = backend.differentiate(total, [[shares, latents]])
    assert np.array_equal(arrays([chosen])[0].sum(1), np.ones(5))
    assert all(np.isfinite(array).all() for array in arrays([left, *gradients]))


@pytest.mark.slow
def test_a_run_cannot_begin_with_itself(first_run):
    """With --fresh that would be the end of it."""
    config = RunConfig.preset("small", **SMALL, start=str(first_run), out=str(first_run))
    with pytest.raises(InputError, match="start: expected another run than out"):
        train(config, fresh=True, report=quiet)
    assert load_gan(first_run)


@pytest.mark.slow
def test_moving_statistics_are_begun_with_as_well(tmp_path):
    demo = dict(image_size=32, width=2, batch_size=8, limit=40, epochs=1)
    train(RunConfig.preset("demo", **demo, out=str(tmp_path / "first")), report=quiet)
    second = RunConfig.preset("demo", **demo, out=str(tmp_path / "second"), start=str(tmp_path / "first"))
    train(second, hours=0, report=quiet)
    first, gan = load_gan(tmp_path / "first"), load_gan(tmp_path / "second")
    for old, new in zip(first.ema_generator.variables, gan.generator.variables, strict=True):
        if "moving_variance" in old.path:
            np.testing.assert_allclose(*arrays([new, old]), rtol=0.2)  # after one step, of one per cent


@pytest.mark.parametrize(("changes", "line"), [
    (dict(loss="relativistic", gamma=(1, 1)), "components: expected 0 with loss=relativistic and no start"),
    (dict(input_noise_range=(0, 0.1)), "input_noise_range: expected 0,0 with loss=variational"),
    (dict(networks="dcgan"), "networks: expected residual with loss=variational"),
    (dict(components=0), "components: expected at least 1 with loss=variational"),
    (dict(networks="dcgan", loss="noisy_labels"), "components: expected 0 without networks=residual"),
    (dict(gamma=(2, 1)), "gamma: expected 0,0 with loss=variational"),
    (dict(start=""), "start: expected none or a folder")])
def test_settings_that_do_not_go_together_are_refused(changes, line):
    with pytest.raises(InputError, match=line):
        dataclasses.replace(RunConfig.preset("small", **VARIATIONAL), **changes)
