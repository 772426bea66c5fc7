"""Faces that are held to the real ones they were drawn from: which, by what, and how a run keeps what it needs."""


import keras
import numpy as np
import pytest
import under_jax

from facegen_keras.base.errors import InputError
from facegen_keras.config import RunConfig
from facegen_keras.engine.backend import backend
from facegen_keras.engine.matching import at_odd_places, map_network, matching_loss
from facegen_keras.gan import FaceGAN, draw_pair_changes
from facegen_keras.runs.checkpoint import checkpoints
from facegen_keras.runs.start import load_encoder
from facegen_keras.training import train

SMALL = dict(image_size=32, width=4, latent_dim=8, batch_size=8, limit=40, precision="float32", epochs=2, redraw_epochs=1)


def numbers(array):
    return keras.ops.convert_to_numpy(array)


def game(**changes):
    return FaceGAN.from_run_config(RunConfig.preset("acts", **SMALL | changes))


def pictures(seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, (8, 32, 32, 3)).astype("float32")


@pytest.mark.parametrize("count", [1, 2, 5, 8])
def test_every_second_row_is_taken_from_the_others(count):
    rows, others = np.arange(count, dtype="float32")[:, None], -1 - np.arange(count // 2, dtype="float32")[:, None]
    expected = [-1 - place // 2 if place % 2 else place for place in range(count)]
    assert numbers(at_odd_places(rows, others)).ravel().tolist() == expected


def test_the_loss_counts_each_picture_by_its_own_size():
    real = [np.random.default_rng(0).normal(size=(3, 4, 4, 2)).astype("float32") for _ in range(2)]
    assert float(matching_loss(real, real)) == 0
    for factor in (0.5, 1.5, 3.0):
        np.testing.assert_allclose(float(matching_loss(real, [factor * maps for maps in real])), (factor - 1)**2, rtol=1e-5)
    sizes = np.float32([1, 100, 0.01])[:, None, None, None]  # of three pictures: none of them outweighs the others
    np.testing.assert_allclose(float(matching_loss([sizes * maps for maps in real], [2 * sizes * maps for maps in real])),
                               1, rtol=1e-5)
    assert np.isfinite(float(matching_loss([0 * maps for maps in real], real))), "no division by a black picture's 0"


def test_the_maps_are_those_of_the_discriminators_levels():
    gan = game()
    maps = map_network(gan.discriminator)(pictures())
    assert [side.shape[1] for side in maps] == [16, 8, 4]
    flat = keras.Model(gan.discriminator.input, gan.discriminator.get_layer("flat").output)(pictures())
    assert np.array_equal(numbers(maps[-1]).reshape(8, -1), numbers(flat))
    own = {id(weight) for weight in gan.discriminator.trainable_variables}
    assert all(id(weight) in own for weight in map_network(gan.discriminator).trainable_variables)


def gradient():
    """Of the loss by eight generated pictures, on weights that are the same under both backends."""
    gan, rng = game(), np.random.default_rng(1)
    for weight in gan.discriminator.variables:
        weight.assign(0.1 * rng.normal(size=weight.shape))
    dimmed = backend.compiled(
        lambda reals, fakes: backend.matching_gradient(gan.discriminator, reals, fakes, lambda images: 0.5 * images),
        gan.discriminator.variables)
    return numbers(dimmed(pictures(), pictures(2))).tolist()


def test_only_faces_from_latents_of_real_ones_are_held():
    by_pixels = np.abs(gradient()).sum((1, 2, 3))
    assert not by_pixels[::2].any() and by_pixels[1::2].all()


@pytest.mark.slow
def test_both_backends_agree():
    pytest.importorskip("jax")
    ours = np.array(gradient())
    np.testing.assert_allclose(np.array(under_jax.value_of("test_matching.gradient()")), ours, atol=1e-4 * np.abs(ours).max())


def test_the_gradient_is_that_of_the_loss():
    """By a difference of the loss along the gradient, after which less of it is left."""
    gan, reals, fakes = game(), pictures(), pictures(2)
    maps = map_network(gan.discriminator)

    def loss(images):
        return float(matching_loss(maps(reals[1::2]), maps(images[1::2])))

    slope = numbers(backend.matching_gradient(gan.discriminator, *map(keras.ops.convert_to_tensor, (reals, fakes)),
                                              lambda images: images))
    step = 1e-3 / np.abs(slope).max()
    expected = step * np.square(slope).sum()
    np.testing.assert_allclose(loss(fakes - 0.5 * step * slope), loss(fakes + 0.5 * step * slope) - expected, rtol=1e-3)
    assert expected > 1e-4 * loss(fakes)


def test_the_weight_moves_the_generator_and_not_the_discriminator():
    moved = {}
    for weight in (1e-6, 10.0):
        gan = game(matching=weight)
        gan.frozen_encoder.get_layer("latents").set_weights([
            0.1 * np.random.default_rng(3).normal(size=shape.shape).astype("float32")
            for shape in gan.frozen_encoder.get_layer("latents").weights])
        before = [numbers(variable) for variable in gan.frozen_encoder.variables]
        gan.step(pictures())
        assert all(map(np.array_equal, before, map(numbers, gan.frozen_encoder.variables)))
        moved[weight] = [numbers(variable) for variable in gan.discriminator.variables], [
            numbers(variable) for variable in gan.generator.trainable_variables]
    (d_little, g_little), (d_much, g_much) = moved.values()
    assert all(map(np.array_equal, d_little, d_much)) and not all(map(np.array_equal, g_little, g_much))


def test_a_pair_is_changed_alike():
    config = game(augment=0.9).config
    of_reals, of_fakes = np.split(numbers(draw_pair_changes(8, config, keras.random.SeedGenerator(3))), 2)
    assert np.array_equal(of_reals[1::2], of_fakes[1::2]) and not np.array_equal(of_reals[::2], of_fakes[::2])


@pytest.mark.usefixtures("quick_pictures")
def test_a_run_draws_by_the_encoder_that_it_keeps(tmp_path):
    run = train(RunConfig.preset("acts", **SMALL, out=str(tmp_path / "run")), report=lambda line: None)
    with np.load(checkpoints(run.directory / "checkpoints")[-1]) as file:
        kept = [file[name] for name in sorted(file) if name.startswith("frozen_encoder/")]
    encoder = load_encoder(run.directory)
    assert len(kept) == len(encoder.variables) > 0
    assert all(map(np.array_equal, kept, map(numbers, encoder.variables)))


def test_without_redrawing_or_weight_nothing_is_held():
    assert game(redraw_epochs=0).frozen_encoder is None and game(matching=0.0).frozen_encoder is None
    with pytest.raises(InputError, match="matching: expected 0 with loss=noisy_labels"):
        RunConfig.preset("article", matching=1.0)
