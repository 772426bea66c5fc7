"""Noise and label factor of a compiled `fit`: fresh at each step as described, one draw a session as run."""

import dataclasses
import random

import keras
import numpy as np
import pytest

from facegen_keras.config import RunConfig
from facegen_keras.gan import FaceGAN

CONFIG = RunConfig.preset("article_small", image_size=32, width=4, batch_size=4)
NUM_STEPS = 6


class DrawingGAN(FaceGAN):
    """Draws in each step of a compiled `fit`, and trains nothing, which would take long to compile."""

    def update(self, real_images, latents, label_factor):
        return [keras.ops.zeros(()) for _ in self.trackers]


class PythonRandomGAN(DrawingGAN):
    """The article's mistake, inside a compiled step: Python draws while the graph is traced."""

    def draw_noise(self):
        noise_std, label_factor = random.uniform(0.0, 0.1), random.uniform(0.9, 1.0)
        return keras.ops.convert_to_tensor(noise_std), keras.ops.convert_to_tensor(label_factor)


class Record(keras.callbacks.Callback):
    def on_train_begin(self, logs=None):
        self.draws = []

    def on_train_batch_end(self, batch, logs=None):
        self.draws.append((float(logs["noise_std"]), float(logs["label_factor"])))


def draws_of_a_fit(model_class=DrawingGAN, noise="as_described", seed=0):
    gan = model_class.from_run_config(dataclasses.replace(CONFIG, noise=noise, seed=seed))
    images = np.random.default_rng(0).uniform(-1, 1, (4, 32, 32, 3)).astype("float32")
    batches = ((images,) for _ in range(NUM_STEPS))
    gan.fit(batches, steps_per_epoch=NUM_STEPS, shuffle=False, verbose=0, callbacks=[record := Record()])
    assert len(record.draws) == NUM_STEPS
    return record.draws


def assert_fresh_at_each_step(draws):
    for values in zip(*draws):
        assert len(set(values)) == NUM_STEPS, f"drawn once for many steps: {values}"


def test_as_described_draws_at_each_step_within_the_ranges():
    draws = draws_of_a_fit()
    assert_fresh_at_each_step(draws)
    assert all(0.0 <= noise_std < 0.1 and 0.9 <= label_factor < 1.0 for noise_std, label_factor in draws)


def test_as_run_keeps_one_draw_a_session_that_depends_on_the_seed():
    draws = draws_of_a_fit(noise="as_run")
    assert len(set(draws)) == 1
    assert 0.0 <= draws[0][0] < 0.1 and 0.9 <= draws[0][1] < 1.0
    assert draws_of_a_fit(noise="as_run", seed=1)[0] != draws[0]


def test_a_version_with_pythons_random_is_caught():
    with pytest.raises(AssertionError, match="drawn once for many steps"):
        assert_fresh_at_each_step(draws_of_a_fit(PythonRandomGAN))


@pytest.mark.parametrize("setting", ["real_label_range", "input_noise_range"])
def test_the_draws_reach_the_loss(setting):
    """What a step reports as drawn is what it trains with: another range, the same seed, another d_loss."""
    images = np.random.default_rng(0).uniform(-1, 1, (4, 32, 32, 3)).astype("float32")
    losses = []
    for value in (0.0, 1.0):
        gan = FaceGAN.from_run_config(dataclasses.replace(CONFIG, **{setting: (value, value)}))
        losses.append(float(gan.step(images)["d_loss"]))
    assert abs(losses[0] - losses[1]) > 1e-3
