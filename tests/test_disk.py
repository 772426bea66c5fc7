"""Disks that are full, read-only or forgetful, runs in use, and run directories from strangers."""

import contextlib
import dataclasses
import errno
import hashlib
import io
import json
import os
import pickle
import random
import resource
import shutil
import stat
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest

from facegen_keras import RunConfig, load_faces, load_gan
from facegen_keras import training as training_module
from facegen_keras.runs import callbacks as callbacks_module
from facegen_keras.runs import checkpoint as checkpoint_module
from facegen_keras.runs.checkpoint import (
    Place, checkpoints, read_state, restore_checkpoint, restore_newest, save_checkpoint)
from facegen_keras.base.errors import InputError
from facegen_keras.base.files import sync, write_file
from facegen_keras.engine.encoder import latents_encoder
from facegen_keras.gan import FaceGAN
from facegen_keras.runs.folder import Run, delete_run, half_written, write_network
from facegen_keras.runs.images import open_run
from facegen_keras.runs.session import disk_trouble
from facegen_keras.training import train

SILENT = dict(report=lambda line: None)
TINY = RunConfig.preset("article_small", image_size=32, width=2, batch_size=8, limit=40, epochs=2)
pytestmark = pytest.mark.usefixtures("quick_pictures")
SCRIPT = Path(__file__).parent / "killed_run.py"


@pytest.fixture(scope="module")
def gan():
    return FaceGAN.from_run_config(TINY)


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 12 MB; `small_disk("size=20m")` changes it, "ro" lays a read-only view over it, "rw" takes that away."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "none", disk], capture_output=True).returncode:
        pytest.skip("no file system may be mounted here")

    def change(option):
        commands = {"ro": [["mount", "--bind", disk, disk], ["mount", "-o", "remount,ro,bind", disk]], "rw": [["umount", disk]]}
        for command in commands.get(option, [["mount", "-o", f"remount,{option}", disk]]):
            subprocess.run(command, check=True)

    change.path = disk
    yield change
    while subprocess.run(["umount", "--lazy", disk], capture_output=True).returncode == 0:
        pass


def outcome(run):
    return [checkpoints(run.directory / "checkpoints")[-1].read_bytes(), (run.directory / "log.jsonl").read_bytes(),
            *(path.read_bytes() for path in run.samples())]


@pytest.fixture(scope="module")
def unbroken_once(tmp_path_factory):
    return outcome(train(dataclasses.replace(TINY, out=tmp_path_factory.mktemp("unbroken") / "run"), **SILENT))


@pytest.fixture
def unbroken(unbroken_once):
    """How a run ends that nothing happened to."""
    return list(unbroken_once)


def sizes_of_writes(gan, folder):
    """How long the file of a checkpoint is before each of its writes."""
    sizes, original = [], checkpoint_module.DigestingFile.write

    def write(self, data):
        sizes.append(sizes[-1] + len(memoryview(data).cast("B")) if sizes else len(memoryview(data).cast("B")))
        return original(self, data)

    checkpoint_module.DigestingFile.write = write
    try:
        path = save_checkpoint(gan, folder, Place(1))
    finally:
        checkpoint_module.DigestingFile.write = original
    assert sizes[-1] == path.stat().st_size - checkpoint_module.DIGEST_BYTES
    return [0, *sizes, path.stat().st_size - 1]


