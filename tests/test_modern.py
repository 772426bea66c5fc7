"""What the preset `modern` adds, and the average of generators that both presets keep."""

import dataclasses

import keras
import numpy as np
import pytest

from facegen_keras.runs.start import load_gan
from facegen_keras.runs.checkpoint import Place, save_checkpoint
from facegen_keras.runs.folder import Run
from facegen_keras.base.errors import InputError
from facegen_keras.config import RunConfig
from facegen_keras.engine.average import NUM_BATCHES, batch_norms, ema_share, weights_of
from facegen_keras.engine.backend import backend
from facegen_keras.engine.optimizers import at_step
from facegen_keras.engine.precision import DTYPES
from facegen_keras.gan import FaceGAN, generate_faces, make_networks
from facegen_keras.training import filled_in, train

SMALL = dict(image_size=32, width=4, batch_size=8, precision="float32")
pytestmark = pytest.mark.usefixtures("quick_pictures")


def images(seed=0, count=8):
    return np.random.default_rng(seed).uniform(-1, 1, (count, 32, 32, 3)).astype("float32")


def arrays(variables):
    return [keras.ops.convert_to_numpy(variable) for variable in variables]


def weights(network):
    return arrays(network.variables)


def statistics_of(network):
    return [each for norm in batch_norms(network) for each in (norm.moving_mean, norm.moving_variance)]


@pytest.mark.slow
@pytest.mark.parametrize(("preset", "redraw_epochs", "ramp"), [("article_small", 0, 0.25), ("acts", 0, 0.25), ("acts", 2, None)])
def test_the_average_is_that_of_the_weights(preset, redraw_epochs, ramp):
    gan = FaceGAN.from_run_config(RunConfig.preset(preset, **SMALL, ema_images=100, redraw_epochs=redraw_epochs,
                                                    g_learning_rate=4e-4))
    expected = arrays(weights_of(gan.generator))
    for step in range(1, 9):
        gan.step(images(step))
        share = 1 - 0.5 ** (8 / min(100, ramp * 8 * step if ramp else np.inf))  # a half-life of 100 images, at first shorter
        expected = [old + share * (new - old) for old, new in zip(expected, arrays(weights_of(gan.generator)))]
    for average, found in zip(expected, arrays(weights_of(gan.ema_generator)), strict=True):
        np.testing.assert_allclose(found, average, atol=2e-6)
    flow = sum(len(layer.weights) for layer in gan.generator.layers if layer.name.startswith("flow"))
    moved = [not np.allclose(raw, average, atol=1e-5) for raw, average in zip(arrays(weights_of(gan.generator)), expected)]
    stay = {"article_small": 3, "acts": 2 + flow}[preset]  # biases before batch norm; the layer `spread`
    assert sum(moved) >= len(moved) - stay
    made = gan.generate(4, seed=1)
    assert np.array_equal(made, generate_faces(gan.ema_generator, gan.latents(4, seed=1)))
    assert not np.array_equal(made, generate_faces(gan.generator, gan.latents(4, seed=1)))


def test_the_average_has_statistics_of_its_own(tmp_path):
    """Whenever it makes faces; a step, or a moment in which a run is saved, leaves the old ones."""
    gan = FaceGAN.from_run_config(RunConfig.preset("small", **SMALL, ema_images=100, out=str(tmp_path)))
    first = arrays(statistics_of(gan.ema_generator))
    for step in range(1, 9):
        gan.step(images(step))
    assert all(map(np.array_equal, arrays(statistics_of(gan.ema_generator)), first))
    save_checkpoint(gan, tmp_path / "checkpoints", Place(1))
    (tmp_path / "config.json").write_text(gan.config.to_json())
    faces, found = gan.generate(4, seed=1), arrays(statistics_of(gan.ema_generator))
    assert not any(map(np.array_equal, found, first)) and not gan.ema_generator.trainable_variables

    latents = gan.latents(NUM_BATCHES * gan.config.batch_size, gan.config.seed)
    network = keras.models.clone_model(gan.ema_generator)
    network.set_weights(gan.ema_generator.get_weights())
    for norm in batch_norms(network):
        norm.trainable, norm.momentum = True, 0.0
    of_batches = []
    for batch in np.split(latents, NUM_BATCHES):
        network(batch, training=True)
        of_batches.append(arrays(statistics_of(network)))
    for ours, theirs in zip(found, zip(*of_batches), strict=True):
        np.testing.assert_allclose(ours, np.mean(theirs, 0), rtol=1e-4, atol=1e-6)

    loaded = generate_faces(load_gan(tmp_path).ema_generator, gan.latents(4, seed=1))
    assert np.array_equal(loaded, faces), "what is loaded has its own already: commands use it as it is"
    for variable in statistics_of(gan.ema_generator):
        variable.assign(variable + 1)
    assert not np.array_equal(gan.generate(4, seed=1), faces), "no step since: they are not measured again"
    gan.step(images(9))
    gan.generate(1)
    assert not any(np.allclose(ours, theirs + 1) for ours, theirs in zip(arrays(statistics_of(gan.ema_generator)), found))


