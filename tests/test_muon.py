"""Muon moves kernels by orthogonalised gradients, and everything else as Adam does."""

import json
import os
import subprocess
import sys

import keras
import numpy as np
import pytest

from facegen_keras.config import RunConfig
from facegen_keras.gan import AnnealedAdam, FaceGAN, Muon, backend, make_adam, orthogonalise

CONFIG = RunConfig.preset("small", optimizer="muon", image_size=32, width=4, latent_dim=8, precision="float32",
                          beta_1=0.9, beta_2=(0.99, 0.99), final_rate=1.0)


def array(variable):
    return keras.ops.convert_to_numpy(variable)


def network():
    layers = keras.layers
    net = keras.Sequential([keras.Input((8, 8, 3)), layers.Conv2D(5, 3), layers.Flatten(), layers.Dense(4)])
    for variable in net.variables:
        variable.assign(0.1 * np.random.default_rng(0).normal(size=variable.shape))
    return net


def gradients(net, seed):
    rng = np.random.default_rng(seed)
    return [keras.ops.convert_to_tensor(rng.normal(size=variable.shape), "float32") for variable in net.variables]


@pytest.mark.parametrize("shape", [(12, 12), (30, 7), (7, 30), (5, 1)])
def test_singular_values_become_about_one(shape):
    matrix = np.random.default_rng(0).normal(size=shape).astype("float32")
    values = np.linalg.svd(array(orthogonalise(keras.ops.convert_to_tensor(matrix))), compute_uv=False)
    assert 0.3 < values.min() and values.max() < 1.3
    scaled = array(orthogonalise(keras.ops.convert_to_tensor(1e3 * matrix)))
    np.testing.assert_allclose(scaled, array(orthogonalise(keras.ops.convert_to_tensor(matrix))), atol=1e-3)


def test_kernels_move_as_the_formula_says():
    net = network()
    muon = make_adam(net, 0.01, CONFIG)
    before, mean = array(net.layers[0].kernel), 0.0
    for seed in range(3):
        grads = gradients(net, seed)
        backend.apply(muon, grads, net.trainable_variables)
        grad = array(grads[0])
        mean = 0.95 * mean + grad
        ahead = (grad + 0.95 * mean).reshape(27, 5)
        step = array(orthogonalise(keras.ops.convert_to_tensor(ahead)))
        before = before - 0.01 * 0.2 * np.sqrt(27) * step.reshape(3, 3, 3, 5)
    np.testing.assert_allclose(array(net.layers[0].kernel), before, atol=1e-5)


def test_the_rest_moves_as_adam_moves_it():
    ours, theirs = network(), network()
    muon, adam = make_adam(ours, 0.01, CONFIG), keras.optimizers.Adam(0.01, 0.9, 0.99, epsilon=CONFIG.epsilon)
    for seed in range(3):
        backend.apply(muon, gradients(ours, seed), ours.trainable_variables)
        adam.apply(gradients(theirs, seed), theirs.trainable_variables)
    for mine, other in zip(ours.variables, theirs.variables):
        same = np.allclose(array(mine), array(other), atol=1e-5)
        assert same == (mine.name != "kernel"), mine.path


def test_it_is_a_choice():
    assert type(make_adam(network(), 0.01, CONFIG)) is Muon
    assert type(make_adam(network(), 0.01, RunConfig.preset("small"))) is AnnealedAdam


def updates():
    gan = FaceGAN.from_run_config(CONFIG)
    rng = np.random.default_rng(1)
    for variable in gan.generator.variables + gan.discriminator.variables:  # the same under both backends
        variable.assign(0.1 * rng.normal(size=variable.shape))
    images, latents = rng.uniform(-1, 1, (8, 32, 32, 3)).astype("float32"), rng.normal(size=(8, 8)).astype("float32")
    seen = [[float(value) for value in gan.update(images, latents, 1.0)] for _ in range(3)]
    return seen, [float(np.abs(array(variable)).sum()) for variable in gan.generator.variables]


def test_both_backends_make_the_same_steps():
    pytest.importorskip("jax")
    code = "import json, test_muon; print(json.dumps(test_muon.updates()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=os.path.dirname(__file__),
                          env={**os.environ, "KERAS_BACKEND": "jax"})
    assert done.returncode == 0, done.stderr
    for ours, theirs in zip(updates(), json.loads(done.stdout.splitlines()[-1])):
        np.testing.assert_allclose(theirs, ours, rtol=2e-3, atol=1e-4)
