"""The flow between latents and codes: undone exactly, learned from codes, left out where there is nothing to learn."""

import keras
import numpy as np
import pytest

import under_jax
from facegen_keras.base.errors import InputError
from facegen_keras.config import RunConfig
from facegen_keras.engine.encoder import decoder, fit_gaussian, latents_encoder, read_codes, spread_codes
from facegen_keras.engine.flow import (
    LEAST_CODES, begin_flow, copy_flow, fit_flow, flow, flow_back, hand_over, num_blocks, still)
from facegen_keras.gan import FaceGAN, make_networks
from facegen_keras.runs.shipped import generator_settings, refuse_another_generator


def forwards(latent_dim=2, blocks=4):
    latents = keras.Input((latent_dim,))
    network = keras.Model(latents, keras.layers.Dense(latent_dim, name="spread", kernel_initializer="identity")(flow(latents, blocks)))
    begin_flow(network)
    return network


def bent(network, seed=0):
    """Gives a flow something to do."""
    rng = np.random.default_rng(seed)
    for layer in network.layers:
        if layer.name.endswith(("_shift", "_stretch")):
            layer.set_weights([rng.normal(0, 0.1, weight.shape) for weight in layer.get_weights()])
    return network


def values(array):
    return np.asarray(keras.ops.convert_to_numpy(array))


def two_clouds(count, seed=0):
    """(count, 2): what no Gaussian looks like."""
    rng = np.random.default_rng(seed)
    side = rng.choice([-2.0, 2.0], count)
    return np.stack([side + rng.normal(0, 0.3, count), rng.normal(0, 1, count)], 1)


def ends():
    network = bent(forwards(5))
    return values(network(np.ones((2, 5), "float32"))).tolist()


@pytest.mark.parametrize("latent_dim", [2, 5, 8])
def test_there_and_back(latent_dim):
    network, codes = bent(forwards(latent_dim)), keras.Input((latent_dim,))
    back = keras.Model(codes, flow_back(codes, num_blocks(network))[0])
    hand_over(network, back)
    latents = np.random.default_rng(1).normal(size=(50, latent_dim)).astype("float32")
    moved = values(network(latents))
    assert np.abs(np.linalg.norm(moved, axis=1) - np.linalg.norm(latents, axis=1)).max() > 0.1, "it does something"
    np.testing.assert_allclose(values(back(moved)), latents, atol=5e-3)


def test_the_stretches_are_those_of_space():
    """Their sum is the logarithm of the determinant of the way back."""
    network, codes = bent(forwards(4)), keras.Input((4,))
    latents, stretches = flow_back(codes, num_blocks(network))
    back = keras.Model(codes, [latents, keras.ops.sum(keras.ops.concatenate(stretches, 1), 1)])
    hand_over(network, back)
    point, step = np.array([[0.3, -1.0, 0.5, 0.2]], "float32"), 1e-2
    slopes = [(values(back(point + step * side)[0]) - values(back(point - step * side)[0]))[0] / (2 * step)
              for side in np.eye(4, dtype="float32")]
    assert np.isclose(np.linalg.slogdet(np.array(slopes))[1], float(back(point)[1][0]), atol=5e-3)
    assert abs(float(back(point)[1][0])) > 0.01


def test_a_flow_learns_what_a_gaussian_cannot_be():
    network, codes = forwards(), two_clouds(4000)
    gain = fit_flow(network, codes, np.full_like(codes, 0.05), epochs=40)
    assert gain > 0.3
    drawn = values(network(np.random.default_rng(1).normal(size=(2000, 2)).astype("float32")))
    between = np.mean(np.abs(drawn[:, 0]) < 1)
    assert between < 0.2 < np.mean(np.abs(np.random.default_rng(1).normal(0, 2, 2000)) < 1)
    again = forwards()
    assert fit_flow(again, codes, np.full_like(codes, 0.05), epochs=40) == gain
    assert all(map(np.array_equal, again.get_weights(), network.get_weights())), "the same codes, the same flow"


@pytest.mark.parametrize("codes", [two_clouds(LEAST_CODES - 1), np.random.default_rng(0).normal(size=(300, 2))], ids=["few", "normal"])
def test_where_there_is_nothing_to_learn_latents_only_turn(codes):
    network = bent(forwards())
    gain = fit_flow(network, codes, np.full_like(codes, 0.01), epochs=3)
    drawn = np.random.default_rng(1).normal(size=(500, 2)).astype("float32")
    lengths = [np.linalg.norm(points, axis=1) for points in (drawn, values(network(drawn)))]
    assert gain < 0.1
    np.testing.assert_allclose(*lengths, rtol=1e-4 if gain == 0 else 0.3)
    assert len(codes) > LEAST_CODES or gain == 0


def test_an_encoder_undoes_the_flow():
    gan = FaceGAN.from_run_config(RunConfig.preset("acts", image_size=32, width=2, latent_dim=8, batch_size=4, precision="float32"), "redraw")
    rng = np.random.default_rng(0)
    faces = rng.uniform(-1, 1, (64, 32, 32, 3)).astype("float32")
    spread_codes(gan.ema_generator, *fit_gaussian(*read_codes(gan.encoder, [faces])))
    bent(gan.ema_generator)
    copy_flow(gan.ema_generator, gan.generator)
    assert all(map(np.array_equal, *([layer.get_weights()[0] for layer in network.layers if layer.name.startswith("flow")]
                                     for network in (gan.generator, gan.ema_generator))))
    latents = values(latents_encoder(gan.encoder, gan.ema_generator)(faces))
    means = read_codes(gan.encoder, [faces])[0].astype("float32")
    made = values(gan.ema_generator(latents))
    np.testing.assert_allclose(made, values(decoder(gan.ema_generator)(means)), atol=2e-3)
    assert np.abs(values(gan.ema_generator(np.zeros_like(latents))) - made).max() > 0.01
    still(gan.ema_generator)
    assert np.abs(values(gan.ema_generator(latents)) - made).max() > 1e-3, "without the flow other faces"


def test_both_backends_begin_alike():
    pytest.importorskip("jax")
    np.testing.assert_allclose(under_jax.value_of("test_flow.ends()"), ends(), rtol=1e-4, atol=1e-5)


def test_a_flow_of_another_length_is_another_generator(tmp_path):
    config = RunConfig.preset("acts", image_size=32, latent_dim=8, width=2, flow_blocks=3)
    make_networks(config)[0].save(tmp_path / "generator.keras")
    theirs = generator_settings(tmp_path / "generator.keras")
    assert theirs["flow_blocks"] == 3
    with pytest.raises(InputError, match="flow_blocks.*expected 3.*--set flow_blocks=3"):
        refuse_another_generator(theirs, RunConfig.preset("acts", image_size=32, latent_dim=8, width=2, start="run"))


def test_a_flow_is_refused_where_no_network_has_one():
    with pytest.raises(InputError, match="flow_blocks: expected 0 without networks=residual"):
        RunConfig.preset("article", flow_blocks=2)
