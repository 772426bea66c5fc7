"""Faces measured while a run goes on: the same figures however often it is stopped, and the best generator kept."""

import dataclasses

import keras
import numpy as np
import pytest
import under_jax
from PIL import Image

from facegen_keras import training as training_module
from facegen_keras.base.errors import InputError
from facegen_keras.config import RunConfig
from facegen_keras.features.distances import frechet_distance
from facegen_keras.features.features import RandomFeatures, in_batches
from facegen_keras.faces import load_faces
from facegen_keras.gan import fixed_latents, generate_faces
from facegen_keras.metrics import real_faces
from facegen_keras.runs import measures as measures_module
from facegen_keras.runs.checkpoint import checkpoints
from facegen_keras.runs.folder import Run
from facegen_keras.runs.held_out import choosing_faces
from facegen_keras.runs.measures import OTHER_LATENTS
from facegen_keras.training import train

NUM_PICTURES, LIMIT = 420, 160
TINY = dict(image_size=32, width=4, latent_dim=8, batch_size=8, limit=LIMIT, epochs=3, precision="float32",
            d_learning_rate=1e-4, g_learning_rate=6e-3, ema_images=0, measure_images=160)
MEASURED_STEPS = [20, 40, 60]  # of twenty an epoch
pytestmark = [pytest.mark.usefixtures("quick_pictures"), pytest.mark.slow]


def quiet(line):
    pass


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    drawn = load_faces("toy", 32, limit=NUM_PICTURES)
    for index in range(NUM_PICTURES):
        Image.fromarray(drawn[index]).save(folder / f"{index:03}.png")
    for copy, original in (("a.png", "000.png"), ("b.png", "000.png"), ("c.png", "001.png")):
        (folder / copy).write_bytes((folder / original).read_bytes())
    return folder


def config_for(photos, out, **changes):
    return RunConfig.preset("article_small", **TINY | changes, data=str(photos), out=str(out))


@pytest.fixture(scope="module")
def whole_run(photos, tmp_path_factory):
    config = config_for(photos, tmp_path_factory.mktemp("runs") / "whole")
    return train(config, report=quiet)


def distances(run):
    return [line["frechet"] for line in run.records("measure")]


def best_weights(run):
    return keras.saving.load_model(run.directory / "best.keras").get_weights()


def state(run):
    with np.load(checkpoints(run.directory / "checkpoints")[-1]) as file:
        return dict(file)


def assert_same(run, expected):
    assert (run.directory / "log.jsonl").read_bytes() == (expected.directory / "log.jsonl").read_bytes()
    assert all(map(np.array_equal, best_weights(run), best_weights(expected)))
    found, wanted = state(run), state(expected)
    assert found.keys() == wanted.keys() and all(np.array_equal(found[name], wanted[name]) for name in wanted)


def assert_best_is_the_least_of_the_log(run):
    """By hand: the faces of best.keras, measured again."""
    config, real = run.config, choosing_faces(run.config, run.read("held_out.json.gz"))
    latents = fixed_latents(len(real), config.latent_dim, config.seed + OTHER_LATENTS, config.latents)
    best, features = keras.saving.load_model(run.directory / "best.keras"), RandomFeatures(config.image_size)
    found = frechet_distance(in_batches(features, generate_faces(best, latents)), in_batches(features, real))
    assert found == pytest.approx(min(distances(run)), rel=1e-3)


def test_the_game_is_measured_every_so_many_images_and_at_its_end(whole_run):
    assert [line["step"] for line in whole_run.records("measure")] == MEASURED_STEPS
    assert len(set(distances(whole_run))) == 3
    assert_best_is_the_least_of_the_log(whole_run)


