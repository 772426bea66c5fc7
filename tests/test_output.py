"""Lines, errors and locks without TensorFlow: streams that take nothing, memory in whatever words, drives that cannot lock."""

import errno
import fcntl
import io
import os
import signal
import subprocess
import sys
import types
from contextlib import nullcontext

import click
import numpy as np
import pytest
from PIL import Image

from facegen_keras.base import output
from facegen_keras.base.errors import InputError, first_line, is_out_of_memory
from facegen_keras.cli import main, mend_suggestions
from facegen_keras.kaggle.notebook import locked
from facegen_keras.kaggle.signals import Signals
from facegen_keras.runs.folder import SEE_TO_THE_DISK, Run, another_run, disk_remedy, lock_run


class Tracker:
    """What trackers put in the place of stdout and stderr."""

    def __init__(self, error=None):
        self.text, self.error = "", error

    def write(self, text):
        if self.error:
            raise self.error
        self.text += text


class Terminal(Tracker):
    """That of a session that has gone."""

    encoding = "utf-8"

    def isatty(self):
        return True

    def flush(self):
        if self.error:
            raise self.error


GONE = OSError(errno.EIO, "Input/output error")
STREAMS = {"tracker": (Tracker(), True), "none": (None, True), "ASCII": (io.TextIOWrapper(io.BytesIO(), "ascii"), True),
           "Latin": (io.TextIOWrapper(io.BytesIO(), "latin-1"), True), "pipe without a reader": (Tracker(BrokenPipeError()), True),
           "full disk": (Tracker(OSError(errno.ENOSPC, "No space left on device")), False),
           "closed": (Tracker(ValueError("I/O operation on closed file")), False), "torn terminal": (Terminal(GONE), False)}


@pytest.mark.parametrize("name", ["stdout", "stderr"])
@pytest.mark.parametrize("stream, taken", STREAMS.values(), ids=STREAMS)
def test_a_line_never_ends_anything(monkeypatch, name, stream, taken):
    others = {"stdout": "stderr", "stderr": "stdout"}
    monkeypatch.setattr(sys, name, stream)
    monkeypatch.setattr(sys, others[name], other := Tracker())
    assert output.say("坏.jpg: the file is empty", err=name == "stderr") is taken
    assert other.text == "", "never to the other one"
    if taken and type(stream) is Tracker and not stream.error:
        assert stream.text.endswith("坏.jpg: the file is empty\n")


@pytest.mark.parametrize("stderr", [Terminal(GONE), Terminal(), Tracker(GONE), Tracker(), None], ids=lambda stream: type(stream).__name__)
def test_a_bar_never_ends_anything(monkeypatch, stderr):
    monkeypatch.setattr(sys, "stderr", stderr)
    now = iter(range(0, 10_000, 20))
    if not output.is_terminal(stderr):
        monkeypatch.setattr(output.time, "monotonic", now.__next__)
    with output.progress_bar("making faces") as outer, output.progress_bar("reading") as inner:
        for done in range(3):
            outer(done, 3), inner(done, 3)


def test_lines_come_half_a_minute_apart(monkeypatch):
    now, told = [5.0], []
    monkeypatch.setattr(output.time, "monotonic", lambda: now[0])
    perhaps = output.now_and_then(told.append)
    for second in range(95):
        now[0] = 5.0 + second
        perhaps(second)
    assert told == [30, 60, 90]


COMMAND = "import sys; from facegen_keras.cli import main; main(sys.argv[1:])"


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "faces"
    folder.mkdir()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)).save(folder / "good.png")
    (folder / "坏.jpg").write_bytes(b"")
    return folder


def shell(line, **variables):
    """Runs a line in which facegen is the command."""
    line = line.replace("facegen ", f"{sys.executable} -c '{COMMAND}' ")
    return subprocess.run(["bash", "-c", line], capture_output=True, env={**os.environ, **variables}, encoding="utf-8", errors="replace")


def test_names_that_the_terminal_cannot_show_are_no_traceback(pictures):
    done = shell(f"facegen check {pictures}", PYTHONIOENCODING="latin-1")
    assert done.returncode == 0 and done.stderr == "" and "\\u574f.jpg: the file is empty" in done.stdout


