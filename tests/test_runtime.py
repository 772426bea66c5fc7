"""The installed package without any tool of the notebooks, and how soon the command answers."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

NOTEBOOK_TOOLS = ("nbdev", "fastcore", "execnb", "ghapi", "nbconvert", "nbclient", "nbformat", "ipykernel", "IPython")
BLOCK = f"import sys; sys.modules.update(dict.fromkeys({NOTEBOOK_TOOLS!r}))"  # None: import raises ImportError
QUIET = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
HEAVY = {"tensorflow", "keras", "jax", "kaggle", "kagglesdk", "matplotlib"}
TINY = ["image_size=32", "width=4", "batch_size=8", "limit=16", "epochs=1"]


def python(code):
    """Runs code beside the checkout's root, so that what is imported is what is installed."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=QUIET,
                          cwd=Path(__file__).parent)


@pytest.mark.slow
def test_everything_imports_without_notebook_tools():
    names = "RunConfig, FaceGAN, make_generator, make_discriminator, load_faces, train"
    done = python(f"{BLOCK}; from facegen_keras import {names}; import facegen_keras.cli")
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_run_works_without_notebook_tools(tmp_path):
    arguments = ["train", "--preset", "article_small", "--out", str(tmp_path / "run"), *(word for setting in TINY for word in ("--set", setting))]
    done = python(f"{BLOCK}; from facegen_keras.cli import main; main({arguments!r})")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "generator.keras").is_file() and "finished" in done.stdout
    assert done.stderr == ""


LIGHT = ["facegen_keras", "facegen_keras.cli", "facegen_keras.share.commands", "facegen_keras.share.quiz", "facegen_keras.config", "facegen_keras.faces", "facegen_keras.data.align", "facegen_keras.kaggle.session",
         "facegen_keras.kaggle.chain"]


@pytest.mark.parametrize("module", LIGHT)
def test_nothing_heavy_is_imported_before_it_is_needed(module):
    done = python(f"import {module}, sys; print(*({HEAVY!r} & sys.modules.keys()), 'imported')")
    assert done.stdout.split() == ["imported"], done.stderr or done.stdout


def test_help_comes_at_once():
    """In much less than a second of this process's own time, however busy the machine is; starting TensorFlow takes more."""
    code = "import time; from facegen_keras.cli import facegen; facegen(['--help'], standalone_mode=False); print(time.process_time())"
    done = python(code)
    assert "kernel" in done.stdout and float(done.stdout.split()[-1]) < 1, done.stdout + done.stderr


def test_the_names_of_the_package_are_listed():
    import facegen_keras

    assert {"RunConfig", "FaceGAN", "load_gan", "make_generator", "make_discriminator", "load_faces", "train"} <= set(dir(facegen_keras))
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        facegen_keras.nonsense


def test_the_installed_command_answers():
    command = Path(sys.executable).parent / "facegen"
    if not command.exists():
        pytest.skip("the package is not installed in this environment")
    done = subprocess.run([command, "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "train" in done.stdout
