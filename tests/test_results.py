"""The records behind 40_results: trained once, measured against the right pictures, the same the second time."""

import json

import numpy as np
from PIL import Image

from facegen_keras import results
from facegen_keras.benchmark import step_gflop
from facegen_keras.config import RunConfig
from facegen_keras.gan import FaceGAN
from facegen_keras.results import ARMS, SMALL, measure_arms
from facegen_keras.toyfaces import ToyFaces

TINY = dict(image_size=32, width=4, batch_size=8, limit=120)
PAIR = {"first": dict(preset="demo", epochs=(1, 2)), "second one": dict(preset="modern", epochs=(1,))}


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
                     ("second one", 0, 1, 15), ("second one without average", 0, 1, 15),
                     ("second one", 1, 1, 15), ("second one without average", 1, 1, 15)]
    assert record["rows"][0]["frechet"] != record["rows"][3]["frechet"], "two seeds are two runs"
    assert record["floors"]["copy_share"]["held_out"] < 0.1, "held-out pictures are not those it was trained on"
    assert record["about"]["count"] == 100
    assert all(row["state"] == "finished" for row in record["rows"])

    def refuse(*arguments, **options):
        raise AssertionError("this run was made before")

    monkeypatch.setattr(results, "train", refuse)
    assert measure()["rows"] == record["rows"]


def test_the_arms_of_the_race_do_equal_work():
    """Where the epochs end, within two per cent; and the first third is no more than a third."""
    def tflop(arm, epochs):
        settings = {name: value for name, value in arm.items() if name not in ("preset", "epochs")}
        config = RunConfig.preset(arm["preset"], **settings | SMALL, precision="float32")
        return epochs * SMALL["limit"] * step_gflop(FaceGAN.from_run_config(config)) / 1000

    ends = [tflop(arm, arm["epochs"][-1]) for arm in ARMS.values()]
    np.testing.assert_allclose(ends, ends[0], rtol=0.02)
    assert tflop(ARMS["modern"], ARMS["modern"]["epochs"][0]) <= ends[0] / 3