@contextlib.contextmanager
def largest_file(num_bytes):
    """No file may become longer, as with a quota: writing on is an OSError."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def assert_only_the_first_is_there(gan, folder, first):
    assert [path.read_bytes() for path in folder.iterdir()] == [first]
    assert restore_newest(TINY, folder, gan=gan)[1] == Place(1)


def test_no_space_at_any_write_of_a_checkpoint_keeps_the_one_before(gan, tmp_path, monkeypatch):
    folder, state = tmp_path / "checkpoints", read_state(gan)
    monkeypatch.setattr(checkpoint_module, "read_state", lambda gan: state)  # which takes longer than to write it
    limits = sizes_of_writes(gan, folder)
    first = checkpoints(folder)[0].read_bytes()
    assert len(limits) > 100
    for limit in limits:
        with largest_file(limit), pytest.raises(OSError, match="too large"):
            save_checkpoint(gan, folder, Place(1 + limit % 2))  # also over the one before
        assert [path.read_bytes() for path in folder.iterdir()] == [first], limit
    assert_only_the_first_is_there(gan, folder, first)
    with largest_file(limits[-1] + 1):
        save_checkpoint(gan, folder, Place(2))
    assert restore_newest(TINY, folder, gan=gan)[1] == Place(2)


def test_a_full_disk_at_any_block_of_a_checkpoint_keeps_the_one_before(gan, small_disk):
    folder = small_disk.path / "checkpoints"
    size = save_checkpoint(gan, folder, Place(1)).stat().st_size
    first = checkpoints(folder)[0].read_bytes()
    room = shutil.disk_usage(small_disk.path).free
    filler = small_disk.path / "filler"
    for left in [*range(0, size - 4096, 20 * 4096), *range(size - 10 * 4096, size - 4096, 4096)]:
        filler.write_bytes(bytes(room - left))
        with pytest.raises(OSError, match="No space left"):
            save_checkpoint(gan, folder, Place(2))
        filler.unlink()
        assert_only_the_first_is_there(gan, folder, first)
    save_checkpoint(gan, folder, Place(2))
    assert restore_newest(TINY, folder, gan=gan)[1] == Place(2)


@pytest.mark.slow
def test_a_disk_that_fills_up_pauses_the_run_and_room_lets_it_go_on(small_disk, unbroken):
    config = dataclasses.replace(TINY, out=small_disk.path / "run", save_minutes=0)
    filler, lines, wrote = small_disk.path / "filler", [], []

    class Fill(training_module.StopInTime):
        def on_train_batch_end(self, batch, logs=None):
            super().on_train_batch_end(batch, logs)
            if self.session.steps_done == 7:
                filler.write_bytes(bytes(shutil.disk_usage(small_disk.path).free - 200_000))
                wrote.append(True)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_module, "StopInTime", Fill)
        run = train(config, report=lines.append)
    assert wrote and run.status["state"] == "paused" and "No space left" in run.status["reason"]
    assert any(line.startswith("epoch_") and "a kill now would lose what came after epoch 1, step 1" in line for line in lines)
    assert (run.status["epoch"], run.status["step"]) == (1, 1), "the last state that was saved"
    filler.unlink()
    small_disk("size=20m")
    assert outcome(train(config, **SILENT)) == unbroken


def test_a_disk_too_small_is_found_out_at_once(small_disk):
    (small_disk.path / "filler").write_bytes(bytes(shutil.disk_usage(small_disk.path).free - 450_000))
    with pytest.raises(InputError, match="^out: expected a disk with room for a checkpoint"):
        train(dataclasses.replace(TINY, out=small_disk.path / "run"), **SILENT)
    assert not Run(small_disk.path / "run").records("steps")


@pytest.mark.slow
def test_a_disk_that_turns_read_only_pauses_the_run(small_disk, unbroken):
    config = dataclasses.replace(TINY, out=small_disk.path / "run", save_minutes=0)
    lines = []

    class Turn(training_module.StopInTime):
        def on_train_batch_end(self, batch, logs=None):
            super().on_train_batch_end(batch, logs)
            if self.session.steps_done == 8:
                small_disk("ro")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_module, "StopInTime", Turn)
        run = train(config, report=lines.append)
    assert any("Read-only" in line for line in lines) and "paused after epoch 1, step 2" in lines[-1]
    before = sorted(path.read_bytes() for path in run.directory.rglob("*") if path.is_file())
    with pytest.raises(InputError, match="a folder that can be written"):
        train(config, **SILENT)
    assert sorted(path.read_bytes() for path in run.directory.rglob("*") if path.is_file()) == before
    small_disk("rw")
    assert outcome(train(config, **SILENT)) == unbroken


def test_a_flipped_bit_anywhere_is_noticed_and_the_one_before_is_used(gan, tmp_path):
    folder = tmp_path / "checkpoints"
    for epoch in (1, 2):
        save_checkpoint(gan, folder, Place(epoch))
    newest, lines = checkpoints(folder)[-1], []
    whole, chance = newest.read_bytes(), random.Random(0)
    structure = range(len(whole) - 400, len(whole))  # the end of the table of contents, and the digest
    for place in [*range(0, 60, 3), *structure[::4], *(chance.randrange(len(whole)) for _ in range(60))]:
        flipped = bytearray(whole)
        flipped[place] ^= 1 << chance.randrange(8)
        newest.write_bytes(flipped)
        with pytest.raises(checkpoint_module.DamagedCheckpoint, match="is damaged: its content is not what was written$"):
            restore_checkpoint(gan, newest)
    assert restore_newest(TINY, folder, lines.append, gan=gan)[1] == Place(1)
    assert lines.pop() == "epoch_0002_step_000000.npz is damaged: its content is not what was written; passed over"
    for length in (0, 1, 31, 32, 33, len(whole) // 2, len(whole) - 1):
        newest.write_bytes(whole[:length])
        assert restore_newest(TINY, folder, lines.append, gan=gan)[1] == Place(1)
    newest.unlink()
    newest.mkdir()  # opening it is an OSError, like a bad block
    assert restore_newest(TINY, folder, lines.append, gan=gan)[1] == Place(1) and "cannot be read" in lines[-1]
    newest.rmdir()
    newest.write_bytes(whole)
    assert restore_newest(TINY, folder, gan=gan)[1] == Place(2)


REFUSED = [OSError(errno.EIO, "Input/output error"), OSError(errno.EMFILE, "Too many open files"), OSError(errno.ESTALE, "Stale file handle"),
           OSError(errno.EACCES, "Permission denied"), OSError(errno.ENOMEM, "Cannot allocate memory"), MemoryError(),
           RuntimeError("RESOURCE_EXHAUSTED: Out of memory")]


WHERE = [(where, error) for where in ("open", "np.load", "load_weights") for error in REFUSED if where != "open" or isinstance(error, OSError)]


@pytest.mark.parametrize("where, error", WHERE, ids=str)
def test_a_file_that_the_system_refuses_to_read_is_not_damaged(gan, tmp_path, monkeypatch, where, error):
    """Passed over, the newest checkpoint would be deleted by the next one that is saved."""
    folder = tmp_path / "checkpoints"
    for epoch in (1, 2):
        save_checkpoint(gan, folder, Place(epoch))
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    (tmp_path / "config.json").write_text(TINY.to_json())

    def refuse(*arguments, **options):
        raise error

    if where == "load_weights":
        gan.ema_generator.save(tmp_path / "generator.keras")
        (tmp_path / "generator.keras").rename(tmp_path / "best.keras")
        monkeypatch.setattr(keras.Model, "load_weights", refuse)
    else:
        monkeypatch.setattr(checkpoint_module, "open", refuse, raising=False) if where == "open" else monkeypatch.setattr(np, "load", refuse)
        with pytest.raises(type(error)) as caught:
            restore_newest(TINY, folder, pytest.fail, gan=gan)
        assert caught.value is error
    with pytest.raises(type(error)):
        load_gan(tmp_path, best=where == "load_weights")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_disk_that_writes_something_else_keeps_the_one_before(gan, tmp_path, monkeypatch):
    first = save_checkpoint(gan, tmp_path, Place(1)).read_bytes()

    def write(self, data):
        self.sha256.update(data)
        return self.file.write(bytes(len(memoryview(data).cast("B"))))

    monkeypatch.setattr(checkpoint_module.DigestingFile, "write", write)
    with pytest.raises(checkpoint_module.DamagedCheckpoint):
        save_checkpoint(gan, tmp_path, Place(2))
    assert_only_the_first_is_there(gan, tmp_path, first)


def test_what_is_later_than_the_newest_goes(gan, tmp_path):
    """A run that went back past a damaged checkpoint must not find it again."""
    for place in (Place(1), Place(2), Place(3), Place(1, 3)):
        save_checkpoint(gan, tmp_path, place)
    assert [checkpoint_module.place_in_name(path) for path in checkpoints(tmp_path)] == [(1, 0), (1, 3)]


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP])
def test_a_file_system_that_cannot_push_folders_will_do(tmp_path, monkeypatch, number):
    original = os.fsync

    def fsync(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, "not here")
        original(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    write_file(tmp_path / "a.txt", b"a")
    assert (tmp_path / "a.txt").read_bytes() == b"a"
    monkeypatch.setattr(os, "fsync", lambda descriptor: exec("raise OSError(number, 'not here')", {"number": number}))
    with pytest.raises(OSError, match="not here"):
        write_file(tmp_path / "a.txt", b"b")
    with pytest.raises(OSError, match="not here"):
        sync(tmp_path / "a.txt")
    assert (tmp_path / "a.txt").read_bytes() == b"a", "a file must be pushed"


@pytest.fixture(scope="module")
def paused_once(tmp_path_factory):
    """A run in the middle of an epoch, saved after each step."""
    config = dataclasses.replace(TINY, out=tmp_path_factory.mktemp("paused") / "run", save_minutes=0)

    class Stop(training_module.StopInTime):
        def on_train_batch_end(self, batch, logs=None):
            if self.session.steps_done == 9:
                self.session.stop_reason = "for a test"
            super().on_train_batch_end(batch, logs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_module, "StopInTime", Stop)
        assert train(config, **SILENT).status["step"] == 4
    return config


@pytest.fixture
def paused(paused_once, tmp_path):
    """A copy of it."""
    shutil.copytree(paused_once.out, tmp_path / "run")
    return dataclasses.replace(paused_once, out=tmp_path / "run")


@pytest.mark.slow
def test_a_run_recovers_from_the_checkpoint_before(paused, unbroken):
    run, lines = Run(paused.out), []
    newest = checkpoints(run.directory / "checkpoints")[-1]
    damaged = bytearray(newest.read_bytes())
    damaged[len(damaged) // 3] ^= 16
    newest.write_bytes(damaged)
    assert outcome(train(paused, report=lines.append)) == unbroken
    assert newest.name in lines[0] and "passed over" in lines[0] and "after epoch 1, step 3" in lines[1]


def flip_the_middle(path):
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 255
    path.write_bytes(damaged)


@pytest.mark.slow
@pytest.mark.parametrize("names", [  # each of the lists of images is the other's witness
    ["status.json", "environment.json", "speed.jsonl", "losses.png", "timelapse.gif", "samples/epoch_0001.png"],
    ["images.json.gz"]], ids=["all but the images", "the images"])
def test_no_other_file_is_needed_to_go_on(paused, unbroken, names):
    for name in names:
        flip_the_middle(Run(paused.out).directory / name)
    result = outcome(train(paused, **SILENT))
    if "samples/epoch_0001.png" in names:  # the picture itself cannot come back: its weights are gone
        assert result[3] != unbroken[3]
        del result[3], unbroken[3]
    assert result == unbroken


@pytest.mark.slow
def test_a_list_of_images_that_is_damaged_does_not_admit_others(paused):
    """The digest of the names, in another file, tells whether today's images are the run's."""
    run = Run(paused.out)
    (run.directory / "images.json.gz").unlink()
    with pytest.raises(InputError, match="^out: expected a run on these images"):
        open_run(paused, load_faces("toy", 32, limit=41), {})
    (run.directory / "environment.json").write_text("[]")
    with pytest.raises(InputError, match="a list of them that is damaged"):
        train(paused, **SILENT)


@pytest.mark.slow
def test_a_log_that_lost_its_end_is_said_so_and_what_follows_it_is_right(paused, unbroken):
    run, lines = Run(paused.out), []
    log = run.directory / "log.jsonl"
    os.truncate(log, log.stat().st_size - 30)
    result = outcome(train(paused, report=lines.append))
    assert "log.jsonl has lost lines before step 9" in lines[0]
    whole = [json.loads(line) for line in unbroken[1].decode().splitlines()]
    left = [json.loads(line) for line in result[1].decode().splitlines()]
    lost = [line for line in whole if line not in left]
    assert result[0] == with_the_log_of(unbroken[0], result[0]) and result[2:] == unbroken[2:]
    assert [(line["kind"], line["step"]) for line in lost] == [("steps", 9), ("epoch", 10)]
    assert [line for line in left if line not in whole][0]["num_steps"] == 4, "the epoch's mean is over what is left"


def with_the_log_of(content, other):
    """A checkpoint's bytes with the place and digest of another: the log's length may differ."""
    arrays = [dict(np.load(io.BytesIO(data))) for data in (content, other)]
    arrays[0]["place"] = arrays[1]["place"]
    file = io.BytesIO()
    digesting = checkpoint_module.DigestingFile(file)
    np.savez(digesting, **arrays[0])
    file.write(digesting.sha256.digest())
    return file.getvalue()


@pytest.mark.slow
def test_what_is_damaged_beside_the_checkpoints_is_no_reason_to_give_up_a_gan(paused):
    finished = train(paused, **SILENT)
    expected = load_gan(paused.out).generate(2)
    for path in checkpoints(finished.directory / "checkpoints"):
        path.write_bytes(b"")
    np.testing.assert_array_equal(load_gan(paused.out).generate(2), expected)
    (finished.directory / "config.json").write_text('{"widht": 4}')
    with pytest.raises(InputError, match="config.json: setting: expected a name that exists, such as 'width'"):
        load_gan(paused.out)


@pytest.mark.slow
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_what_goes_wrong_at_the_very_end_leaves_a_run_that_goes_on(paused, unbroken, monkeypatch, error):
    def fail(run, max_side=512):
        if run.records("epoch") and len(run.records("epoch")) == paused.epochs:
            raise error("the end")

    monkeypatch.setattr(callbacks_module, "film", fail)
    with pytest.raises(error):
        train(paused, **SILENT)
    status = Run(paused.out).status
    assert status["state"] == "paused" and status["epoch"] == paused.epochs and "the end" in status["reason"]
    monkeypatch.undo()
    run = train(paused, **SILENT)
    assert run.status["state"] == "finished" and outcome(run) == unbroken and (run.directory / "generator.keras").exists()


@pytest.mark.slow
def test_checkpoints_that_are_gone_or_all_damaged_are_not_passed_over_in_silence(paused):
    folder = Run(paused.out).directory / "checkpoints"
    for path in checkpoints(folder):
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match="^checkpoints: expected one that is whole, got '3 that are damaged"):
        train(paused, **SILENT)
    shutil.rmtree(folder)
    with pytest.raises(InputError, match="^checkpoints: expected one at epoch 1, step 4"):
        train(paused, **SILENT)


@pytest.mark.slow
def test_a_run_in_use_is_refused_and_a_dead_processs_lock_does_not_count(tmp_path):
    config = dataclasses.replace(TINY, out=tmp_path / "run", epochs=10_000)
    process = subprocess.Popen([sys.executable, SCRIPT, config.to_json()], stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.startswith("measured"):
            break
    with pytest.raises(InputError, match="^out: expected a run that no other process is training"):
        train(config, hours=0, **SILENT)
    with pytest.raises(InputError, match="no other process"):
        train(config, hours=0, fresh=True, **SILENT)
    assert process.poll() is None
    process.kill()
    process.communicate()
    assert Run(config.out).status["state"] == "running", "nobody was left to say otherwise"
    lines = []
    assert train(config, hours=0, report=lines.append).status["state"] == "paused"
    assert "ended by force" in lines[0]


class Bomb:
    """Runs code when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