def test_the_half_life_is_what_the_setting_says():
    config = RunConfig.preset("acts", **SMALL, ema_images=8_000)
    assert np.isclose((1 - float(ema_share(1e9, config))) ** 1_000, 0.5, atol=1e-3)
    assert float(ema_share(1e9, dataclasses.replace(config, ema_images=0))) == 1.0


def test_without_an_average_both_generators_are_one():
    gan = FaceGAN.from_run_config(RunConfig.preset("acts", **SMALL, ema_images=0))
    for step in range(5):
        gan.step(images(step))
    for raw, average in zip(weights(gan.generator), weights(gan.ema_generator)):
        np.testing.assert_allclose(raw, average, atol=1e-7)


@pytest.mark.slow
def test_the_result_of_a_run_is_the_average(tmp_path):
    config = RunConfig.preset("acts", **SMALL, epochs=1, redraw_epochs=0, limit=64, schedule_images=64,
                              out=str(tmp_path / "run"))
    train(config, report=lambda line: None)
    gan = load_gan(config.out)
    saved = keras.saving.load_model(tmp_path / "run" / "generator.keras")
    assert all(map(np.array_equal, weights(saved), weights(gan.ema_generator)))
    assert not all(map(np.array_equal, weights(saved), weights(gan.generator)))
    line = Run(config.out).records("epoch")[0]
    assert {"d_loss", "g_loss", "d_accuracy_pairs", "penalty"} <= line.keys()


class OneDot(keras.layers.Layer):
    """A discriminator whose slope is known: the sum of the pixels, times a weight."""

    def build(self, shape):
        self.scale = self.add_weight(shape=(), initializer="ones")

    def call(self, images):
        return self.scale * keras.ops.sum(images, axis=(1, 2, 3))[:, None]


class OnePicture(keras.layers.Layer):
    """A generator that makes one value of all pixels, whatever the latents."""

    side = 2

    def build(self, shape):
        self.value = self.add_weight(shape=(), initializer="zeros")

    def call(self, latents):
        return self.value + keras.ops.zeros((len(latents), self.side, self.side, 3))


def test_an_update_on_networks_whose_gradients_are_known():
    """D = scale * (sum of 12 pixels): the slope is (scale, ..., scale), so R1 + R2 = 24 scale^2."""
    latents, real_images = np.zeros((4, 1), "float32"), np.full((4, 2, 2, 3), 0.1, "float32")
    networks = OnePicture(), OneDot()
    for network, inputs in zip(networks, (latents, real_images)):
        network(inputs)
    optimizers = [keras.optimizers.SGD(0.001) for _ in networks]
    for optimizer, network in zip(optimizers, networks):
        optimizer.build(network.trainable_variables)
    d_loss, g_loss, accuracy, penalty = map(float, backend.relativistic_update(
        *networks, *optimizers, real_images, latents, 3.0))
    difference = 1.2  # of the logits of a pair
    np.testing.assert_allclose([d_loss, g_loss], [np.log1p(np.exp(-difference)), np.log1p(np.exp(difference))], rtol=1e-5)
    assert (accuracy, penalty) == (1.0, 24.0)
    sigmoid = 1 / (1 + np.exp(difference))  # how wrong D still is
    d_gradient = -sigmoid * 1.2 + 3.0 / 2 * 2 * 24  # of the loss, and of gamma/2 * 24 scale^2
    np.testing.assert_allclose(float(networks[1].scale), 1 - 0.001 * d_gradient, rtol=1e-6)
    g_gradient = -(1 - sigmoid) * 12
    np.testing.assert_allclose(float(networks[0].value), -0.001 * g_gradient, rtol=1e-5)


class OnePixel(keras.layers.Layer):
    """A discriminator that looks at one pixel."""

    def build(self, shape):
        self.scale = self.add_weight(shape=(), initializer="ones")

    def call(self, images, training=None):
        return self.scale * images[:, 16, 16, :1]


def test_a_blur_spreads_what_the_discriminator_sees_and_what_the_generator_is_told():
    """Reals have a point of 1, which a Gaussian of 2 pixels lowers to 1 / 8 pi; fakes are even, so they stay."""
    latents, real_images = np.zeros((4, 1), "float32"), np.zeros((4, 33, 33, 3), "float32")
    real_images[:, 16, 16] = 1
    for blur in (None, 0.0, 2.0):
        networks = OnePicture(), OnePixel()
        networks[0].side = 33
        networks[0](latents), networks[1](real_images)
        optimizers = [keras.optimizers.SGD(0.1) for _ in networks]
        for optimizer, network in zip(optimizers, networks):
            optimizer.build(network.trainable_variables)
        d_loss, *_ = backend.relativistic_update(*networks, *optimizers, real_images, latents, 0.0, None, blur)
        difference = 1.0 if not blur else 1 / (8 * np.pi)
        np.testing.assert_allclose(float(d_loss), np.log1p(np.exp(-difference)), rtol=1e-4)
        np.testing.assert_allclose(float(networks[0].value), 0.1 / (1 + np.exp(-difference)), rtol=1e-4)


