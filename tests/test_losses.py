"""The table of losses: a loss of one's own is a row and two functions, and no module compares the name of a loss."""

import ast
import dataclasses
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from keras import ops

from facegen_keras import FaceGAN, RunConfig, train
from facegen_keras.base.errors import TrainingDiverged
from facegen_keras.base.loss_table import LOSSES, Loss
from facegen_keras.engine.backend import backend
from facegen_keras.runs.callbacks import WriteLog
from facegen_keras.runs.checkpoint import state_variables
from facegen_keras.runs.progress import progress_line
from facegen_keras.runs.start import load_gan

PACKAGE = Path(__file__).parent.parent / "facegen_keras"
TINY = RunConfig.preset("article_small", image_size=32, width=2, latent_dim=8, batch_size=8, limit=32, epochs=1)


def hinge(logits, sign):
    """What a network pays whose logits should be beyond 1 on this side."""
    return ops.mean(ops.relu(1.0 - sign * logits))


def hinge_update(generator, discriminator, g_optimizer, d_optimizer, real_images, latents):
    """Two gradients of two losses, each by its own network's weights."""
    for optimizer, network in ((d_optimizer, discriminator), (g_optimizer, generator)):
        def loss():
            fakes = discriminator(generator(latents, training=True), training=True)
            if network is generator:
                return -ops.mean(fakes), -ops.mean(fakes)
            value = hinge(discriminator(real_images, training=True), 1.0) + hinge(fakes, -1.0)
            return value, value

        weights = [network.trainable_variables]
        (value,), (gradients,) = backend.differentiate(loss, weights)
        backend.apply(optimizer, gradients, weights[0])
        if network is discriminator:
            d_loss = value
    return d_loss, value


@pytest.fixture
def toy(monkeypatch):
    row = Loss("a loss of one's own", "discriminator", f"{__name__}:hinge_update", (4, 8), ("d_loss", "g_loss"))
    monkeypatch.setitem(LOSSES, "hinge", row)
    return row


@pytest.mark.slow
def test_a_loss_of_ones_own_is_trained(tmp_path, toy):
    config = dataclasses.replace(TINY, loss="hinge", out=tmp_path / "run")
    lines = []
    run = train(config, report=lines.append)
    assert run.status["state"] == "finished" and (run.directory / "losses.png").stat().st_size > 1000
    [epoch] = run.records("epoch")
    assert {"d_loss", "g_loss"} < epoch.keys() and np.isfinite(epoch["d_loss"])
    assert progress_line(epoch, toy, 1, 2.0).startswith("epoch   1.00/1  d_loss ")
    first, second = load_gan(run.directory), load_gan(run.directory)
    assert np.array_equal(first.generate(2), second.generate(2)) and first.discriminator is first.second


def test_a_loss_of_ones_own_is_refused_where_it_does_not_fit(toy, monkeypatch):
    monkeypatch.setitem(LOSSES, "hinge", dataclasses.replace(toy, needs=LOSSES["relativistic"].needs))
    with pytest.raises(ValueError, match="networks: expected residual with loss=hinge"):
        dataclasses.replace(TINY, loss="hinge")


def test_no_module_compares_the_name_of_a_loss():
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Compare):
                found = {each.value for each in ast.walk(node) if isinstance(each, ast.Constant)} & LOSSES.keys()
                assert not found, f"{path.name}, line {node.lineno}: compares {found}"


def test_an_encoder_is_not_called_a_discriminator():
    config = RunConfig.preset("acts", image_size=32, width=2, latent_dim=8, precision="float32")
    gan = FaceGAN.from_run_config(config, "redraw")
    with pytest.raises(AttributeError, match="redraw has no discriminator: .* its encoder"):
        gan.discriminator
    assert not any("discriminator" in name for name in state_variables(gan))


@pytest.mark.parametrize("loss", ["noisy_labels", "relativistic", "redraw"])
def test_a_loss_far_too_large_means_that_training_has_diverged(loss):
    row = LOSSES[loss]
    log = WriteLog(SimpleNamespace(steps_per_epoch=10, epoch=2, step=3))
    log.set_model(SimpleNamespace(loss_row=row))
    line = {"kind": "steps"} | dict.fromkeys(row.logged, 0.5) | {row.losses[-1]: 5e10}  # as an encoder's once was
    with pytest.raises(TrainingDiverged, match=f"{row.losses[-1]} is 5e.10 after epoch 2, step 3"):
        log.write(line)
