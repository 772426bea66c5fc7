"""Training on what cannot be trained on: bad pictures left out and named, too many refused, changes survived."""

import collections
import dataclasses
import errno
import json
import os
import shutil

import numpy as np
import pytest
from bad_pictures import make_bad_folder
from PIL import Image

from facegen_keras import RunConfig
from facegen_keras.runs import callbacks as callbacks_module
from facegen_keras import training as training_module

from facegen_keras.data import patience, sources
from facegen_keras.data import store as store_module
from facegen_keras.data.check import check_faces
from facegen_keras.cli import main
from facegen_keras.base.errors import InputError
from facegen_keras.faces import epoch_order, load_faces
from facegen_keras.runs.folder import Run
from facegen_keras.training import train

SILENT = dict(report=lambda line: None)
pytestmark = pytest.mark.usefixtures("quick_pictures")


def make_faces(folder, count):
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 40, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:03}.png")
    return folder


def config_in(folder):
    return RunConfig.preset("article_small", data=make_faces(folder / "faces", 40), out=folder / "run", image_size=32, width=2,
                            batch_size=4, epochs=2, max_bad=0.03)


@pytest.fixture
def config(tmp_path):
    """Forty pictures, of which one may go bad without stopping anything."""
    return config_in(tmp_path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run on these pictures to which nothing happened."""
    return train(config_in(tmp_path_factory.mktemp("whole")), **SILENT)


@pytest.fixture(scope="module")
def begun_once(tmp_path_factory):
    """A run after its first step."""
    config = config_in(tmp_path_factory.mktemp("begun"))
    assert train(config, hours=0, **SILENT).status["state"] == "paused"
    return config


@pytest.fixture
def begun(begun_once, tmp_path):
    """A copy of it, with its pictures."""
    shutil.copytree(begun_once.data, tmp_path / "faces")
    shutil.copytree(begun_once.out, tmp_path / "run")
    return dataclasses.replace(begun_once, data=tmp_path / "faces", out=tmp_path / "run")


def quarantine(run):
    path = run.directory / "quarantine.json"
    return json.loads(path.read_text()) if path.exists() else {}


def at_step(monkeypatch, step, action):
    class Meanwhile(training_module.ShowForecast):
        def on_train_batch_end(self, batch, logs=None):
            if self.session.steps_done == step:
                action()

    monkeypatch.setattr(training_module, "ShowForecast", Meanwhile)


@pytest.mark.slow
def test_every_kind_of_bad_file_is_named_and_training_finishes(tmp_path, capfd):
    expected = make_bad_folder(tmp_path / "faces")
    assert len(expected) >= 25
    settings = ["image_size=32", "width=4", "batch_size=2", "epochs=2", "max_bad=0.95"]
    arguments = ["train", "--preset", "article_small", "--data", str(tmp_path / "faces"), "--out", str(tmp_path / "run")]
    with pytest.raises(SystemExit) as ended:
        main([*arguments, *(word for setting in settings for word in ("--set", setting))])
    out = capfd.readouterr().out
    assert ended.value.code == 0 and f"{len(expected)} of {len(expected) + 4} images cannot be used" in out
    run = Run(tmp_path / "run")
    found = quarantine(run)
    assert found.keys() == expected.keys()
    assert [name for name, reason in expected.items() if reason not in found[name]] == []
    assert run.status["state"] == "finished" and run.records("epoch")[-1]["step"] == 4, "two batches of the four good ones"
    assert run.read("environment.json")["images"] == 4, "a duplicate is no fifth"


def test_more_than_max_bad_is_refused_before_anything_is_written(config, tmp_path, capfd):
    for number in range(2):
        (tmp_path / f"faces/{number:03}.png").write_bytes(b"<html>")
    with pytest.raises(SystemExit) as ended:
        main(["train", "--data", config.data, "--out", config.out, "--set", "batch_size=4"])
    err = capfd.readouterr().err
    assert ended.value.code == 2 and err.count("\n") == 1 and not Run(config.out).directory.exists()
    assert "at most 1.00% of the images to be bad (max_bad), got '2 of 40, such as 000.png: HTML" in err


@pytest.mark.slow
def test_a_picture_that_vanishes_or_changes_before_it_was_shown_is_done_without(config, monkeypatch, tmp_path):
    generous = dataclasses.replace(config, max_bad=0.1)
    names = [f"{number:03}.png" for number in epoch_order(40, config.seed, 0)]
    (shown_and_gone, shown_and_changed), (gone, changed) = names[:2], names[-2:]

    def change():
        for name in (shown_and_gone, gone):
            (tmp_path / "faces" / name).unlink()
        for name in (shown_and_changed, changed):
            (tmp_path / "faces" / name).write_bytes((tmp_path / "faces" / names[20]).read_bytes())

    monkeypatch.setattr(store_module, "num_threads", lambda: 1)  # looks two steps ahead
    at_step(monkeypatch, 3, change)
    lines = []
    run = train(generous, report=lines.append)
    assert run.status["state"] == "finished" and run.records("epoch")[-1]["step"] == 20
    assert quarantine(run) == {gone: "no longer there", changed: "changed since it was checked"}
    assert any("2 images could not be used" in line for line in lines)


@pytest.mark.slow
def test_a_collection_that_vanishes_once_all_of_it_was_shown_is_not_missed(config, whole, monkeypatch, tmp_path):
    at_step(monkeypatch, 11, lambda: shutil.rmtree(tmp_path / "faces"))
    run = train(config, **SILENT)
    assert run.status["state"] == "finished" and quarantine(run) == {}
    assert (run.directory / "log.jsonl").read_bytes() == (whole.directory / "log.jsonl").read_bytes()


@pytest.mark.slow
def test_a_picture_that_vanished_between_sessions_keeps_its_place(begun, tmp_path):
    """The order of the others is as it was, so the run goes on from where it is."""
    (tmp_path / "faces/020.png").unlink()
    (tmp_path / "faces/new.png").write_bytes(b"<html>")  # would be named, were it used
    lines = []
    run = train(begun, report=lines.append)
    assert run.status["state"] == "finished" and quarantine(run) == {"020.png": "no longer there"}
    assert run.records("epoch")[-1]["step"] == 20
    assert "1 images are new since the run began and are not used" in lines


@pytest.mark.slow
def test_a_folder_that_moved_is_the_same(begun, tmp_path):
    (tmp_path / "faces").rename(tmp_path / "elsewhere")
    assert train(dataclasses.replace(begun, data=tmp_path / "elsewhere"), **SILENT).status["state"] == "finished"


@pytest.mark.slow
def test_other_pictures_are_refused_on_going_on(begun, tmp_path):
    for number in (1, 2, 3):
        (tmp_path / f"faces/{number:03}.png").unlink()
    with pytest.raises(InputError, match="was trained on other images; data: expected the 40 of"):
        train(begun, **SILENT)


@pytest.mark.slow
def test_pictures_that_went_bad_between_sessions_are_refused_before_another_step(begun, tmp_path):
    for number in (1, 2, 3):
        (tmp_path / f"faces/{number:03}.png").write_bytes(b"<html>")
    with pytest.raises(InputError, match="to be bad"):
        train(begun, **SILENT)
    assert len(Run(begun.out).records("steps")) == 1


@pytest.mark.slow
def test_a_limit_takes_the_same_pictures_from_a_folder_that_has_grown(config, tmp_path):
    limited = dataclasses.replace(config, limit=20)
    whole = train(dataclasses.replace(limited, out=tmp_path / "whole"), **SILENT)
    train(limited, hours=0, **SILENT)
    make_faces(tmp_path / "faces", 60)
    lines = []
    run = train(limited, report=lines.append)
    assert (run.directory / "log.jsonl").read_bytes() == (whole.directory / "log.jsonl").read_bytes()
    assert not any("new since" in line for line in lines), "who sets a limit knows that there are more"


@pytest.mark.slow
@pytest.mark.parametrize("everything", [False, True])
def test_too_many_that_vanish_in_mid_run_stop_it_and_it_goes_on_when_they_are_back(config, whole, monkeypatch, tmp_path, everything):
    folder, aside = tmp_path / "faces", tmp_path / "aside"
    aside.mkdir()

    def vanish():
        for number in range(0 if everything else 20, 40):
            (folder / f"{number:03}.png").rename(aside / f"{number:03}.png")

    slow, lines = dataclasses.replace(config, save_minutes=0), []
    with monkeypatch.context() as patch:
        patch.setattr(store_module, "num_threads", lambda: 1)  # looks two steps ahead
        at_step(patch, 3, vanish)
        if everything:  # then, where nothing could be kept, it is the thread that makes batches which ends it
            patch.setattr(store_module.DecodedStore, "keep", lambda *arguments: None)
            patch.setattr(callbacks_module.WatchImages, "on_train_batch_end", lambda *arguments, **options: None)
        with pytest.raises(InputError, match="to be bad"):
            train(slow, report=lines.append)
    assert not any("same command" in line for line in lines)
    assert Run(config.out).status["state"] == "paused"
    shutil.copytree(aside, folder, dirs_exist_ok=True)
    run = train(slow, **SILENT)
    assert run.status["state"] == "finished"
    assert [line["step"] for line in run.records("epoch")] == [line["step"] for line in whole.records("epoch")]


@pytest.fixture
def drive(monkeypatch):
    """A drive whose errors a test decides: `drive.fails(path, times)`, asked before each reading."""
    class Drive:
        fails, number, read = staticmethod(lambda path, times: False), errno.EIO, patience.read_bytes
        times = collections.Counter()

    def read_bytes(path, most):
        Drive.times[str(path)] += 1
        if Drive.fails(str(path), Drive.times[str(path)]):
            raise OSError(Drive.number, os.strerror(Drive.number), str(path))
        return Drive.read(path, most)

    for module in (patience, sources):
        monkeypatch.setattr(module, "read_bytes", read_bytes)
    monkeypatch.setattr(patience, "PAUSES", 7 * [0.001])
    return Drive


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EMFILE, errno.ETIMEDOUT])
def test_a_passing_error_of_the_drive_is_waited_out_and_no_picture_is_bad(tmp_path, drive, number):
    faces = load_faces(make_faces(tmp_path / "faces", 6), 32)
    drive.number, drive.fails = number, staticmethod(lambda path, times: times <= 2)
    assert check_faces(faces) == {}
    drive.fails = staticmethod(lambda path, times: True)
    with pytest.raises(InputError, match=f"^data: expected a drive that can be read, got .*{os.strerror(number)}"):
        load_faces(tmp_path / "faces", 32)[0]
    with pytest.raises(InputError, match="a drive that can be read"):
        (tmp_path / "faces/new.png").write_bytes((tmp_path / "faces/000.png").read_bytes() + b" ")
        check_faces(load_faces(tmp_path / "faces", 32))
    drive.fails = staticmethod(lambda path, times: False)
    assert check_faces(load_faces(tmp_path / "faces", 32)) == {}, "nothing of it was remembered"


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EMFILE])
@pytest.mark.parametrize("function", ["read_entry", "os.stat"])
def test_a_zip_on_a_drive_that_stumbles_loses_no_picture(tmp_path, monkeypatch, function, number):
    make_faces(tmp_path / "faces", 6)
    shutil.make_archive(str(tmp_path / "drive/faces"), "zip", tmp_path / "faces")
    faces, times, most = load_faces(tmp_path / "drive/faces.zip", 32), collections.Counter(), [2]
    module, name = (sources, function) if function == "read_entry" else (os, "stat")
    honest = getattr(module, name)

    def stumbles(what, *arguments, **options):
        place = arguments or what
        if name == "read_entry" or str(what).endswith("faces.zip"):
            times[place] += 1
            if times[place] <= most[0]:
                raise OSError(number, os.strerror(number))
        return honest(what, *arguments, **options)

    monkeypatch.setattr(patience, "PAUSES", 7 * [0.001])
    with monkeypatch.context() as patch:
        patch.setattr(module, name, stumbles)
        assert check_faces(faces) == {} and max(times.values()) > 2
        most[0] = 10**9
        with pytest.raises(InputError, match=f"^data: expected a drive that can be read, got .*{os.strerror(number)}"):
            faces[0]
    assert faces[0].shape == (32, 32, 3)


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EACCES])
def test_a_file_that_alone_cannot_be_read_is_bad(tmp_path, drive, number):
    faces = load_faces(make_faces(tmp_path / "faces", 6), 32)
    drive.number, drive.fails = number, staticmethod(lambda path, times: path.endswith("003.png"))
    assert check_faces(faces) == {"003.png": f"cannot be opened: {os.strerror(number)}"}


@pytest.mark.slow
def test_a_drive_that_goes_away_while_a_run_trains_pauses_it(config, drive):
    drive.fails = staticmethod(lambda path, times: sum(drive.times.values()) > 55)
    with pytest.raises(InputError, match="^data: expected a drive that can be read"):
        train(config, **SILENT)
    run = Run(config.out)
    assert run.status["state"] == "paused" and "a drive that can be read" in run.status["reason"]
    assert not (run.directory / "quarantine.json").exists()
    drive.fails = staticmethod(lambda path, times: False)
    assert train(config, **SILENT).status["state"] == "finished" and not (run.directory / "quarantine.json").exists()