def test_schedules_reach_their_last_values():
    config = RunConfig.preset("acts", **SMALL, schedule_images=32, gamma=(2.0, 0.2), beta_2=(0.9, 0.99),
                              g_learning_rate=1e-3, final_rate=0.25)
    gan = FaceGAN.from_run_config(config)
    seen = []
    for step in range(7):
        seen.append((float(at_step(gan.gamma, gan.d_optimizer.iterations)), float(gan.g_optimizer.beta_2),
                     float(gan.g_optimizer.learning_rate)))
        gan.step(images(step))
    np.testing.assert_allclose(seen[0], (2.0 / 8, 0.9, 1e-3), rtol=1e-5)  # 32 pixels: an eighth of the gamma at 64
    np.testing.assert_allclose(seen[2], (1.1 / 8, 0.945, 1e-3 * 0.625), rtol=1e-4)
    np.testing.assert_allclose(seen[4:], 3 * [(0.2 / 8, 0.99, 2.5e-4)], rtol=1e-4)


def test_beta_2_reaches_adam():
    """One weight, one gradient: the second moment after a step is (1 - beta_2) times its square."""
    config = RunConfig.preset("acts", **SMALL, beta_2=(0.8, 0.99))
    gan = FaceGAN.from_run_config(config)
    before = weights(gan.generator)
    gan.step(images())
    squares = [variable for variable in gan.g_optimizer.variables if "velocity" in variable.path]
    means = [variable for variable in gan.g_optimizer.variables if "momentum" in variable.path]
    for mean, square in zip(means, squares, strict=True):  # beta_1 is 0: the mean is the gradient
        np.testing.assert_allclose(square.numpy(), 0.2 * mean.numpy() ** 2, rtol=1e-4, atol=1e-20)
    assert any(not np.array_equal(old, new) for old, new in zip(before, weights(gan.generator)))


def test_in_float16_the_slopes_are_still_taken_in_float32():
    config = RunConfig.preset("acts", **SMALL | {"precision": "float16"})
    generator, discriminator = make_networks(config)
    gan = FaceGAN.from_run_config(config)
    assert hasattr(gan.g_optimizer, "dynamic_scale") and not hasattr(gan.d_optimizer, "dynamic_scale")
    assert discriminator.get_layer("level1_conv1").dtype_policy.name == "float32"
    assert generator.get_layer("level1_conv1").dtype_policy.name == DTYPES["float16"]


def test_batch_norm_and_pairs_do_not_go_together():
    with pytest.raises(InputError, match="networks: expected residual with loss=relativistic"):
        RunConfig.preset("acts", networks="dcgan")
    with pytest.raises(InputError, match="gamma: expected 0,0 with loss=noisy_labels"):
        RunConfig.preset("acts", loss="noisy_labels")


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_a_short_run_stays_finite(precision):
    config = RunConfig.preset("acts", **SMALL | {"precision": precision}, schedule_images=160)
    gan = FaceGAN.from_run_config(config)
    step = backend.compiled(gan.step, gan.variables + gan.optimizer.variables + gan.metrics_variables)
    logs = [step(images(number)) for number in range(20)]
    assert np.isfinite([[float(value) for value in log.values()] for log in logs]).all()
    assert float(logs[-1]["penalty"]) > 0


def test_the_rate_of_redrawing_falls_along_its_own_schedule():
    def rates(redraw_images):
        gan = FaceGAN.from_run_config(RunConfig.preset("acts", **SMALL, redraw_rate=1e-3, redraw_images=redraw_images), "redraw")
        found = []
        for step in (0, 50, 100, 200):  # of 8 images
            for adam in (gan.g_optimizer, gan.d_optimizer):
                adam.iterations.assign(step)
            assert float(gan.g_optimizer.learning_rate) == float(gan.d_optimizer.learning_rate)
            found.append(round(float(gan.g_optimizer.learning_rate), 7))
        return found

    assert rates(800) == [1e-3, 6e-4, 2e-4, 2e-4], "to final_rate times itself, half-way after half of the images"
    assert rates(0) == 4 * [1e-3]


@pytest.mark.slow
def test_the_images_of_a_run_fill_in_the_schedule_and_a_run_that_redraws_can_be_loaded(tmp_path):
    config = RunConfig.preset("acts", **SMALL, limit=40, redraw_epochs=4, epochs=5, measure_images=0, out=tmp_path / "run")
    lines = []
    run = train(config, report=lines.append, hours=0)
    assert run.config.redraw_images is None and run.status["state"] == "paused"
    assert load_gan(tmp_path / "run").generate(2).shape == (2, 32, 32, 3), "while it redraws"
    assert filled_in(config, 40).redraw_images == 4 * 5 * 8