PLACE = json.dumps(Place(1)._asdict())


def strangers_checkpoint(path, **arrays):
    np.savez(path, allow_pickle=True, **arrays)
    path.write_bytes((content := path.read_bytes()) + hashlib.sha256(content).digest())


def test_a_strangers_checkpoint_runs_no_code(gan, tmp_path):
    run, trap = tmp_path / "run", tmp_path / "trap"
    (run / "checkpoints").mkdir(parents=True)
    (run / "config.json").write_text(TINY.to_json())
    path = run / "checkpoints/epoch_0001_step_000000.npz"
    array = np.array([Bomb(trap)], object)
    strangers_checkpoint(path, place=np.array(PLACE), **{**read_state(gan), "random/000/seed_generator_state": array})
    with pytest.raises(InputError, match="checkpoints: expected one that is whole"):
        load_gan(run)
    assert not trap.exists()
    np.load(path, allow_pickle=True)["random/000/seed_generator_state"]
    assert trap.exists(), "the trap works where it is let"
    strangers_checkpoint(path, place=np.array(PLACE), other=np.zeros(3))
    with pytest.raises(InputError, match="^checkpoint: expected"):
        load_gan(run)
    path.write_bytes((content := pickle.dumps(Bomb(tmp_path / "second"))) + hashlib.sha256(content).digest())
    with pytest.raises(InputError):
        load_gan(run)
    assert not (tmp_path / "second").exists()


