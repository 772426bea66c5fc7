"""Losses and weights that are no numbers, and generators that make one face of every latent vector."""

import dataclasses
import json
import random
import sys
import types

import keras
import numpy as np
import pytest
import tensorflow

from facegen_keras import RunConfig, load_faces
from facegen_keras.runs import callbacks as callbacks_module
from facegen_keras.runs import checkpoint as checkpoint_module
from facegen_keras import training as training_module
from facegen_keras.runs.checkpoint import checkpoints, restore_newest
from facegen_keras.base.errors import InputError, TrainingDiverged
from facegen_keras.features.features import RandomFeatures
from facegen_keras.gan import FaceGAN
from facegen_keras.measure.reader import ModeReader
from facegen_keras.runs.folder import Run
from facegen_keras.runs.start import load_gan
from facegen_keras.training import train

SILENT = dict(report=lambda line: None)
TINY = RunConfig.preset("article_small", image_size=32, width=2, batch_size=8, limit=64, epochs=2, save_minutes=0)
pytestmark = pytest.mark.usefixtures("quick_pictures")


@pytest.fixture
def config(tmp_path):
    return dataclasses.replace(TINY, out=tmp_path / "run")


def drawn_noise(run):
    return [line["noise_std"] for line in run.records("steps")]


@pytest.fixture(scope="module")
def undisturbed_noise(tmp_path_factory):
    """Of each step of a run that does not diverge."""
    return drawn_noise(train(dataclasses.replace(TINY, out=tmp_path_factory.mktemp("whole") / "run"), **SILENT))


def poison(monkeypatch, when, network="generator", which="trainable_variables", value=np.nan):
    """Makes a weight no number before the steps for which `when(steps_done, model)` is true."""

    class Poison(training_module.ShowForecast):
        def on_train_batch_begin(self, batch, logs=None):
            if when(self.session.steps_done, self.model):
                weights = getattr(getattr(self.model, network), which)
                weight = next(weight for weight in weights if "bias" not in weight.path)
                weight.assign(keras.ops.full_like(weight, value))

    monkeypatch.setattr(training_module, "ShowForecast", Poison)


def once(step):
    fired = []
    return lambda steps_done, model: steps_done == step and not fired and not fired.append(True)


WEIGHTS = {
    "NaN in the generator": ("a loss", 13, dict(network="generator", value=np.nan)),
    "infinity in the discriminator": ("a loss", 13, dict(network="discriminator", value=np.inf)),
    "NaN in a moving statistic, which no loss shows, seen by a save": (
        "generator/006/moving_mean", 13, dict(network="generator", which="non_trainable_variables")),
    "NaN in a moving statistic, seen at the end of an epoch": (
        "a weight", 15, dict(network="generator", which="non_trainable_variables")),
}


@pytest.mark.slow
@pytest.mark.parametrize(("what", "step", "weight"), WEIGHTS.values(), ids=WEIGHTS)
def test_one_bad_weight_is_recovered_from_with_other_random_numbers(config, monkeypatch, undisturbed_noise, what, step, weight):
    poison(monkeypatch, once(step), **weight)
    lines = []
    run = train(config, report=lines.append)
    assert run.status["state"] == "finished" and run.status["epoch"] == 2
    [recovery] = run.records("recovery")
    assert recovery["step"] == step and recovery["noticed_at_step"] == step + 1, "one logging interval, here one step"
    assert recovery["reason"].startswith(f"{what} is not finite") and any("(1 of 3)" in line for line in lines)
    assert [line["step"] for line in run.records("steps")] == list(range(1, 17))
    with np.load(checkpoints(run.directory / "checkpoints")[-1]) as state:
        assert all(np.isfinite(state[name]).all() for name in state.files if name != "place")
    noise = drawn_noise(run)
    assert noise[:step] == undisturbed_noise[:step] and not set(noise[step:]) & set(undisturbed_noise[step:])


