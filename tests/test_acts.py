"""A run in three acts: it redraws, spreads the codes, and plays; and runs that begin with what another has learned."""

import dataclasses
import shutil
import time
import types

import keras
import numpy as np
import pytest
import under_jax
from many_steps import take_steps

from facegen_keras.base.errors import InputError, TrainingDiverged
from facegen_keras.config import RunConfig
from facegen_keras.engine.encoder import (
    DETAIL, FIRST_LOG_VARIANCE, PIXEL_STD, begin_game, decoder, fit_gaussian, latents_encoder, read_codes, redraw_loss,
    spread_codes)
from facegen_keras.faces import load_faces, to_float
from facegen_keras.gan import FaceGAN
from facegen_keras.runs import callbacks as callbacks_module
from facegen_keras.runs.checkpoint import checkpoints, place_in_name
from facegen_keras.runs.folder import Run
from facegen_keras.runs.start import begin_with_another, load_gan
from facegen_keras import training as training_module
from facegen_keras.training import train

SMALL = dict(image_size=32, width=4, latent_dim=8, batch_size=8, limit=40, precision="float32")
ACTS = SMALL | dict(epochs=4, redraw_epochs=2, blur=(1.0, 0.0))
pytestmark = pytest.mark.usefixtures("quick_pictures")


def quiet(line):
    pass


def arrays(variables):
    return [keras.ops.convert_to_numpy(variable) for variable in variables]


def redrawing_gan():
    return FaceGAN.from_run_config(RunConfig.preset("acts", **ACTS), "redraw")


def batch():
    rng = np.random.default_rng(0)
    return rng.uniform(-1, 1, (8, 32, 32, 3)).astype("float32"), rng.normal(size=(8, 8)).astype("float32")


def updates():
    "What four updates on a batch give, and where they lead."
    gan = redrawing_gan()
    rng = np.random.default_rng(1)
    for variable in gan.generator.trainable_variables + gan.second.variables:  # the same under both backends
        variable.assign(0.1 * rng.normal(size=variable.shape))
    seen = [[float(value) for value in gan.update(*batch(), 1.0)] for _ in range(4)]
    variables = gan.generator.variables + gan.second.variables
    sums = [float(np.abs(array).sum()) for array in arrays(variables)]
    return seen, sums, gan.fit(batch()[0], batch_size=8, epochs=3, verbose=0).history["reconstruction_loss"]  # compiled


def test_the_loss_is_what_its_page_says():
    """By hand: the errors in NumPy, the divergence from a standard normal as textbooks have it."""
    gan, (images, noise) = redrawing_gan(), batch()
    loss, error, divergence = map(float, redraw_loss(gan.generator, gan.encoder, images, noise))
    means, log_variances = np.split(arrays([gan.encoder(images)])[0], 2, axis=1)
    textbook = 0.5 * (means**2 + np.exp(log_variances) - 1 - log_variances).sum(1).mean()
    assert divergence == pytest.approx(textbook, rel=1e-4)
    assert loss == pytest.approx(error + PIXEL_STD**2 * divergence, rel=1e-5)
    codes = (means + np.exp(log_variances / 2) * noise).astype("float32")
    errors = arrays([decoder(gan.generator)(codes)])[0].astype(float) - images
    padded = np.pad(errors, ((0, 0), (1, 1), (1, 1), (0, 0)))
    counts = np.pad(np.ones((32, 32)), 1)
    sums, neighbours = (sum(array[..., y:y + 32, x:x + 32] for y in range(3) for x in range(3)) for array in (
        padded.transpose(0, 3, 1, 2), counts))
    fine = errors - (sums / neighbours).transpose(0, 2, 3, 1)
    assert error == pytest.approx(0.5 * (errors**2 + DETAIL * fine**2).sum((1, 2, 3)).mean(), rel=1e-4)


@pytest.mark.slow
def test_both_backends_make_the_same_updates():
    pytest.importorskip("jax")
    (seen, sums, losses), (jax_seen, jax_sums, jax_losses) = updates(), under_jax.value_of("test_acts.updates()")
    np.testing.assert_allclose(jax_seen, seen, rtol=1e-4)
    np.testing.assert_allclose(jax_losses, losses, rtol=0.02)  # other noise
    np.testing.assert_allclose(jax_sums, sums, rtol=1e-3)
    assert seen[-1][0] < seen[0][0], "it learns"