def test_a_strangers_generator_runs_no_code(tmp_path):
    trap = str(tmp_path / "trap")
    (tmp_path / "config.json").write_text(TINY.to_json())
    spring = keras.layers.Lambda(lambda x: (__import__("os").makedirs(trap, exist_ok=True), x)[1])
    keras.Sequential([keras.Input((TINY.latent_dim,)), spring]).save(tmp_path / "generator.keras")
    shutil.rmtree(trap)
    with pytest.raises(InputError, match="expected weights of this config's generator"):
        load_gan(tmp_path)
    assert not os.path.exists(trap)
    keras.saving.load_model(tmp_path / "generator.keras", safe_mode=False)
    assert os.path.exists(trap), "the trap works where it is let"


@pytest.mark.slow
def test_a_strangers_run_writes_nothing_outside_its_folder(paused, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "diary.txt").write_text("dear")
    run = Run(paused.out).directory
    for name, target in (("samples", outside), ("log.jsonl", outside / "diary.txt"), ("lock", outside / "diary.txt")):
        kept = run / f"kept {name}"
        (run / name).rename(kept)
        (run / name).symlink_to(target)
        for fresh in (False, True):
            with pytest.raises(InputError, match=f"{name} no link"):
                train(paused, fresh=fresh, **SILENT)
        (run / name).unlink()
        kept.rename(run / name)
    (run / "samples/epoch_0002.png.part").symlink_to(outside / "diary.txt")
    config = json.loads((run / "config.json").read_text()) | {"out": str(outside / "run")}
    (run / "config.json").write_text(json.dumps(config))
    assert train(paused, **SILENT).status["state"] == "finished"
    assert [path.name for path in outside.iterdir()] == ["diary.txt"] and (outside / "diary.txt").read_text() == "dear"