LINES = {"a full disk": ("facegen check FACES --out FOUND > /dev/full", 2, "facegen: stdout: "),
         "a full disk, settings": ("facegen settings > /dev/full", 2, "facegen: stdout: "),
         "a full disk, help": ("facegen train --help > /dev/full", 2, "facegen: stdout: "),
         "a full disk, no command": ("facegen > /dev/full", 2, "facegen: stdout: "),
         "a reader who has gone": ("(sleep 0.1; facegen check FACES --out FOUND; echo $? >&2) | true", 0, "0"),
         "no stdout": ("facegen check FACES --out FOUND >&-", 0, ""),
         "no stderr": ("facegen check nowhere 2>&-", 2, ""),
         "a full stderr": ("facegen check nowhere 2> /dev/full", 2, "")}


@pytest.mark.parametrize("line, status, said", LINES.values(), ids=LINES)
def test_what_cannot_be_printed_is_no_traceback_and_costs_no_record(pictures, tmp_path, line, status, said):
    done = shell(line.replace("FACES", str(pictures)).replace("FOUND", str(tmp_path / "found.json")))
    assert done.returncode == status and done.stderr.startswith(said) and done.stderr.count("\n") == bool(said)
    assert (tmp_path / "found.json").exists() == ("FOUND" in line)


@pytest.mark.parametrize("stderr", [None, Tracker(GONE), Terminal(GONE)])
def test_the_status_is_given_whether_or_not_its_line_can_be(monkeypatch, stderr):
    monkeypatch.setattr(sys, "stderr", stderr)
    with pytest.raises(SystemExit) as ended:
        main(["check", "nowhere"])
    assert ended.value.code == 2


def told_in_one_line(capfd, *arguments):
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    error = capfd.readouterr().err
    assert ended.value.code == 2 and error.count("\n") == 1
    return error


NO_SUCH_OPTION = {"train": ("--epochs", True), "check": ("--crop", False), "bench": ("--seed", False), "evaluate": ("--epochs", False),
                  "sample": ("--width", False), "kernel build": ("--epochs", True), "kernel pull": ("--epochs", False)}


@pytest.mark.parametrize("command", NO_SUCH_OPTION)
def test_a_setting_is_suggested_only_where_settings_are_taken(capfd, command):
    option, takes = NO_SUCH_OPTION[command]
    error = told_in_one_line(capfd, *command.split(), option, "3")
    assert (f"--set {option[2:]}=VALUE" in error) == takes and f"facegen {command} --help" in error


def test_a_suggestion_needs_no_command():
    error = click.NoSuchOption("--epochs")
    mend_suggestions(error)
    assert error.possibilities == []


def test_an_option_about_memory_is_no_lack_of_memory(capfd):
    assert "No such option" in told_in_one_line(capfd, "train", "--out-of-memory")


class Named(Exception):
    """Of a library, with a name of its own."""


LACK = ["OOM when allocating tensor with shape[64,512]", "std::bad_alloc", "CUBLAS_STATUS_ALLOC_FAILED", "Dst tensor is not initialized.",
        "Unable to allocate 3.2 GiB for an array", "could not allocate 8 bytes", "Not enough memory", "could not create a memory object",
        "allocation of 17179869184 bytes failed", "CUDNN_STATUS_NOT_INITIALIZED", "DNN library initialization failed.",
        "Out of memory while trying to allocate", "CUDA_ERROR_OUT_OF_MEMORY: out of memory", "RESOURCE_EXHAUSTED: Failed to allocate request"]
OTHERS = [InputError("data: out of memory"), click.UsageError("No such option --out-of-memory"), ValueError("out-of-memory.png is small"),
          OSError(errno.EROFS, "Read-only file system", "out_of_memory/x.png"), OSError(errno.ENOSPC, "No space left on device", "bad_alloc"),
          OSError("cannot identify image file 'out of memory.png'"),
          RuntimeError("RESOURCE_EXHAUSTED: /tmp/x.npz; No space left on device"), Named("RESOURCE_EXHAUSTED: f.h5; Too many open files"),
          RuntimeError("RESOURCE_EXHAUSTED: x; Disk quota exceeded"), ValueError("Zoom"), KeyError("memory")]


@pytest.mark.parametrize("text", LACK)
def test_a_lack_of_memory_is_known_by_its_words(text):
    assert is_out_of_memory(RuntimeError(f"Graph execution error:\n\n{text}\nand more")) and is_out_of_memory(Named(text))


def test_a_lack_of_memory_is_known_by_its_kind():
    assert all(map(is_out_of_memory, [MemoryError(), OSError(errno.ENOMEM, "Cannot allocate memory"),
                                      np._core._exceptions._ArrayMemoryError((2**40,), np.dtype("uint8"))]))


@pytest.mark.parametrize("error", OTHERS, ids=str)
def test_what_is_no_lack_of_memory(error):
    assert not is_out_of_memory(error)