def test_spread_latents_have_the_mean_and_covariance_of_codes():
    gan = redrawing_gan()
    faces = np.random.default_rng(0).uniform(-1, 1, (300, 32, 32, 3)).astype("float32")
    means, log_variances = np.split(arrays([gan.encoder(faces)])[0], 2, axis=1)
    mean, axes = fit_gaussian(*read_codes(gan.encoder, [faces]))
    spread_codes(gan.generator, mean, axes)
    latents = np.random.default_rng(1).normal(size=(100_000, 8)).astype("float32")
    codes = arrays([keras.Model(gan.generator.input, gan.generator.get_layer("spread").output)(latents)])[0]
    expected = np.cov(means.T) + np.diag(np.exp(log_variances).mean(0))
    np.testing.assert_allclose(codes.mean(0), means.mean(0), atol=0.02)
    np.testing.assert_allclose(np.cov(codes.T), expected, atol=0.03)
    widths = np.linalg.norm(axes, axis=1)
    assert (np.diff(widths) <= 1e-6).all(), "the widest first"


def test_the_kept_encoder_answers_with_latents():
    """From a face's latents the generator makes what the decoder makes of its code."""
    gan, (images, _) = redrawing_gan(), batch()
    spread_codes(gan.ema_generator, *fit_gaussian(*read_codes(gan.encoder, [np.repeat(images, 8, 0) + 0.1 * np.random.default_rng(
        0).normal(size=(64, 32, 32, 3)).astype("float32")])))
    codes = arrays([gan.encoder(images)])[0][:, :8]
    latents = latents_encoder(gan.encoder, gan.ema_generator)(images)
    for made, expected in zip(arrays([gan.ema_generator(latents)]), arrays([decoder(gan.ema_generator)(codes)])):
        np.testing.assert_allclose(made, expected, atol=1e-3)


def test_the_game_begins_where_the_redrawing_ended():
    redrawn, (images, latents) = redrawing_gan(), batch()
    for _ in range(2):
        redrawn.step(images)
    spread_codes(redrawn.ema_generator, np.full(8, 0.5, "float32"), 2 * np.eye(8, dtype="float32"))
    game = FaceGAN.from_run_config(redrawn.config)
    logit = arrays(game.discriminator.get_layer("logit").variables)
    begin_game(game, redrawn)
    for network in (game.generator, game.ema_generator):
        assert np.array_equal(arrays([network(latents)])[0], arrays([redrawn.ema_generator(latents)])[0])
    flat = [keras.Model(network.input, network.get_layer("flat").output)(images) for network in (
        game.discriminator, redrawn.encoder)]
    assert np.array_equal(*arrays(flat)) and np.abs(arrays(flat)[0]).max() > 0
    assert all(map(np.array_equal, logit, arrays(game.discriminator.get_layer("logit").variables)))
    frozen = arrays(game.generator.get_layer("spread").variables)
    game.update(images, latents, 1.0)
    assert all(map(np.array_equal, frozen, arrays(game.generator.get_layer("spread").variables)))


def last_state(out):
    with np.load(checkpoints(out / "checkpoints")[-1]) as file:
        return dict(file)


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "whole"
    lines = []
    train(RunConfig.preset("acts", **ACTS, out=str(out)), report=lines.append)
    return out, lines


@pytest.mark.slow
def test_the_acts_follow_each_other(whole_run):
    out, lines = whole_run
    run = Run(out)
    assert run.status == {"state": "finished", "epoch": 4, "step": 0, "reason": ""}
    assert ["reconstruction_loss" in line for line in run.records("epoch")] == [True, True, False, False]
    assert ["d_accuracy_pairs" in line for line in run.records("epoch")] == [False, False, True, True]
    assert sum("the game begins" in line for line in lines) == 1
    encoder = keras.saving.load_model(out / "encoder.keras")
    faces = to_float(np.stack([load_faces("toy", 32, limit=40)[index] for index in range(40)]))
    assert encoder(faces).shape == (40, 8)
    gan = load_gan(out)
    assert gan.generate(4).shape == (4, 32, 32, 3) and gan.discriminator is gan.second
    axes, mean = arrays(gan.generator.get_layer("spread").variables)
    assert not np.array_equal(axes, np.eye(8)) and np.abs(mean).max() > 0