@pytest.fixture(params=["full", "read-only", "not there"])
def no_room_for_temporary_files(request, small_disk, monkeypatch):
    """The temporary folder is as good as none."""
    if request.param == "full":
        (small_disk.path / "filler").write_bytes(bytes(shutil.disk_usage(small_disk.path).free))
    elif request.param == "read-only":
        small_disk("ro")
    monkeypatch.setattr(tempfile, "tempdir", str(small_disk.path / ("nowhere" if request.param == "not there" else "")))


def test_a_run_needs_no_temporary_folder(gan, tmp_path, no_room_for_temporary_files):
    write_network(Run(tmp_path), gan.ema_generator, "generator.keras")
    assert {path.name for path in tmp_path.iterdir()} == {"generator.keras", "disk"}
    (tmp_path / "config.json").write_text(TINY.to_json())
    np.testing.assert_array_equal(load_gan(tmp_path).generate(2), gan.generate(2))


def test_the_network_before_stays_where_a_new_one_has_no_room_and_the_file_is_named(gan, small_disk):
    path = small_disk.path / "generator.keras"
    path.write_bytes(b"the one before")
    (small_disk.path / "filler").write_bytes(bytes(shutil.disk_usage(small_disk.path).free - 100_000))
    with pytest.raises(OSError, match="No space left") as caught:
        write_network(Run(small_disk.path), gan.ema_generator, "generator.keras")
    assert caught.value.filename == str(path) and path.read_bytes() == b"the one before"
    assert {entry.name for entry in small_disk.path.iterdir()} == {"generator.keras", "filler"}


