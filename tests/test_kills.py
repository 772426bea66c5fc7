"""A run that is killed at any moment, any number of times, ends like one that was never stopped: byte for byte."""

import contextlib
import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from killed_run import POINTS

from facegen_keras import RunConfig
from facegen_keras.runs.checkpoint import checkpoints
from facegen_keras.runs.folder import Run

KILLS = int(os.environ.get("FACEGEN_KILLS", 3))  # of each of two runs; the closing notes speak of 40
SCRIPT = Path(__file__).parent / "killed_run.py"
pytestmark = pytest.mark.slow


class Session:
    """A process that trains. It was forked from `parent`, which has imported everything."""

    def __init__(self, parent, output, config, *kill):
        self.parent, self.output = parent, output
        output.write_bytes(b"")
        parent.stdin.write(json.dumps([str(output), config.to_json(), *kill]) + "\n")
        parent.stdin.flush()
        self.number = int(parent.stdout.readline())

    def wait_for_output(self):
        deadline = time.monotonic() + 120
        while not self.output.stat().st_size:
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def kill(self):
        with contextlib.suppress(ProcessLookupError):  # it has ended
            os.kill(self.number, signal.SIGKILL)

    def wait(self):
        """The exit status, and what it said."""
        too_late = threading.Timer(120, self.kill)
        too_late.start()
        status = int(self.parent.stdout.readline())
        too_late.cancel()
        return status, self.output.read_text(errors="replace")


@pytest.fixture
def session(tmp_path):
    """Begins a session."""
    parent = subprocess.Popen([sys.executable, SCRIPT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    yield lambda config, *kill: Session(parent, tmp_path / "output", config, *kill)
    parent.stdin.close()
    assert parent.wait() == 0
    parent.stdout.close()


def outcome(directory):
    """What must be the same: the whole state with its place, the log, the pictures."""
    run = Run(directory)
    return {"state": checkpoints(run.directory / "checkpoints")[-1].read_bytes(),
            "log": (run.directory / "log.jsonl").read_text(),
            **{path.name: path.read_bytes() for path in run.samples()}}


def kill_at_a_random_time(session, config, chance):
    """Waits until the session has begun to work, and then for anything between nothing and three seconds."""
    process = session(config)
    process.wait_for_output()
    time.sleep(3 * chance.random() ** 2)
    process.kill()
    return process


def kill_at_a_random_point(session, config, chance):
    """Up to two steps further, with luck in the middle of something."""
    point = chance.choice(sorted(POINTS))
    pieces = {"write a piece of a checkpoint": 400, "push to the disk": 12, "rename": 4, "add a line to a log": 6,
              "take a step": 3, "delete": 10}
    return session(config, point, chance.randint(1, pieces.get(point, 1)), chance.random() < 0.5)


FIRST = [("add a line to a log", 4, True), ("write a piece of a checkpoint", 600, False)]  # what chance might leave out


@pytest.mark.parametrize(("seed", "preset", "changes"), [(0, "small", {}), (1, "acts", {"redraw_epochs": 2})])
def test_killed_runs_end_like_an_unbroken_one(session, tmp_path, seed, preset, changes):
    chance = random.Random(seed)
    config = RunConfig.preset(preset, image_size=32, width=4, batch_size=8, limit=48, epochs=max(4, KILLS // 3), seed=seed,
                              save_minutes=0, schedule_images=150, precision="float32", out=tmp_path / "unbroken", **changes)
    assert session(config).wait()[0] == 0
    killed = dataclasses.replace(config, out=tmp_path / "killed")
    kills = []
    for _ in range(3 * KILLS):
        if len(kills) == KILLS:
            break
        often = dataclasses.replace(killed, save_minutes=chance.choice([0, 0, 0, 5]))
        if len(kills) < len(FIRST):
            process = session(dataclasses.replace(killed, save_minutes=0), *FIRST[len(kills)])
        else:
            process = chance.choice([kill_at_a_random_time, kill_at_a_random_point])(session, often, chance)
        status, output = process.wait()
        assert status in (0, -9), output
        kills += ["killed"] if status == -9 else []
    assert len(kills) == KILLS, "the run was over too soon to be killed so often"
    assert session(killed).wait()[0] == 0
    assert Run(killed.out).status == {"state": "finished", "epoch": config.epochs, "step": 0, "reason": ""}
    expected, received = outcome(config.out), outcome(killed.out)
    assert [name for name in expected if received.get(name) != expected[name]] == []
    assert received.keys() == expected.keys()
    assert not list(Path(killed.out).rglob("*.part"))
