"""What all tests share: quiet TensorFlow, other packages' warnings left to them, a cache folder for each test."""

import atexit
import os
import tempfile
from functools import partial
from typing import NamedTuple

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
import facegen_keras  # noqa: E402, F401  before any test imports Keras: it asks for oneDNN, as in processes of its own


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: more than two seconds, or a process of its own with TensorFlow or JAX")
    for module in (r"keras\..*", r"tensorflow\..*", r"gast\..*", "google"):
        config.addinivalue_line("filterwarnings", f"ignore::DeprecationWarning:{module}")
    if "PYTEST_XDIST_WORKER" not in os.environ:
        share_caches()


def share_caches():
    "What one process has compiled, or found out about fonts, others read in a moment: all those of this session."
    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    os.environ |= {"XDG_CACHE_HOME": f"{folder.name}/cache", "MPLCONFIGDIR": f"{folder.name}/matplotlib",
                   "JAX_COMPILATION_CACHE_DIR": f"{folder.name}/jax", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}


@pytest.fixture(autouse=True)
def cache_folder(tmp_path_factory, monkeypatch):
    "Not the user's, and not the one of another test."
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


@pytest.fixture(scope="module")
def quick_pictures():
    "For tests of runs in which nobody looks at the curves and the film: they take half of a short run's time."
    from quick_pictures import draw_quickly

    with pytest.MonkeyPatch.context() as patch:
        draw_quickly(patch.setattr)
        yield


@pytest.fixture
def few_pairs(monkeypatch):
    "For tests of whole records: the similarity of 2,000 pairs takes four fifths of their time."
    from facegen_keras import metrics

    monkeypatch.setattr(metrics, "pair_scores", partial(metrics.pair_scores, num_pairs=200))


class Outcome(NamedTuple):
    status: int | None
    out: str
    err: str


@pytest.fixture
def facegen(capfd):
    "Runs the command in this process."
    from facegen_keras.cli import main

    def call(*arguments):
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        return Outcome(ended.value.code, *capfd.readouterr())
    return call


@pytest.fixture(scope="session")
def reader(tmp_path_factory):
    "A small `ModeReader` for 32 pixels; whichever worker needs it first trains it."
    import filelock

    from facegen_keras.measure.reader import ModeReader

    folder = tmp_path_factory.getbasetemp()
    folder = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    with filelock.FileLock(folder / "reader.lock"):
        return ModeReader(32, num_faces=2000, epochs=8, cache=folder)