def test_the_disk_that_is_full_is_the_one_that_is_named(tmp_path, small_disk):
    (small_disk.path / "filler").write_bytes(bytes(shutil.disk_usage(small_disk.path).free))
    run = Run(tmp_path / "run")
    for path, expected in ((small_disk.path / "film.gif", str(small_disk.path / "film.gif")), (tmp_path / "run/log.jsonl", "log.jsonl"),
                           (None, "the run")):
        error = OSError(errno.ENOSPC, "No space left on device", path and str(path))
        assert disk_trouble(error, run) == f"{expected} could not be written (No space left on device)"
    with pytest.raises(OSError) as caught:
        Run(small_disk.path).append("log.jsonl", {"kind": "steps", "text": 10_000 * "x"})
    assert caught.value.filename == str(small_disk.path / "log.jsonl")


KILLED = """
import os, signal, sys
import keras
from facegen_keras.runs.folder import Run, write_network

network = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])
save = keras.Model.save

def killed(self, path):
    save(self, path)
    os.kill(os.getpid(), signal.SIGKILL)

keras.Model.save = killed
write_network(Run(sys.argv[1]), network, sys.argv[2])
"""


@pytest.mark.parametrize("left", ["a file", "a link", "a folder with a folder", "nothing"])
def test_what_a_killed_process_left_of_a_network_is_swept_out(gan, tmp_path, left):
    run, name, outside = Run(tmp_path / "run"), "best.keras", tmp_path / "outside"
    (run.directory / "tmp_mine").mkdir(parents=True)
    outside.mkdir()
    (outside / "diary.txt").write_text("dear")
    place = run.directory / f"{name}.part"
    if left == "a file":
        place.write_bytes(b"half")
    elif left == "a link":
        place.symlink_to(outside)
    elif left == "a folder with a folder":
        (place / "tmp123").mkdir(parents=True)
        (place / name).write_bytes(b"half")
    assert half_written(run) == [place] * (left != "nothing")
    write_network(run, gan.ema_generator, name)
    assert {path.name for path in run.directory.iterdir()} == {name, "tmp_mine"} and (outside / "diary.txt").exists()
    if left == "a folder with a folder":
        (place / "tmp123").mkdir(parents=True)
    delete_run(run)
    assert [path.name for path in run.directory.iterdir()] == ["tmp_mine"]


