"""`--hours`: within the budget, which counts what is still to come; on a clock of its own, so that speeds are known."""

import time
import dataclasses
import itertools

import pytest

from facegen_keras import RunConfig
from facegen_keras.runs import callbacks as callbacks_module
from facegen_keras.runs import session as session_module
from facegen_keras import training as training_module
from facegen_keras.runs.checkpoint import checkpoints
from facegen_keras.training import train

STEP, SAVE, PICTURES, FRAME = 10.0, 7.0, 5.0, 2.0  # seconds, as the clock below counts them
SILENT = dict(report=lambda line: None)
pytestmark = pytest.mark.usefixtures("quick_pictures")


class Clock:
    """Time that passes only when something is done."""

    def __init__(self, monkeypatch):
        self.now = 1000.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        self.charge(monkeypatch, callbacks_module.WriteLog, "on_train_batch_end", lambda: self.step)
        self.charge(monkeypatch, callbacks_module, "save_checkpoint", lambda: SAVE)
        self.charge(monkeypatch, callbacks_module, "loss_curves", lambda: PICTURES)
        self.charge(monkeypatch, callbacks_module.Image, "open", lambda: FRAME)
        self.step = STEP

    def charge(self, monkeypatch, owner, name, seconds):
        original = getattr(owner, name)

        def charged(*arguments, **options):
            self.now += seconds()
            return original(*arguments, **options)

        monkeypatch.setattr(owner, name, charged)


@pytest.fixture
def config(tmp_path):
    return RunConfig.preset("article_small", image_size=32, width=2, batch_size=8, limit=32, epochs=8, out=tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [100, 113, 116, 133])
def test_a_session_ends_within_its_budget_and_uses_it(config, monkeypatch, seconds):
    clock = Clock(monkeypatch)
    start = clock.now
    run = train(config, hours=seconds / 3600, **SILENT)
    used = clock.now - start
    assert run.status["state"] == "paused" and run.status["reason"] == "the time is used up"
    assert used <= seconds
    assert used + STEP + PICTURES + 3 * FRAME > seconds - SAVE, "another step would not have fitted in"


@pytest.mark.slow
def test_a_step_that_is_suddenly_slow_costs_that_step_and_no_more(config, monkeypatch):
    clock = Clock(monkeypatch)
    start, steps = clock.now, itertools.count()
    original = training_module.StopInTime.on_train_batch_begin

    def begin(self, batch, logs=None):
        original(self, batch, logs)
        clock.step = 100.0 if next(steps) == 5 else STEP

    monkeypatch.setattr(training_module.StopInTime, "on_train_batch_begin", begin)
    train(config, hours=110 / 3600, **SILENT)
    assert 110 < clock.now - start <= 110 + 100 + SAVE


@pytest.mark.slow
def test_sessions_of_an_hour_each_end_like_one(config, monkeypatch, tmp_path):
    monkeypatch.setattr(callbacks_module, "LINES_PER_EPOCH", 2)  # so that sessions end between two lines
    whole = train(config, **SILENT)
    assert {line["num_steps"] for line in whole.records("steps")} == {2}
    Clock(monkeypatch)
    pieced = dataclasses.replace(config, out=tmp_path / "pieced")
    for session in range(40):
        run = train(pieced, hours=120 / 3600, **SILENT)
        if run.status["state"] == "finished":
            break
    assert session > 2
    for name in ("log.jsonl", *(f"samples/{path.name}" for path in whole.samples())):
        assert (run.directory / name).read_bytes() == (whole.directory / name).read_bytes(), name
    states = [checkpoints(path / "checkpoints")[-1].read_bytes() for path in (whole.directory, run.directory)]
    assert states[0] == states[1]


@pytest.mark.slow
def test_the_budget_counts_from_when_the_command_was_given(config, monkeypatch):
    clock = Clock(monkeypatch)
    run = train(config, hours=100 / 3600, started=clock.now - 90, **SILENT)
    assert (run.status["epoch"], run.status["step"]) == (0, 1), "one step is always taken"


def test_inside_kaggle_there_is_a_budget_by_itself(monkeypatch):
    monkeypatch.delenv("KAGGLE_KERNEL_RUN_TYPE", raising=False)
    assert session_module.deadline_after(None, 5.0) is None
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Batch")
    assert session_module.deadline_after(None, 5.0) == 5.0 + 10 * 3600
    assert session_module.deadline_after(2, 5.0) == 5.0 + 2 * 3600


@pytest.mark.slow
def test_saves_keep_their_distance(config, monkeypatch):
    """A save may take one per cent of the time: here it takes 7 s, so there are 700 s between them."""
    Clock(monkeypatch).step = 35.0
    monkeypatch.setattr(callbacks_module, "LINES_PER_EPOCH", 1)
    saved = []
    original = callbacks_module.save_checkpoint
    monkeypatch.setattr(callbacks_module, "save_checkpoint",
                        lambda gan, directory, place: saved.append(time.monotonic()) or original(gan, directory, place))
    train(dataclasses.replace(config, epochs=5, limit=80, save_minutes=1), **SILENT)
    distances = [later - earlier for earlier, later in itertools.pairwise(saved)]
    assert distances[0] >= 700 - SAVE, "the first save is a part of what the first interval counts"
    assert len(saved) >= 4 and min(distances[1:-1]) >= 700 and max(distances) < 700 + 2 * 35