@pytest.mark.slow
def test_again_and_again_stops_after_three_with_the_good_state_kept(config, monkeypatch):
    seeds = []

    def always(steps_done, model):
        if steps_done == 13:
            seeds.append(int(model.seed_generator.state[0]))
            assert len(seeds) <= 4
        return steps_done == 13

    poison(monkeypatch, always)
    with pytest.raises(TrainingDiverged, match="the run has gone back 3 times before"):
        train(config, **SILENT)
    assert len(set(seeds)) == 4, "other random numbers each time"
    run = Run(config.out)
    assert [record["step"] for record in run.records("recovery")] == [13, 12, 11], "each time one further"
    assert run.status["state"] == "diverged" and (run.status["epoch"], run.status["step"]) == (1, 5)
    assert "learning_rate" in run.status["reason"]
    gan, place = restore_newest(config, run.directory / "checkpoints")
    assert (place.epoch, place.step) == (1, 5) and callbacks_module.weights_are_finite(gan)
    monkeypatch.undo()
    assert train(config, **SILENT).status["state"] == "finished", "and it can be gone on from"


def test_a_state_that_is_not_finite_is_not_saved(config, tmp_path):
    """Weights are looked at with the log; the optimizers' moments only here."""
    gan = FaceGAN.from_run_config(config)
    moment = gan.d_optimizer.variables[-1]
    moment.assign(keras.ops.full_like(moment, np.inf))
    with pytest.raises(TrainingDiverged, match="d_optimizer/"):
        callbacks_module.save_checkpoint(gan, tmp_path, checkpoint_module.Place(1))
    assert not checkpoints(tmp_path)


def left_by(run):
    return (run.directory / "log.jsonl").read_bytes(), checkpoints(run.directory / "checkpoints")[-1].read_bytes()


def poison_times(monkeypatch, times):
    """Makes a run go back so often."""
    seed = TINY.seed
    doomed = {seed, *(int(np.random.SeedSequence([seed, number]).generate_state(1)[0]) for number in range(1, times))}
    poison(monkeypatch, lambda steps_done, model: steps_done == 13 and int(model.seed_generator.state[0]) in doomed)