def test_a_process_killed_while_it_saves_a_network_leaves_nothing_unknown(tmp_path):
    """In a process of its own, with NumPy for Keras, which takes some of JAX: it starts no TensorFlow."""
    pytest.importorskip("jax")
    code = [sys.executable, "-c", KILLED, tmp_path, "generator.keras"]
    assert subprocess.run(code, capture_output=True, env={**os.environ, "KERAS_BACKEND": "numpy"}).returncode == -9
    assert [path.name for path in tmp_path.iterdir()] == ["generator.keras.part"] == [path.name for path in half_written(Run(tmp_path))]


@pytest.mark.parametrize("function", ["mkdtemp", "save", "mkdir"])
def test_a_network_that_cannot_be_saved_names_its_file(gan, tmp_path, monkeypatch, function):
    def fail(self, *arguments, **options):
        raise OSError(errno.EDQUOT, "Disk quota exceeded", "/tmp/tmpk3j4")

    monkeypatch.setattr({"mkdtemp": tempfile, "save": keras.Model, "mkdir": Path}[function], function, fail if function != "mkdtemp" else lambda *a, **o: fail(None))
    with pytest.raises(OSError, match="quota") as caught:
        write_network(Run(tmp_path), gan.ema_generator, "generator.keras")
    assert caught.value.filename == str(tmp_path / "generator.keras") and not any(tmp_path.iterdir())
    assert tempfile.tempdir is None or Path(tempfile.tempdir).is_dir()