@pytest.mark.slow
@pytest.mark.parametrize("epoch, panels", [(0, 2), (2, 2), (3, 4), (4, 4)])
def test_each_act_that_has_begun_has_a_row_of_curves(whole_run, tmp_path, monkeypatch, epoch, panels):
    run = Run(shutil.copytree(whole_run[0], tmp_path / "run"))
    figures = []
    monkeypatch.setattr(callbacks_module, "figure_to_png", lambda figure, text: figures.append(figure) or b"")
    session = types.SimpleNamespace(run=run, epoch=epoch, config=run.config, faces=types.SimpleNamespace(layout="toy"))
    pictures = callbacks_module.DrawPictures(session)
    pictures.set_model(load_gan(run.directory))
    pictures.draw()
    assert len(figures[0].axes) == panels and figures[0].axes[-2].lines[0].get_label() == (
        "reconstruction_loss" if panels == 2 else "d_loss")


def test_curves_keep_their_distance_and_the_last_epoch_draws_them(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(callbacks_module, "loss_curves", lambda *arguments: time.sleep(0.02))
    monkeypatch.setattr(callbacks_module, "figure_to_png", lambda figure, text: drawn.append(text) or b"")
    (tmp_path / "samples").mkdir()
    session = types.SimpleNamespace(run=Run(tmp_path), epoch=1, steps_left=5, config=RunConfig.preset("acts", **ACTS),
                                    faces=types.SimpleNamespace(layout="toy"))
    pictures = callbacks_module.DrawPictures(session)
    pictures.set_model(types.SimpleNamespace(generate=lambda count, seed: np.zeros((count, 32, 32, 3), "uint8")))
    for expected in (1, 1):  # the second would be within four seconds of the first
        pictures.draw()
        assert len(drawn) == expected
    session.steps_left = 0
    pictures.draw()
    assert len(drawn) == 2


@pytest.mark.parametrize("num_faces, act_complete, expected", [
    (9_000, False, 562), (9_000, True, 20_000), (1_000, False, 256), (200_000, False, 4_000)])
def test_the_codes_of_few_faces_do_until_the_game_begins(num_faces, act_complete, expected):
    session = types.SimpleNamespace(faces=range(num_faces), act_complete=act_complete)
    assert callbacks_module.SpreadCodes(session).num_faces() == expected


@pytest.mark.slow
@pytest.mark.parametrize("place", [(0, 1), (1, 3), (2, 0), (2, 1), (3, 2)])
def test_a_run_stopped_in_any_act_ends_as_an_unbroken_one(whole_run, tmp_path, place, monkeypatch):
    class Stop(training_module.StopInTime):
        def on_train_batch_end(self, batch, logs=None):
            if (self.session.epoch, self.session.step) == place:
                self.session.stop_reason = "the test stops it"
            super().on_train_batch_end(batch, logs)

    config = RunConfig.preset("acts", **ACTS, out=str(tmp_path / "broken"))
    with monkeypatch.context() as patched:
        patched.setattr(training_module, "StopInTime", Stop)
        assert train(config, report=quiet).status["state"] == "paused"
    assert place_in_name(checkpoints(tmp_path / "broken/checkpoints")[-1]) == place
    loaded = load_gan(tmp_path / "broken")
    assert loaded.loss_row.second == ("encoder" if place <= (2, 0) else "discriminator")
    assert train(config, report=quiet).status["state"] == "finished"
    assert (tmp_path / "broken/log.jsonl").read_bytes() == (whole_run[0] / "log.jsonl").read_bytes()
    broken, unbroken = last_state(tmp_path / "broken"), last_state(whole_run[0])
    assert broken.keys() == unbroken.keys()
    assert all(np.array_equal(broken[name], unbroken[name]) for name in unbroken)
    assert (tmp_path / "broken/encoder.keras").exists()


@pytest.mark.slow
def test_a_game_that_diverges_at_once_goes_back_to_the_redrawing(tmp_path, monkeypatch):
    real, failed = training_module.run_session, []

    def fail_once(gan, session):
        if gan.loss_row.second == "discriminator" and not failed:
            failed.append(gan)
            raise TrainingDiverged("the test says so")
        real(gan, session)

    monkeypatch.setattr(training_module, "run_session", fail_once)
    run = train(RunConfig.preset("acts", **ACTS, out=str(tmp_path / "run")), report=quiet)
    assert run.status["state"] == "finished" and len(run.records("recovery")) == 1


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_all_numbers_stay_finite_in_each_act(tmp_path, precision):
    take_steps(25, **SMALL | {"precision": precision}, blur=(1.0, 0.0), out=str(tmp_path / "run"))


@pytest.mark.slow
def test_a_run_begins_with_another_generator(whole_run, tmp_path):
    out = whole_run[0]
    config = RunConfig.preset("acts", **SMALL, epochs=1, redraw_epochs=0, start=str(out), out=str(tmp_path / "next"),
                              g_learning_rate=1e-9, final_rate=1.0)
    lines, config = [], dataclasses.replace(config, d_learning_rate=1e-9)
    assert train(config, report=lines.append).status["state"] == "finished"
    assert f"\nbeginning with the generator and the discriminator of {out}\n" in lines[0]
    old, new = load_gan(out), load_gan(config.out)
    for theirs, ours in zip(old.ema_generator.variables + old.discriminator.variables,
                            new.generator.variables + new.discriminator.variables, strict=True):
        np.testing.assert_allclose(*arrays([ours, theirs]), atol=1e-6)


@pytest.fixture(scope="module")
def starts(whole_run, tmp_path_factory):
    """What a run may begin with: name -> path."""
    folder, out = tmp_path_factory.mktemp("starts"), whole_run[0]
    for name, kept in {"shipped": ["config.json", "generator.keras"], "no checkpoint": [
            "config.json", "generator.keras", "encoder.keras"]}.items():
        (folder / name).mkdir()
        for file in kept:
            shutil.copy(out / file, folder / name)
    redrawn = RunConfig.preset("acts", **ACTS, out=str(folder / "redrawn"))
    train(dataclasses.replace(redrawn, save_minutes=0), hours=0, report=quiet)
    return {"run": out, "file": out / "best.keras" if (out / "best.keras").exists() else out / "generator.keras",
            "redrawn": folder / "redrawn", **{path.name: path for path in folder.iterdir()}}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "game", "redraw"), [
    ("run", "and the discriminator of {}", "and the encoder of {}"),
    ("file", "of {} and a fresh discriminator: a file has no other network", "of {} and a fresh encoder: a file has no other network"),
    ("redrawn", "of {} and a fresh discriminator: its encoder was trained by redraw", "and the encoder of {}"),
    ("no checkpoint", "of {} and a fresh discriminator: it has no trained discriminator", "and the encoder of {}"),
    ("shipped", "of {} and a fresh discriminator: it has no trained discriminator", "of {} and a fresh encoder: it has no encoder.keras")])
