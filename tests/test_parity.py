"""The article's graph, recorded once on formula weights, against this package's networks, losses and step.

`golden/article_seed0.json` holds figures of the original graph (TensorFlow in graph mode, CPU). Weights come
from a formula, so the file need not contain them. Losses and logits must agree to 1e-4, gradient norms to 1e-3
(relative). Biases before batch norm are left out where gradients are compared: theirs are rounding noise.
The same must hold under both backends: KERAS_BACKEND=jax pytest tests/test_parity.py
"""

import json
from pathlib import Path

import keras
import numpy as np
import pytest

from facegen_keras.config import RunConfig
from facegen_keras.engine.backend import backend
from facegen_keras.gan import FaceGAN
from facegen_keras.losses import discriminator_loss, generator_loss

pytestmark = pytest.mark.slow
GOLDEN = json.loads((Path(__file__).parent / "golden" / "article_seed0.json").read_text())
NAMES = [name for _, name, _ in GOLDEN["variables"]]


def formula_weights(index, name, shape):
    u = np.random.default_rng([0, index]).uniform(-1, 1, shape)
    if name.endswith(("moving_mean:0", "moving_variance:0")):
        return np.full(shape, float(name.endswith("variance:0")))
    if name.endswith("gamma:0"):
        return 1 + 0.1 * u
    if name.endswith(("beta:0", "bias:0")):
        return 0.01 * u
    return u * (np.sqrt(6 / sum(shape)) if len(shape) == 2 else 0.02 * np.sqrt(3))


def uniform(index, shape):
    return np.random.default_rng([0, index]).uniform(-1, 1, shape).astype("float32")


def by_name(gan):
    """Variables under their names in the original graph: both list kernel, bias, gamma, beta, mean, variance."""
    weights = [w for network in (gan.generator, gan.discriminator) for layer in network.layers for w in layer.weights]
    assert [tuple(w.shape) for w in weights] == [tuple(shape) for _, _, shape in GOLDEN["variables"]]
    return dict(zip(NAMES, weights))


def is_useless_bias(name):
    """A bias that batch norm takes away again."""
    return name.endswith("bias:0") and "conv" in name


@pytest.fixture(scope="module")
def latents():
    return uniform(100, (4, 100))


@pytest.fixture(scope="module")
def real_images():
    return uniform(101, (4, 128, 128, 3))


@pytest.fixture(scope="module")
def gan_once():
    return FaceGAN.from_run_config(RunConfig.preset("article", precision="float32"))


@pytest.fixture
def gan(gan_once):
    """With the formula's weights, before its first step."""
    for (index, name, shape), weight in zip(GOLDEN["variables"], by_name(gan_once).values()):
        weight.assign(formula_weights(index, name, shape).astype("float32"))
    for optimizer in (gan_once.d_optimizer, gan_once.g_optimizer):
        if int(optimizer.iterations):
            moments = [variable for variable in optimizer.variables if "momentum" in variable.path or "velocity" in variable.path]
            for variable in (optimizer.iterations, *moments):
                variable.assign(keras.ops.zeros_like(variable))
    return gan_once


def losses(gan, real_images, latents):
    fake_images = gan.generator(latents, training=True)
    real_logits = gan.discriminator(real_images, training=True)
    fake_logits = gan.discriminator(fake_images, training=True)
    return discriminator_loss(real_logits, fake_logits, GOLDEN["label"]), generator_loss(fake_logits), real_logits, fake_logits


def gradients(function, place, variables):
    """All values of a function without arguments, and the gradient of one of them with respect to Keras variables."""
    if keras.backend.backend() == "tensorflow":
        with backend.engine.GradientTape() as tape:
            values = function()
        return values, tape.gradient(values[place], variables)

    def of_arrays(arrays):
        with keras.StatelessScope(zip(variables, arrays)):
            values = function()
        return values[place], values
    found, values = backend.engine.grad(of_arrays, has_aux=True)([variable.value for variable in variables])
    return values, found


def test_parameter_counts_are_the_articles(gan):
    assert gan.generator.count_params() == 24_036_739
    assert gan.discriminator.count_params() == 17_488_257


def test_inference_matches(gan, latents):
    images = np.array(gan.generator(latents, training=False))
    recorded = GOLDEN["before"]["generated_inference"]
    np.testing.assert_allclose(images.ravel()[:8], recorded["first8"], atol=1e-6)
    np.testing.assert_allclose([images.mean(), images.std()], [recorded["mean"], recorded["std"]], rtol=1e-4)


def test_losses_logits_and_gradient_norms_match(gan, real_images, latents):
    before, weights = GOLDEN["before"], by_name(gan)
    for place, recorded in enumerate((GOLDEN["d_loss_gradients"], GOLDEN["g_loss_gradients"])):
        (d_loss, g_loss, real_logits, fake_logits), found = gradients(
            lambda: losses(gan, real_images, latents), place, [weights[name] for name in recorded])
        np.testing.assert_allclose([float(d_loss), float(g_loss)], [before["d_loss"], before["g_loss"]], rtol=1e-4)
        np.testing.assert_allclose(np.ravel(real_logits), before["real_logits"], atol=1e-4)
        np.testing.assert_allclose(np.ravel(fake_logits), before["fake_logits"], atol=1e-4)
        for name, gradient in zip(recorded, found, strict=True):
            if not is_useless_bias(name):
                norm = np.linalg.norm(np.array(gradient, "float64"))
                np.testing.assert_allclose(norm, recorded[name]["norm"], rtol=1e-3, err_msg=name)


@pytest.mark.parametrize("compiled", [False, True])
def test_the_step_matches(gan, real_images, latents, compiled):
    """D's Adam step, then G's against the updated D: the recorded weights, and the losses after both."""
    update = backend.compiled(gan.update, gan.variables + gan.optimizer.variables) if compiled else gan.update
    d_loss, g_loss, *_ = update(real_images, latents, GOLDEN["label"])
    np.testing.assert_allclose(float(d_loss), GOLDEN["before"]["d_loss"], rtol=1e-4)
    np.testing.assert_allclose(float(g_loss), GOLDEN["after_d_step_losses"]["g_loss"], rtol=1e-3)  # the updated D

    weights = by_name(gan)
    for name, recorded in {**GOLDEN["after_d_step"], **GOLDEN["after_g_step"]}.items():
        if not is_useless_bias(name):
            value = keras.ops.convert_to_numpy(weights[name])
            np.testing.assert_allclose([value.mean(), value.std()], [recorded["mean"], recorded["std"]],
                                       rtol=1e-3, atol=1e-6, err_msg=name)
            np.testing.assert_allclose(value.ravel()[:8], recorded["first8"], rtol=1e-3, atol=2e-6, err_msg=name)

    d_loss, g_loss, *_ = losses(gan, real_images, latents)
    np.testing.assert_allclose(float(d_loss), GOLDEN["after_g_step_losses"]["d_loss"], rtol=1e-2)