@pytest.mark.parametrize("moment", ["the first save", "a step", "the end", "opening"])
def test_memory_is_not_blamed_on_the_disk(tmp_path, monkeypatch, moment):
    """An error of the system that says so by its number alone."""
    def fall(*arguments, **options):
        raise OSError(errno.ENOMEM, "Cannot allocate memory", str(tmp_path / "run/log.jsonl"))

    config = dataclasses.replace(TINY, out=tmp_path / "run", epochs=1, limit=16)
    place = {"the first save": (callbacks_module, "save_checkpoint"), "a step": (callbacks_module, "log_line"),
             "the end": (training_module, "write_network"), "opening": (Run, "write")}[moment]
    with monkeypatch.context() as patch, pytest.raises(InputError, match="^memory: expected more than there is.*batch_size, width"):
        patch.setattr(*place, fall)
        train(config, **SILENT)
    if moment != "opening":
        status = Run(config.out).status
        assert status["state"] == "paused" and "see to the disk" not in status["reason"]
    assert train(config, **SILENT).status["state"] == "finished"


@pytest.mark.parametrize("change", [dict(width=4), dict(latent_dim=7), dict(image_size=64)])
def test_a_checkpoint_of_another_config_is_not_passed_over(gan, tmp_path, change):
    """With a generator.keras beside it: an older one would have come back in silence."""
    save_checkpoint(gan, tmp_path / "checkpoints", Place(1))
    (tmp_path / "config.json").write_text(dataclasses.replace(TINY, **change).to_json())
    gan.ema_generator.save(tmp_path / "generator.keras")
    with pytest.raises(InputError, match="^checkpoint: expected .*use the config"):
        load_gan(tmp_path)


@pytest.mark.parametrize("preset", ["article_small", "small", "acts"])
def test_keras_alone_reads_a_network_of_a_run(preset, tmp_path):
    """As the README says: nothing in the file is known to this package only."""
    readme = (Path(__file__).parent.parent / "README.md").read_text()
    assert '`keras.saving.load_model("runs/mine/generator.keras")` after `import keras`' in readme
    config = RunConfig.preset(preset, image_size=32, width=2)
    gan = FaceGAN.from_run_config(config, config.loss_at(0))
    write_network(Run(tmp_path), gan.ema_generator, "generator.keras")
    with zipfile.ZipFile(tmp_path / "generator.keras") as archive:
        description = archive.read("config.json").decode()
    assert "facegen" not in description
    again = keras.saving.load_model(tmp_path / "generator.keras")
    np.testing.assert_array_equal(again.get_weights()[-1], gan.ema_generator.get_weights()[-1])


@pytest.mark.parametrize("latent_dim", [2, 8, 100])
def test_keras_alone_reads_the_encoder_of_a_run(latent_dim, tmp_path):
    config = RunConfig.preset("acts", image_size=32, width=2, latent_dim=latent_dim)
    gan = FaceGAN.from_run_config(config, "redraw")
    encoder = latents_encoder(gan.encoder, gan.ema_generator)
    write_network(Run(tmp_path), encoder, "encoder.keras")
    with zipfile.ZipFile(tmp_path / "encoder.keras") as archive:
        assert "facegen" not in archive.read("config.json").decode()
    again = keras.saving.load_model(tmp_path / "encoder.keras")
    np.testing.assert_array_equal(again.get_weights()[-1], encoder.get_weights()[-1])
