"""What a run that goes on says about the images it did not begin with; no network is built for it."""

import numpy as np
import pytest
from PIL import Image

from facegen_keras import RunConfig
from facegen_keras.runs.images import load_images, open_run


def make_picture(path):
    pixels = np.random.default_rng(int(path.stem)).integers(0, 256, (32, 32, 3), np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def begun(tmp_path):
    """A run on 0.png to 7.png: it left out a web page, and the same picture a second time."""
    faces = tmp_path / "faces"
    faces.mkdir()
    for number in range(8):
        make_picture(faces / f"{number}.png")
    (faces / "8.png").write_bytes((faces / "0.png").read_bytes())
    (faces / "9.png").write_text("<html>")
    config = RunConfig.preset("article_small", data=faces, out=tmp_path / "run", image_size=32, batch_size=4, max_bad=0.25)
    images, bad = load_images(config, None, lambda line: None)
    run, release = open_run(config, images, bad)
    release()
    assert bad.keys() == {"8.png", "9.png"} == run.read("quarantine.json").keys()
    return config, run, faces


def go_on(config, run):
    lines = []
    images, bad = load_images(config, run, lines.append)
    assert bad == {} and [images.name(index) for index in range(len(images))] == [f"{n}.png" for n in range(8)]
    return lines


def test_images_left_out_at_the_start_are_not_new(begun):
    config, run, faces = begun
    assert go_on(config, run) == []
    make_picture(faces / "9.png")
    assert go_on(config, run) == [], "mended since, and still not one of the run"


def test_images_that_came_since_are_counted_without_them(begun):
    config, run, faces = begun
    make_picture(faces / "10.png")
    make_picture(faces / "11.png")
    assert go_on(config, run) == ["2 images are new since the run began and are not used"]
    (run.directory / "quarantine.json").unlink()
    assert go_on(config, run) == ["4 images are new since the run began and are not used"]