def test_measuring_changes_nothing_else(whole_run, photos, tmp_path):
    plain = train(config_for(photos, tmp_path / "plain", measure_images=0), report=quiet)
    assert distances(plain) == [] and not (plain.directory / "best.keras").exists()
    expected = {name: array for name, array in state(whole_run).items() if not name.startswith(("best/", "place"))}
    found = state(plain)
    assert found.keys() - {"place"} == expected.keys() and all(np.array_equal(found[name], expected[name]) for name in expected)


class Killed(BaseException):
    """As sudden as a signal: nothing is saved, nothing tidied."""


def kill_before_best(patch):
    patch.setattr(measures_module, "write_network", fail)


def kill_after_best(patch):
    real = measures_module.write_network
    patch.setattr(measures_module, "write_network", lambda *arguments: (real(*arguments), fail()))


def kill_after_line(patch):
    real = Run.append

    def append(run, name, record):
        real(run, name, record)
        if record["kind"] == "measure":
            fail()
    patch.setattr(Run, "append", append)


def kill_before_save(patch, step=MEASURED_STEPS[-1]):
    class Kill(training_module.StopInTime):
        def on_train_batch_end(self, batch, logs=None):
            if self.session.steps_done == step:
                fail()
    patch.setattr(training_module, "StopInTime", Kill)


def kill_after_save(patch, step=MEASURED_STEPS[0]):
    class Kill(training_module.SaveState):
        def on_train_batch_end(self, batch, logs=None):
            super().on_train_batch_end(batch, logs)
            if self.session.steps_done == step:
                fail()
    patch.setattr(training_module, "SaveState", Kill)


def kill_before_status(patch, step=None):
    patch.setattr(training_module, "write_film", fail)


def fail(*arguments):
    raise Killed


KILLS = [kill_before_best, kill_after_best, kill_after_line, kill_after_save, kill_before_save]


@pytest.mark.parametrize(("save_minutes", "kills"), [(0, KILLS), (5, [kill_before_save])])
def test_a_run_killed_while_it_measures_ends_as_an_unbroken_one(whole_run, photos, tmp_path, save_minutes, kills, monkeypatch):
    """The first measurement is the best, so its generator has to come from a checkpoint."""
    assert min(distances(whole_run)) == distances(whole_run)[0]
    config = config_for(photos, tmp_path / "broken", save_minutes=save_minutes)
    for kill in kills:
        with monkeypatch.context() as patched, pytest.raises(Killed):
            kill(patched)
            train(config, report=quiet)
    assert_same(train(config, report=quiet), whole_run)


def test_the_best_generator_beats_the_last_of_a_run_trained_too_long(photos, tmp_path, monkeypatch):
    """Of sixteen pictures, at high rates; compared by the half of the held-out faces that did not choose the best."""
    class DrawNothing(training_module.DrawPictures):
        def on_train_begin(self, logs=None): ...

        def on_train_batch_end(self, batch, logs=None): ...

    monkeypatch.setattr(training_module, "DrawPictures", DrawNothing)
    run = train(config_for(photos, tmp_path / "run", limit=16, epochs=200, measure_images=320, d_learning_rate=2e-3,
                           g_learning_rate=2e-3), report=quiet)
    figures, (_, held_out) = distances(run), real_faces(run, str(photos), 1_000)
    assert 0 < figures.index(min(figures)) < len(figures) - 1, "it learned, and then got worse"
    assert held_out.source.names == run.read("held_out.json.gz")["report"]
    latents, features = fixed_latents(len(held_out), 8, seed=0), RandomFeatures(32)
    best, last = (frechet_distance(in_batches(features, generate_faces(keras.saving.load_model(run.directory / name), latents)),
                                   in_batches(features, held_out)) for name in ("best.keras", "generator.keras"))
    assert best < 0.9 * last


