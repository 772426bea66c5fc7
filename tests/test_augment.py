"""Pictures that are changed before the discriminator sees them: in both backends, in a step."""


import keras
import numpy as np
import pytest
import under_jax
from test_modern import OneDot, OnePicture

from facegen_keras import gan as gan_module
from facegen_keras.base.errors import InputError
from facegen_keras.config import RunConfig
from facegen_keras.engine.augment import change_pictures, changes_of_both, draw_changes
from facegen_keras.engine.backend import backend
from facegen_keras.gan import FaceGAN, draw_pair_changes
from facegen_keras.runs.checkpoint import Place, restore_newest, save_checkpoint
from facegen_keras.toyfaces import ToyFaces
from facegen_keras.training import train

SMALL = dict(image_size=32, width=4, latent_dim=8, batch_size=8, limit=40, redraw_epochs=0, precision="float32", augment=0.5)


def numbers(array):
    return keras.ops.convert_to_numpy(array)


def rows(count, image_size=32):
    """Changes of every kind, the same under both backends."""
    rng = np.random.default_rng(5)
    colours, distances = rng.uniform(-0.5, 0.5, (count, 3)), rng.integers(-4, 5, (count, 2))
    squares = np.concatenate([rng.integers(-8, 24, (count, 2)), rng.choice([0, image_size // 2], (count, 1))], 1)
    return np.concatenate([colours, distances, squares], 1).astype("float32")


def changed(preset):
    """Pictures under those changes, the gradient of a sum by their pixels, and what a dozen compiled updates log."""
    images, weights = np.random.default_rng(6).uniform(-1, 1, (2, 8, 32, 32, 3)).astype("float32")
    variable, changes = keras.Variable(images), rows(8)

    def total():
        pictures = change_pictures(variable, changes)
        return keras.ops.sum(weights * pictures), pictures

    [pictures], [[slopes]] = backend.differentiate(total, [[variable]])
    gan, rng = FaceGAN.from_run_config(RunConfig.preset(preset, **SMALL)), np.random.default_rng(1)
    for weight in gan.generator.variables + gan.second.variables:  # the same under both backends
        weight.assign(0.1 * rng.normal(size=weight.shape))
    networks = gan.generator, gan.second, gan.g_optimizer, gan.d_optimizer
    update = backend.compiled(lambda *inputs: gan.update_by_loss(*networks, *inputs), gan.variables + gan.optimizer.variables)
    logged = [[float(value) for value in update(images, images[:, 0, :8, 0], np.float32(1), rows(16))] for _ in range(12)]
    return numbers(pictures).tolist(), numbers(slopes).tolist(), logged


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["small", "acts"])
def test_both_backends_change_pictures_alike(preset):
    pytest.importorskip("jax")
    (pictures, slopes, logged), theirs = changed(preset), under_jax.value_of(f"test_augment.changed({preset!r})")
    np.testing.assert_allclose(theirs[0], pictures, atol=1e-5)
    np.testing.assert_allclose(theirs[1], slopes, atol=1e-5)
    np.testing.assert_allclose(theirs[2][:3], logged[:3], rtol=1e-3)
    assert np.isfinite(theirs[2]).all() and np.isfinite(logged).all()


def step_on(gan, first, last, step=None):
    """What steps on drawn faces log."""
    faces = ToyFaces(8 * last, 32)
    batches = (np.stack([faces[8 * number + place] for place in range(8)]) for number in range(first, last))
    return [[float(value) for value in (step or gan.step)(batch).values()] for batch in batches]


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("preset", ["small", "acts"])
def test_compiled_steps_stay_finite_and_each_draws_anew(preset, precision):
    gan = FaceGAN.from_run_config(RunConfig.preset(preset, **SMALL | {"precision": precision}))
    step = backend.compiled(gan.step, gan.variables + gan.optimizer.variables + gan.metrics_variables)
    assert np.isfinite(step_on(gan, 0, 12, step)).all()
    draw = backend.compiled(lambda: draw_pair_changes(8, gan.config, gan.seed_generator), [gan.seed_generator.state])
    assert not np.array_equal(numbers(draw()), numbers(draw()))


KNOWN = np.zeros((4, 1), "float32"), np.full((4, 2, 2, 3), 0.1, "float32")  # latents, real pictures


def known_update():
    """Networks whose gradients are known, their optimizers; real pictures brighter by 0.2, a quarter of each generated one cut out."""
    changes = np.float32(4 * [[0.2, 0, 0, 0, 0, 0, 0, 0]] + 4 * [[0, 0, 0, 0, 0, 1, 0, 1]])
    networks = OnePicture(), OneDot()
    optimizers = [keras.optimizers.SGD(0.001) for _ in networks]
    for network, inputs, optimizer in zip(networks, KNOWN, optimizers):
        network(inputs)
        optimizer.build(network.trainable_variables)
    return networks, optimizers, changes


def test_an_update_on_networks_whose_gradients_are_known():
    """As in `test_modern`, with changes."""
    (latents, real_images), (networks, optimizers, changes) = KNOWN, known_update()
    d_loss, g_loss, _, penalty = map(float, backend.relativistic_update(
        *networks, *optimizers, real_images, latents, 3.0, changes))
    difference = 12 * 0.3  # of the logits of a pair
    np.testing.assert_allclose([d_loss, g_loss], [np.log1p(np.exp(-difference)), np.log1p(np.exp(difference))], rtol=1e-5)
    assert penalty == 24.0, "at the changed pictures, of whose pixels none counts less"
    sigmoid = 1 / (1 + np.exp(difference))
    np.testing.assert_allclose(float(networks[1].scale), 1 - 0.001 * (-sigmoid * difference + 72), rtol=1e-6)
    np.testing.assert_allclose(float(networks[0].value), 0.001 * (1 - sigmoid) * 9, rtol=1e-5)  # nine values are seen


def test_the_article_s_update_sees_changed_pictures():
    """The same pictures and changes: logits of 3.6 and 0; nine of the twelve values of a generated picture are seen."""
    (latents, real_images), (networks, optimizers, changes) = KNOWN, known_update()
    d_loss, g_loss, *_ = map(float, backend.adversarial_update(*networks, *optimizers, real_images, latents, 1.0, changes))
    np.testing.assert_allclose([d_loss, g_loss], [0.5 * (np.log1p(np.exp(-3.6)) + np.log(2)), np.log(2)], rtol=1e-5)
    scale = 1 + 0.001 * 0.5 * 3.6 / (1 + np.exp(3.6))
    np.testing.assert_allclose(float(networks[1].scale), scale, rtol=1e-6)
    np.testing.assert_allclose(float(networks[0].value), 0.001 * 0.5 * 9 * scale, rtol=1e-5)


def test_real_and_generated_pictures_have_changes_of_their_own():
    config, seeds = RunConfig.preset("acts", **SMALL), [keras.random.SeedGenerator(3) for _ in range(2)]
    changes = numbers(draw_pair_changes(50, config, seeds[0]))
    by_hand = [numbers(draw_changes(50, 32, 0.5, seeds[1])) for _ in range(2)]
    assert np.array_equal(changes, np.concatenate(by_hand)) and not np.array_equal(*by_hand)
    pictures = np.random.default_rng(0).uniform(-1, 1, (50, 32, 32, 3)).astype("float32")
    on_real, on_fake = changes_of_both(changes)
    for function, half in zip((on_real, on_fake), by_hand):
        after = numbers(function(pictures))
        assert np.array_equal(after, numbers(change_pictures(pictures, half)))
        untouched = ~half.any(1)
        assert untouched.any() and np.array_equal(after[untouched], pictures[untouched])


def test_a_run_without_changes_draws_nothing():
    seeds = keras.random.SeedGenerator(3)
    before = numbers(seeds.state.value)
    assert draw_pair_changes(8, RunConfig.preset("acts", **SMALL | {"augment": 0.0}), seeds) is None
    assert np.array_equal(numbers(seeds.state.value), before)
    pictures = np.ones((2, 8, 8, 3))
    assert all(function(pictures) is pictures for function in changes_of_both(None))


@pytest.mark.slow
def test_steps_with_changed_pictures_go_on_exactly(tmp_path):
    config = RunConfig.preset("acts", **SMALL)
    unbroken, broken, resumed = (FaceGAN.from_run_config(config) for _ in range(3))
    step_on(unbroken, 0, 4)
    step_on(broken, 0, 2)
    save_checkpoint(broken, tmp_path, Place(1))
    restore_newest(config, tmp_path, gan=resumed)
    step_on(resumed, 2, 4)
    for one, other in zip(unbroken.variables, resumed.variables, strict=True):
        assert np.array_equal(numbers(one), numbers(other)), one.path


@pytest.mark.parametrize(("preset", "changes", "line"), [
    ("article", dict(blur=(1, 0)), "blur: expected 0,0 with loss=noisy_labels: its update .*; set blur=0,0"),
    ("small", dict(augment=1), "augment: expected none or a number from 0 up to, but not, 1")])
def test_settings_that_do_not_fit_are_refused(preset, changes, line):
    with pytest.raises(InputError, match=line):
        RunConfig.preset(preset, **changes)


@pytest.mark.slow
@pytest.mark.parametrize(("setting", "strengths"), [(None, {0.6}), (0.25, {0.25}), (0.0, set())])
def test_a_long_game_changes_pictures_unless_the_config_says_how_much(setting, strengths, tmp_path, monkeypatch):
    seen, lines = set(), []

    def noted(count, image_size, strength, *rest):
        seen.add(strength)
        return draw_changes(count, image_size, strength, *rest)

    monkeypatch.setattr(gan_module, "draw_changes", noted)
    config = RunConfig.preset("acts", **SMALL | dict(augment=setting, epochs=200, out=str(tmp_path / "run")))
    for _ in range(2):  # begun, then gone on with
        run = train(config, hours=0, report=lines.append)
    plans = [line for plan in lines for line in plan.splitlines() if line.startswith("augment=")]
    assert seen == strengths and run.config.augment == setting
    assert plans == 2 * [f"augment={strength}: the discriminator sees the pictures changed" for strength in strengths]