def test_the_second_network_comes_where_it_fits(starts, name, game, redraw):
    theirs = keras.saving.load_model(starts["file"]) if name == "file" else load_gan(starts[name]).ema_generator
    for redraw_epochs, line in ((0, game), (2, redraw)):
        config = RunConfig.preset("acts", **ACTS | dict(redraw_epochs=redraw_epochs, start=str(starts[name]), seed=1))
        gan, fresh = (FaceGAN.from_run_config(config, config.loss_at(0)) for _ in range(2))
        assert begin_with_another(gan) == "beginning with the generator " + line.format(starts[name])
        assert all(map(np.array_equal, gan.generator.get_weights(), theirs.get_weights()))
        assert all(map(np.array_equal, gan.second.get_weights(), fresh.second.get_weights())) == ("fresh" in line)


@pytest.mark.slow
def test_a_discriminator_of_another_loss_stays_behind(starts, tmp_path):
    config = RunConfig.preset("acts", **ACTS | dict(
        redraw_epochs=0, loss="noisy_labels", gamma=(0, 0), blur=(0, 0), augment=0, matching=0,
        start=str(starts["run"])))
    assert begin_with_another(FaceGAN.from_run_config(config)).endswith("its discriminator was trained by relativistic")


@pytest.mark.slow
def test_an_encoder_taken_up_again_gives_the_codes_of_the_latents_that_it_gave(starts):
    config = RunConfig.preset("acts", **ACTS, start=str(starts["run"]), seed=1)
    gan, faces = FaceGAN.from_run_config(config, "redraw"), batch()[0]
    begin_with_another(gan)
    codes, log_variances = np.split(arrays([gan.encoder(faces)])[0], 2, axis=1)
    latents = keras.saving.load_model(starts["run"] / "encoder.keras")(faces)
    np.testing.assert_allclose(codes, arrays([keras.Model(gan.generator.input, gan.generator.get_layer("spread").output)(latents)])[0], atol=1e-3)
    assert (log_variances == FIRST_LOG_VARIANCE).all()