@pytest.mark.parametrize("error, line", [(AssertionError(), "AssertionError"), (ValueError("one\ntwo"), "ValueError: one"), (KeyError("a: "), "KeyError: 'a: '")])
def test_the_first_line_of_an_error_is_never_empty(error, line):
    assert first_line(error) == line


def lock_of(kind, folder):
    """A context in which a folder is locked as a run, or as a kernel."""
    folder.mkdir(exist_ok=True)
    return lock_run(Run(folder)) if kind == "run" else locked(folder)


@pytest.mark.parametrize("kind", ["run", "kernel"])
@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL])
def test_a_drive_that_cannot_lock_is_named_for_both_kinds_of_folder(tmp_path, monkeypatch, kind, number):
    def flock(file, operation):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(InputError, match=f"expected a folder on which files can be locked, got .*{os.strerror(number)}"):
        with lock_of(kind, tmp_path / "folder"):
            pass
    monkeypatch.undo()
    with lock_of(kind, tmp_path / "folder"):
        pass


@pytest.mark.parametrize("kind", ["run", "kernel"])
@pytest.mark.parametrize("number", [None, errno.EAGAIN, errno.EACCES])
def test_a_folder_in_use_is_in_use_for_both(tmp_path, monkeypatch, kind, number):
    def flock(file, operation):
        raise OSError(number, os.strerror(number))

    with lock_of(kind, tmp_path / "folder") if number is None else nullcontext():
        if number:
            monkeypatch.setattr(fcntl, "flock", flock)
        with pytest.raises(InputError, match="no other process .*wait until that one ends"), lock_of(kind, tmp_path / "folder"):
            pass


@pytest.mark.parametrize("out, typed", [("runs/mine", "runs/mine"), ("my run", "'my run'"), ("it's", "'it'\"'\"'s'")])
def test_a_command_is_suggested_as_a_shell_takes_it(out, typed):
    assert f"type facegen train --out {typed} alone" in another_run(out) and another_run(out).endswith("to delete it, add --fresh --yes")


@pytest.mark.parametrize("number, remedy", [(errno.ENOSPC, "make room"), (errno.EDQUOT, "make room"), (errno.EROFS, SEE_TO_THE_DISK), (errno.EIO, SEE_TO_THE_DISK)])
def test_only_a_full_disk_needs_room(number, remedy):
    assert disk_remedy(f"log.jsonl could not be written ({os.strerror(number)}); {SEE_TO_THE_DISK}") == remedy


def status_of_a_chain(monkeypatch, stdout):
    """Of facegen kernel run, whose chain tells three lines and is done."""
    from facegen_keras.kaggle import chain, service

    monkeypatch.setattr(service, "Kaggle", types.SimpleNamespace)
    monkeypatch.setattr(chain, "run_chain", lambda folder, fields, kaggle, report: [report(f"epoch {number}") for number in range(3)] and "done")
    monkeypatch.setattr(sys, "stdout", stdout)
    with pytest.raises(SystemExit) as ended:
        main(["kernel", "run"])
    return ended.value.code


@pytest.mark.parametrize("stderr", [Tracker(), Tracker(GONE), Terminal(GONE), None], ids=lambda stream: repr(getattr(stream, "error", "none")))
def test_a_process_that_is_terminated_has_its_status_whatever_stderr_is(monkeypatch, stderr):
    monkeypatch.setattr(sys, "stderr", stderr)
    signals = Signals()
    with pytest.raises(SystemExit) as ended:
        with signals:
            signal.raise_signal(signal.SIGTERM)
    signals.catch(signals.before)
    assert ended.value.code == 143
    if type(stderr) is Tracker and not stderr.error:
        assert stderr.text == "facegen: terminated\n"


@pytest.mark.parametrize("ignored", [False, True])
def test_a_terminal_that_closes_ends_a_process_unless_nohup_has_it_ignored(monkeypatch, ignored):
    monkeypatch.setattr(sys, "stderr", Tracker())
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else lambda *_: None)
    signals = Signals()
    try:
        with nullcontext() if ignored else pytest.raises(SystemExit) as ended:
            with signals:
                signal.raise_signal(signal.SIGHUP)
        signals.catch(signals.before)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert ignored or ended.value.code == 129


@pytest.mark.parametrize("stdout", [Tracker(), Tracker(GONE), Tracker(BrokenPipeError()), Terminal(GONE), None], ids=lambda stream: repr(getattr(stream, "error", "none")))
def test_a_chain_outlives_its_terminal(monkeypatch, stdout):
    assert status_of_a_chain(monkeypatch, stdout) == 0