def test_patience_ends_a_run_at_the_same_step_however_often_it_is_killed(whole_run, photos, tmp_path, monkeypatch):
    """Its first measurement is its best; with more patience it ends as one that had none set."""
    patient, lines = config_for(photos, tmp_path / "patient", patience=1, save_minutes=0), []
    run = train(patient, report=lines.append)
    reason = f"patience=1: the last measurement came no nearer than {distances(whole_run)[0]:.1f}"
    assert distances(run) == distances(whole_run)[:2]
    assert run.status == {"state": "finished", "epoch": 2, "step": 0, "reason": reason} and reason in lines[-1]
    assert "patience=1: it ends once so many measurements in a row, one every 20 steps, bring no new best" in lines[1]
    assert (run.directory / "generator.keras").exists()

    broken = dataclasses.replace(patient, out=str(tmp_path / "broken"))
    for kill in (kill_before_save, kill_after_save, kill_before_status):
        with monkeypatch.context() as patched, pytest.raises(Killed):
            kill(patched, step=MEASURED_STEPS[1])
            train(broken, report=quiet)
    killed = train(broken, report=quiet)
    assert_same(killed, run)
    assert killed.status == run.status

    lines.clear()
    assert train(dataclasses.replace(broken, epochs=5), report=lines.append).status == run.status
    assert lines[-1] == f"nothing left to do after epoch 2; {reason}; for more, a larger patience, or none"
    assert_same(train(dataclasses.replace(patient, patience=5), report=quiet), whole_run)


def test_a_disk_that_fails_as_patience_ends_a_run_pauses_it(photos, tmp_path, monkeypatch):
    class Full(training_module.SaveState):
        def on_train_batch_end(self, batch, logs=None):
            if self.session.steps_done == MEASURED_STEPS[1]:
                raise OSError(28, "No space left on device", "checkpoint")
            super().on_train_batch_end(batch, logs)

    config = config_for(photos, tmp_path / "run", patience=1, save_minutes=0)
    with monkeypatch.context() as patched:
        patched.setattr(training_module, "SaveState", Full)
        status = train(config, report=quiet).status
    assert status["state"] == "paused" and (status["epoch"], status["step"]) == (1, 19)
    assert train(config, report=quiet).status["reason"].startswith("patience=1")


def test_a_run_that_goes_back_forgets_the_figures_of_the_way_it_left(photos, tmp_path, monkeypatch):
    """It diverges after a measurement that seems the best; the best of the way it goes on is the one before."""
    real, seen = measures_module.frechet_distance, []

    def frechet(one, other):
        seen.append(real(one, other))
        return 0.5 if len(seen) == 2 else seen[-1]

    class Poison(training_module.SaveState):
        def on_train_batch_end(self, batch, logs=None):
            if self.session.steps_done == MEASURED_STEPS[1] and len(seen) == 2:
                weight = self.model.generator.trainable_variables[0]
                weight.assign(keras.ops.full_like(weight, np.nan))
            super().on_train_batch_end(batch, logs)

    monkeypatch.setattr(measures_module, "frechet_distance", frechet)
    monkeypatch.setattr(training_module, "SaveState", Poison)
    run = train(config_for(photos, tmp_path / "run", save_minutes=0), report=quiet)
    assert len(run.records("recovery")) == 1 and len(seen) == 4
    assert distances(run) == [round(seen[place], 4) for place in (0, 2, 3)] and min(distances(run)) == distances(run)[0]
    assert_best_is_the_least_of_the_log(run)


def test_weights_that_are_not_finite_are_never_measured(photos, tmp_path, monkeypatch):
    class Poison(training_module.SpreadCodes):
        done = False

        def on_train_batch_end(self, batch, logs=None):
            if self.session.steps_done == MEASURED_STEPS[0] and not Poison.done:
                Poison.done, weight = True, self.model.generator.trainable_variables[0]
                weight.assign(keras.ops.full_like(weight, np.nan))

    monkeypatch.setattr(training_module, "SpreadCodes", Poison)
    run = train(config_for(photos, tmp_path / "run"), report=quiet)
    [recovery] = run.records("recovery")
    assert recovery["reason"] == f"a weight is not finite at step {MEASURED_STEPS[0]}"
    assert len(distances(run)) == 3