@pytest.mark.slow
def test_a_run_goes_on_without_its_start_as_if_it_had_not_stopped(starts, tmp_path):
    """Its start is gone by then."""
    gone, runs = shutil.copytree(starts["run"], tmp_path / "gone"), []
    for name, hours in (("whole", None), ("broken", 0)):
        config = RunConfig.preset("acts", **SMALL, epochs=1, redraw_epochs=0, start=str(gone), out=str(tmp_path / name))
        runs.append(train(config, hours=hours, report=quiet))
    shutil.rmtree(gone)
    assert train(config, report=quiet).status["state"] == "finished"
    states = [last_state(run.directory) for run in runs]
    assert states[0].keys() == states[1].keys() and all(np.array_equal(*(state[name] for state in states)) for name in states[0])


@pytest.mark.slow
@pytest.mark.parametrize(("changes", "line"), [
    (dict(width=8), "width, with start=.*: expected 4, as that generator has it, got 8; give --set width=4"),
    (dict(start="generator.keras", width=8), "width, with start=.*: expected 4, as that generator has it, got 8; give --set width=4"),
    (dict(start="generator.keras", image_size=64, latent_dim=9), "image_size, with start=.*: expected 32,.* --set latent_dim=8"),
    (dict(start="encoder.keras"), "start: expected a run, or a whole generator.keras that a run has written, got '.*encoder.keras'"),
    (dict(start="config.json"), "start: expected a run, or a whole generator.keras"),
    (dict(start="samples"), "start: expected a folder that holds a run with a checkpoint"),
    (dict(start="nowhere"), "start: expected a folder that holds a run with a checkpoint, or a generator.keras, got '.*nowhere'")])
def test_another_generator_is_refused_before_anything_is_written(whole_run, tmp_path, changes, line):
    start = whole_run[0] / changes.get("start", "")
    config = RunConfig.preset("acts", **ACTS | changes | dict(start=str(start), out=str(tmp_path / "gan")))
    with pytest.raises(InputError, match=line):
        train(config, report=quiet)
    assert not Run(tmp_path / "gan").exists()


@pytest.mark.slow
def test_a_run_cannot_begin_with_itself(whole_run):
    """With --fresh that would be the end of it."""
    for start in (whole_run[0], whole_run[0] / "generator.keras"):
        config = RunConfig.preset("acts", **ACTS, start=str(start), out=str(whole_run[0]))
        with pytest.raises(InputError, match="start: expected another run than out"):
            train(config, fresh=True, report=quiet)
    assert load_gan(whole_run[0])


@pytest.mark.slow
def test_moving_statistics_are_begun_with_as_well(tmp_path):
    demo = dict(image_size=32, width=2, batch_size=8, limit=40, epochs=1)
    train(RunConfig.preset("article_small", **demo, out=str(tmp_path / "first")), report=quiet)
    second = RunConfig.preset("article_small", **demo, out=str(tmp_path / "second"), start=str(tmp_path / "first"))
    train(second, hours=0, report=quiet)
    first, gan = load_gan(tmp_path / "first"), load_gan(tmp_path / "second")
    for old, new in zip(first.ema_generator.variables, gan.generator.variables, strict=True):
        if "moving_variance" in old.path:
            np.testing.assert_allclose(*arrays([new, old]), rtol=0.2)  # after one step, of one per cent


@pytest.mark.parametrize(("changes", "line"), [
    (dict(loss="redraw"), "loss: expected one of noisy_labels, relativistic"),
    (dict(input_noise_range=(0, 0.1)), "redraw_epochs: expected 0 without networks=residual"),
    (dict(latents="uniform"), "redraw_epochs: expected 0 without networks=residual"),
    (dict(epochs=2), "epochs: expected more than the 2 of redraw_epochs, got 2; set more epochs"),
    (dict(patience=0), "patience: expected none or a whole number from 1"),
    (dict(patience=2, measure_images=0), "patience: expected none with measure_images=0, which measures nothing, got 2"),
    (dict(start=""), "start: expected none, a folder or a file")])
def test_settings_that_do_not_go_together_are_refused(changes, line):
    with pytest.raises(InputError, match=line):
        dataclasses.replace(RunConfig.preset("acts", **ACTS), **changes)
