"""The records behind 10_results: trained once, measured against the right pictures, the same the second time."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from facegen_keras import gan as gan_module
from facegen_keras.measure import experiments as experiments_module
from facegen_keras.measure.work import run_tflop
from facegen_keras.runs.folder import Run
from facegen_keras.base.errors import InputError
from facegen_keras.measure.experiments import (
    ARMS, DRAWN, SMALL_SET, arm_config, farthest_faces, measure_arms, short_runs, write_pictures)
from facegen_keras.toyfaces import ToyFaces

RECORDS = Path(__file__).parents[1] / "nbs" / "records"
TINY = dict(image_size=32, width=4, batch_size=8, limit=120)
pytestmark = pytest.mark.usefixtures("quick_pictures")
PAIR = {"first": dict(preset="article_small", epochs=(1, 2)), "second one": dict(preset="acts", redraw_epochs=1, epochs=(2,))}


@pytest.mark.slow
@pytest.mark.usefixtures("few_pairs")
def test_a_record_of_two_small_arms(tmp_path, monkeypatch):
    faces = ToyFaces(260, 32, seed=0)
    (tmp_path / "faces").mkdir()
    for index in range(260):
        Image.fromarray(faces[index]).save(tmp_path / "faces" / f"{index:03d}.png")

    def measure():
        return measure_arms(PAIR, (0, 1), str(tmp_path / "faces"), str(tmp_path / "runs"), count=100, small=TINY)

    record = json.loads(json.dumps(measure()))
    place = [(row["arm"], row["seed"], row["epochs"], row["steps"]) for row in record["rows"]]
    assert place == [("first", 0, 1, 15), ("first", 0, 2, 30), ("first without average", 0, 2, 30),
                     ("first", 1, 1, 15), ("first", 1, 2, 30), ("first without average", 1, 2, 30),
                     ("second one", 0, 2, 30), ("second one without average", 0, 2, 30),
                     ("second one", 1, 2, 30), ("second one without average", 1, 2, 30)]
    assert record["rows"][0]["frechet"] != record["rows"][3]["frechet"], "two seeds are two runs"
    assert record["floors"]["copy_share"]["held_out"] < 0.1, "held-out pictures are not those it was trained on"
    assert record["about"]["count"] == 100
    assert all(row["state"] == "finished" for row in record["rows"])

    def refuse(*arguments, **options):
        raise AssertionError("this run was made before")

    monkeypatch.setattr(experiments_module, "train", refuse)
    assert measure()["rows"] == record["rows"]
    (pictures := tmp_path / "pictures").mkdir()
    write_pictures(PAIR, str(tmp_path / "runs"), str(tmp_path / "faces"), str(pictures))
    sizes = {path.name: Image.open(path).size for path in pictures.iterdir()}
    assert sizes == {f"{kind}_{arm}.png": (8 * 34 + 2, rows * 34 + 2) for kind, arm, rows in (
        ("faces", "first", 3), ("way", "first", 2), ("farthest", "first", 1),
        ("faces", "second_one", 3), ("way", "second_one", 1), ("farthest", "second_one", 1))}


def test_the_farthest_faces_are_those_like_no_real_one():
    real = ToyFaces(60, 32, seed=0)
    faces = np.stack([real[index] for index in range(60)])
    faces[17], faces[41] = 255 - faces[17] // 4, np.random.default_rng(0).integers(0, 256, (32, 32, 3))
    found = farthest_faces(faces, real, 2)
    assert np.array_equal(found, faces[[41, 17]]) or np.array_equal(found, faces[[17, 41]])


def tflop(arm, epochs, limit):  # work of an arm until then
    return run_tflop(arm_config(arm, epochs, **SMALL_SET | {"limit": limit}, precision="float32"))


@pytest.mark.slow
@pytest.mark.parametrize("arms, limit", [(ARMS, 9_000), (DRAWN, 30_000)])
def test_the_arms_of_a_race_do_equal_work(arms, limit):
    """Where the epochs end, within two per cent, both acts counted."""
    ends = [tflop(arm, arm["epochs"][-1], limit) for arm in arms.values()]
    np.testing.assert_allclose(ends, ends[0], rtol=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("record, name, arm, limit", [
    ("quality_race", "article", ARMS["article"], 9_000),
    ("quality_race", "article faster", ARMS["article faster"], 9_000),
    ("quality_celeba", "article", ARMS["article"], 9_000),
    ("quality_celeba", "article faster", ARMS["article faster"], 9_000),
    ("quality_drawn", "article", DRAWN["article"], 30_000),
    ("quality_drawn_again", "article", DRAWN["article"], 30_000)])
def test_each_record_has_the_work_of_its_arms(record, name, arm, limit):
    """Of those arms whose recipes are still today's."""
    rows = json.loads((RECORDS / f"{record}.json").read_text())["rows"]
    found = {row["epochs"]: row["tflop"] for row in rows if row["arm"] == name}
    assert len(found) >= 4 and set(found) <= set(arm["epochs"])
    per_epoch = tflop(arm, 1, limit)
    assert found == pytest.approx({epochs: epochs * per_epoch for epochs in found}, abs=0.01)


@pytest.mark.slow
@pytest.mark.usefixtures("few_pairs")
def test_drawn_faces_come_with_the_kinds_that_are_missing(tmp_path, monkeypatch, reader):
    arms = {"one": dict(preset="article_small", epochs=(1,))}
    monkeypatch.setattr(experiments_module, "ModeReader", lambda image_size, cache: reader)
    with pytest.raises(InputError, match="seeds: expected one with drawn faces"):
        measure_arms(arms, (0, 1), "toy", str(tmp_path), count=100, small=TINY)
    record = measure_arms(arms, (0,), "toy", str(tmp_path), count=100, small=TINY)
    for row in record["rows"]:
        assert row["missing_kinds"] and 0 <= row["kinds_covered"] < 1, "after an epoch there is no face yet"
    assert record["floors"]["kinds_covered"]["held_out"] == 1


@pytest.mark.slow
def test_short_runs_tell_what_became_of_each(tmp_path, monkeypatch):
    arms = {"lost one": dict(preset="article_small", epochs=(9,)), "sound": dict(preset="acts", redraw_epochs=1, epochs=(9,))}
    original = gan_module.FaceGAN.draw_noise

    def draw_noise(self):
        return (float("nan"), 1.0) if self.config.loss == "noisy_labels" else original(self)

    monkeypatch.setattr(gan_module.FaceGAN, "draw_noise", draw_noise)
    rows = short_runs(arms, range(1, 2), "toy", str(tmp_path), TINY | {"epochs": 2})
    assert [(row["arm"], row["seed"], row["state"], row["recoveries"] > 0) for row in rows] == [
        ("lost one", 1, "diverged", True), ("sound", 1, "finished", False)]
    samples = [line["variety"] for line in Run(tmp_path / "sound_1").records("samples")]
    assert rows[0]["lowest_variety"] is rows[0]["last_variety"] is None, "not one grid was drawn"
    assert len(samples) == 2 and [rows[1]["lowest_variety"], rows[1]["last_variety"]] == [min(samples), samples[-1]]
