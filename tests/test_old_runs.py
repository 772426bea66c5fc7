"""A run folder that an earlier version of the package began goes on: with its weights, its moments, its place, its log."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from facegen_keras.runs.folder import Run
from facegen_keras.runs.start import load_gan
from facegen_keras.training import train

OLD = Path(__file__).parent / "fixtures" / "run_before_the_move"


def records(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.slow
def test_a_run_begun_before_the_modules_moved_goes_on(tmp_path):
    """Paused in its second of two epochs; `whole_log.jsonl` is what that version logged of a run without a break."""
    folder = tmp_path / "run"
    shutil.copytree(OLD, folder)
    expected = records(folder / "whole_log.jsonl")
    (folder / "whole_log.jsonl").unlink()
    begun = records(folder / "log.jsonl")
    lines = []
    run = train(dataclasses.replace(Run(folder).config, out=folder), report=lines.append)
    assert run.status == {"state": "finished", "epoch": 2, "step": 0, "reason": ""}
    assert any("going on after epoch 1, step 3" in line for line in lines)
    found = records(folder / "log.jsonl")
    assert found[:len(begun)] == begun == expected[:len(begun)]
    assert [line["kind"] for line in found] == [line["kind"] for line in expected]
    for here, there in zip(found, expected):  # to the digits that two processors share
        assert here.keys() == there.keys()
        if here not in begun:  # that version sampled with other statistics
            here.pop("variety", None), there.pop("variety", None)
        np.testing.assert_allclose([here[name] for name in here if type(here[name]) is float],
                                   [there[name] for name in there if type(there[name]) is float], rtol=0.02, atol=2e-3)
    assert load_gan(folder).generate(2).shape == (2, 32, 32, 3)