@pytest.fixture(scope="module", params=[1, 2])
def gone_back(request, tmp_path_factory):
    """How often a run went back, and what it left."""
    with pytest.MonkeyPatch.context() as patch:
        poison_times(patch, request.param)
        run = train(dataclasses.replace(TINY, out=tmp_path_factory.mktemp("back") / "run"), **SILENT)
    assert len(run.records("recovery")) == request.param
    return request.param, left_by(run)


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["before saving", "after saving"])
def test_a_kill_in_the_midst_of_going_back_changes_nothing(config, monkeypatch, gone_back, moment):
    """The record and the random numbers belong together, whatever of it was written."""
    times, expected = gone_back
    poison_times(monkeypatch, times)
    original, kills = training_module.save, []

    def killed(gan, session, *log_bytes):
        if len(session.recoveries) == times and not kills:
            kills.append(moment == "after saving" and original(gan, session, *log_bytes))
            raise KeyboardInterrupt  # stands for a kill: nothing is done after it
        return original(gan, session, *log_bytes)

    monkeypatch.setattr(training_module, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        train(config, **SILENT)
    assert kills and left_by(train(config, **SILENT)) == expected


@pytest.mark.slow
def test_collapse_is_warned_about_in_the_log(config, monkeypatch):
    monkeypatch.setattr(callbacks_module, "FEW_STEPS", 10)
    original = FaceGAN.generate
    monkeypatch.setattr(FaceGAN, "generate", lambda self, count, seed=0: original(self, 1, seed).repeat(count, axis=0))
    config, lines = dataclasses.replace(config, epochs=3), []
    run = train(config, report=lines.append)
    warned = ["warning" in record for record in run.records("samples")]
    assert warned == [False, True, True], "too early to tell after 8 steps"
    assert sum("collapse: faces" in line for line in lines) == 2
    monkeypatch.setattr(FaceGAN, "generate", lambda self, count, seed=0: drawn_faces(count))
    varied = train(config, fresh=True, **SILENT)
    assert not any("warning" in record for record in varied.records("samples"))
    assert json.loads((run.directory / "log.jsonl").read_text().splitlines()[-1])["variety"] > 0.5


def drawn_faces(count):
    faces = load_faces("toy", 32, limit=count)
    return np.stack([faces[index] for index in range(count)])


class Tracker:
    """What trackers put in the place of stdout and stderr."""

    def __init__(self):
        self.text = ""

    def write(self, text):
        self.text += text

    def flush(self):
        pass


class Torn(Tracker):
    """A terminal that has gone."""

    encoding = "utf-8"

    def write(self, text):
        raise OSError(5, "Input/output error")

    def isatty(self):
        return True


NO_MEMORY = {
    "Python": MemoryError(),
    "TensorFlow": tensorflow.errors.ResourceExhaustedError(None, None, "Graph execution error:\nOOM when allocating tensor\nmore"),
    "XLA": tensorflow.errors.InternalError(None, None, "Failed\nCUDA_ERROR_OUT_OF_MEMORY: out of memory"),
    "JAX": RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 17179869184 bytes."),
}


def seeded():
    """Sets the seeds of all who draw, and has Keras make the generator that it draws from."""
    keras.utils.set_random_seed(7), random.seed(5), np.random.seed(6)
    keras.random.uniform((1,))


def next_draws():
    """What Keras, TensorFlow, Python and NumPy draw next, and the state of the generator that Keras draws from by default."""
    of_keras = keras.ops.convert_to_numpy(keras.src.random.seed_generator.global_seed_generator().state).tolist()
    return (of_keras, keras.ops.convert_to_numpy(keras.random.uniform((3,))).tolist(), tensorflow.random.uniform((3,)).numpy().tolist(),
            random.random(), np.random.random())


@pytest.mark.parametrize("error", NO_MEMORY.values(), ids=NO_MEMORY)
def test_no_memory_is_one_line_in_whatever_words_it_was_said(config, monkeypatch, error):
    monkeypatch.setattr(training_module, "continue_run", lambda session: (_ for _ in ()).throw(error))
    with pytest.raises(InputError, match="^memory: expected more than there is, got .*batch_size, width or image_size") as caught:
        train(config, **SILENT)
    assert "\n" not in str(caught.value) and caught.value.__cause__ is error


@pytest.mark.slow
def test_no_memory_and_no_place_to_print_cost_a_run_nothing(config, monkeypatch, undisturbed_noise):
    """Its steps are those of an undisturbed one, and the caller's random numbers go on as they would have."""
    fall = [NO_MEMORY["TensorFlow"]]

    class Fall(training_module.StopInTime):
        def on_train_batch_end(self, batch, logs=None):
            super().on_train_batch_end(batch, logs)
            if fall and self.session.steps_done == 5:
                raise fall.pop()

    monkeypatch.setattr(training_module, "StopInTime", Fall)
    seeded()
    expected = next_draws()
    seeded()
    for stdout, stderr in ((Tracker(), None), (Torn(), Tracker())):
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", stdout), patch.setattr(sys, "stderr", stderr)
            try:
                run = train(config)
            except InputError as error:
                status = Run(config.out).status
                assert status == {"state": "paused", "epoch": 0, "step": 4, "reason": f"ended by InputError: {error}"}
    assert not fall and run.status["state"] == "finished" and drawn_noise(run) == undisturbed_noise
    assert next_draws() == expected


MADE = {"a GAN": lambda: FaceGAN.from_run_config(TINY), "a run's GAN": lambda: load_gan("celeba"), "features": lambda: RandomFeatures(32),
        "a reader": lambda: ModeReader(16, 64, 1), "pictures": lambda: load_faces("toy", 32, limit=8).batches(4, seed=3)}


@pytest.mark.parametrize("make", MADE.values(), ids=MADE)
def test_what_is_made_leaves_the_callers_random_numbers_as_they_were(make):
    seeded()
    expected = next_draws()
    seeded()
    make()
    assert next_draws() == expected


@pytest.mark.parametrize("error", [ValueError("Zoom"), RuntimeError("shapes (3,) and (4,)"), KeyError("memory")])
def test_other_errors_are_not_taken_for_a_lack_of_memory(config, monkeypatch, error):
    monkeypatch.setattr(training_module, "continue_run", lambda session: (_ for _ in ()).throw(error))
    with pytest.raises(type(error)) as caught:
        train(config, **SILENT)
    assert caught.value is error


@pytest.mark.parametrize("setting, value", [("image_data_format", "channels_first"), ("floatx", "float64"), ("floatx", "float16")])
def test_settings_of_keras_are_refused_before_anything_is_written(config, setting, value):
    was = getattr(keras.config, setting)()
    getattr(keras.config, f"set_{setting}")(value)
    try:
        for begin in (lambda: train(config, **SILENT), lambda: FaceGAN.from_run_config(config)):
            with pytest.raises(InputError, match=f"^{setting}: expected {was} among Keras' own settings, got '{value}'.*keras.json"):
                begin()
    finally:
        getattr(keras.config, f"set_{setting}")(was)
    assert not Run(config.out).directory.exists()


OF_THE_WHOLE = {name: lambda gan, path, name=name: getattr(gan, name)(path) for name in (
    "predict", "predict_on_batch", "evaluate", "test_on_batch", "save", "export", "get_config", "__call__")}
OF_THE_WHOLE |= {"save_model": lambda gan, path: keras.saving.save_model(gan, path), "serialize": lambda gan, path: keras.saving.serialize_keras_object(gan),
                 "to_json": lambda gan, path: gan.to_json(), "clone_model": lambda gan, path: keras.models.clone_model(gan)}


@pytest.mark.parametrize("name", OF_THE_WHOLE)
def test_what_keras_does_with_one_network_says_what_to_call(whole, tmp_path, name):
    with pytest.raises(InputError, match=r"for faces call gan.generate\(count, seed\); to save .*gan.settle\(\).save"):
        OF_THE_WHOLE[name](whole, tmp_path / "faces.keras")


@pytest.fixture(scope="module")
def whole():
    return FaceGAN.from_run_config(TINY)


def test_faces_go_on_from_a_generator_of_random_numbers(whole):
    rng, told = np.random.default_rng(3), []
    parts = [whole.generate(count, rng, lambda done, total: told.append((done, total))) for count in (64, 70)]
    assert np.abs(np.concatenate(parts).astype(int) - whole.generate(134, 3)).max() <= 1
    assert told == [(64, 64), (64, 70), (70, 70)]


LOST = {"Gloo": (lambda jax: ValueError("Gloo all-reduce failed: Connection closed by peer"), True),
        "NCCL": (lambda jax: RuntimeError("NCCL operation failed: remote process exited"), True),
        "coordination": (lambda jax: RuntimeError("the coordination service has gone"), True),
        "JAX": (lambda jax: jax.errors.JaxRuntimeError("UNAVAILABLE: failed to connect"), True),
        "JAX, another": (lambda jax: jax.errors.JaxRuntimeError("INVALID_ARGUMENT: shapes"), False),
        "a drive": (lambda jax: InputError("data: expected a drive that can be read, got 'a.jpg: Connection timed out'"), False),
        "a picture": (lambda jax: InputError("data: peer_01.jpg, nccl, is bad"), False),
        "a file": (lambda jax: OSError(110, "Connection timed out", "gloo.jpg"), False),
        "Kaggle": (lambda jax: RuntimeError("Connection aborted by peer"), False)}


@pytest.mark.parametrize("make, lost", LOST.values(), ids=LOST)
def test_only_what_joins_processes_tells_that_one_has_gone(monkeypatch, make, lost):
    jax = pytest.importorskip("jax")
    from facegen_keras.engine import step_jax

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    assert step_jax.has_lost_another(make(jax)) == lost


@pytest.mark.parametrize("error, said", [(RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), RuntimeError), (MemoryError(), MemoryError),
                                         (ConnectionError("Name or service not known\nand more"), InputError)])
def test_fid_names_the_connection_only_if_that_failed(monkeypatch, error, said):
    from facegen_keras.measure import fid

    def compute_fid(*folders, **options):
        raise error

    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(cuda=types.SimpleNamespace(is_available=lambda: False)))
    monkeypatch.setattr(fid, "fid_tool", lambda: types.SimpleNamespace(compute_fid=compute_fid))
    with pytest.raises(said) as caught:
        fid.inception_fid(np.zeros((2, 4, 4, 3), np.uint8), np.zeros((2, 4, 4, 3), np.uint8))
    assert caught.value is error or "see to the connection" in str(caught.value)