def test_no_picture_is_on_two_sides(whole_run, photos):
    trained_on = whole_run.read("images.json.gz", list)
    division = whole_run.read("held_out.json.gz")
    train_faces, report = real_faces(whole_run, str(photos), 1_000)
    assert report.source.names == division["report"] and train_faces.source.names == trained_on
    names = [trained_on, division["choose"], division["report"]]
    assert min(map(len, names)) >= 100 and len(set().union(*names)) == sum(map(len, names))
    contents = [[(photos / name).read_bytes() for name in part] for part in names]
    assert len(set().union(*contents)) == sum(map(len, names)), "a picture is there under two names"


def test_the_half_that_reports_is_not_read(whole_run, photos, tmp_path):
    """With its files gone, the run is the same."""
    config = config_for(photos, tmp_path / "run")
    train(config, hours=0, report=quiet)
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    reported = Run(config.out).read("held_out.json.gz")["report"]
    for name in reported:
        (photos / name).rename(hidden / name)
    try:
        assert_same(train(config, report=quiet), whole_run)
    finally:
        for name in reported:
            (hidden / name).rename(photos / name)


def test_too_few_pictures_are_neither_held_out_nor_measured(photos, tmp_path):
    few, lines = tmp_path / "few", []
    few.mkdir()
    for index in range(LIMIT):
        (few / f"{index:03}.png").write_bytes((photos / f"{index:03}.png").read_bytes())
    run = train(config_for(few, tmp_path / "run", epochs=2), report=lines.append)
    assert run.status["state"] == "finished" and distances(run) == []
    assert len(run.read("images.json.gz", list)) == LIMIT
    assert not (run.directory / "held_out.json.gz").exists() and not (run.directory / "best.keras").exists()
    for out in (tmp_path / "run", tmp_path / "new"):
        with pytest.raises(InputError, match="patience: expected none where no images are held out to measure by, got 2"):
            train(config_for(few, out, epochs=2, patience=2), report=quiet)
    assert run.config.patience is None and not (tmp_path / "new").exists()


def test_a_run_whose_choosing_faces_have_gone_says_so_and_goes_on(photos, tmp_path):
    config, lines = config_for(photos, tmp_path / "run", epochs=2), []
    train(config, hours=0, report=quiet)
    run = Run(config.out)
    run.write("held_out.json.gz", run.read("held_out.json.gz") | {"choose": [f"gone_{index}.png" for index in range(120)]})
    assert train(config, report=lines.append).status["state"] == "finished" and distances(run) == []
    assert sum("only 0 of the faces to measure by can be read" in line for line in lines) == 1


def test_the_redrawing_is_not_measured_and_the_line_tells_the_last_and_the_best(photos, tmp_path):
    lines, config = [], RunConfig.preset("acts", **TINY | dict(redraw_epochs=1, measure_images=280), data=str(photos),
                                         out=str(tmp_path / "run"))
    run = train(config, report=lines.append)
    assert [line["step"] for line in run.records("measure")] == [55, 60]
    last, best = distances(run)[-1], min(distances(run))
    assert f"frechet {last:.0f} (best {best:.0f}{'' if last == best else ', 1 ago'})" in [line for line in lines if line.startswith("epoch")][-1]
    assert_best_is_the_least_of_the_log(run)


def measured_under_jax(photos, out):
    config = config_for(photos, out)
    train(config, hours=0, report=quiet)
    run = train(config, report=quiet)
    assert_best_is_the_least_of_the_log(run)
    return [line["step"] for line in run.records("measure")]


def test_jax_measures_too(photos, tmp_path):
    pytest.importorskip("jax")
    assert under_jax.value_of("test_measures.measured_under_jax(*sys.argv[1:])", photos, tmp_path / "run") == MEASURED_STEPS
