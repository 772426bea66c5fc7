"""The package as pip installs it, away from any clone: it carries the story that Kaggle runs."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from facegen_keras.kaggle.notebook import STORY, build
from facegen_keras.kaggle.session import Job

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow


def run(*command, cwd, path=""):
    """A process that sees no package but those of this environment and of `path`."""
    done = subprocess.run([sys.executable, *map(str, command)], cwd=cwd, capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(path)})
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def pip(*arguments, cwd):
    return run("-m", "pip", "--quiet", "--disable-pip-version-check", *arguments, cwd=cwd)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from the sources that an sdist holds, which are made from a copy of what git has."""
    folder = tmp_path_factory.mktemp("build")
    for name in ("facegen_keras", "nbs"):
        shutil.copytree(ROOT / name, folder / "copy" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "settings.ini", "README.md"):
        shutil.copy(ROOT / name, folder / "copy")
    run("setup.py", "--quiet", "sdist", "--dist-dir", folder, cwd=folder / "copy")
    [sources] = folder.glob("*.tar.gz")
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, sources, cwd=folder)
    [wheel] = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def installed(wheel):
    folder = wheel.parent / "installed"
    pip("install", "--no-deps", "--no-compile", "--target", folder, wheel, cwd=wheel.parent)
    return folder


def test_an_installed_package_builds_the_same_kernel_as_a_clone(installed, tmp_path):
    (tmp_path / "empty").mkdir()
    run("-m", "facegen_keras", "kernel", "build", cwd=tmp_path / "empty", path=installed)
    build(tmp_path / "clone", Job())
    for name in ("facegen.ipynb", "kernel-metadata.json"):
        assert (tmp_path / "empty/kernel" / name).read_bytes() == (tmp_path / "clone" / name).read_bytes(), name


def test_the_story_in_it_has_no_outputs_and_the_wheel_for_kaggle_does_not_carry_it(installed):
    story = json.loads((installed / "facegen_keras/kaggle" / STORY).read_text())
    assert not any(cell.get("outputs") for cell in story["cells"])
    carried = run("-c", "import io, zipfile; from facegen_keras.kaggle.notebook import make_wheel; "
                  "print(*zipfile.ZipFile(io.BytesIO(make_wheel()[1])).namelist(), sep='\\n')", cwd=installed, path=installed)
    assert "facegen_keras/kaggle/session.py" in carried.stdout and ".ipynb" not in carried.stdout
    assert "share/site" not in carried.stdout, "nor the page in the browser"


def test_the_page_in_the_browser_is_installed(installed):
    site = installed / "facegen_keras/share/site"
    assert {path.name: path.read_bytes() for path in site.iterdir()} == {
        path.name: path.read_bytes() for path in (ROOT / "facegen_keras/share/site").iterdir()}
    from facegen_keras.share.explorer import PAGE_FILES

    assert {path.name for path in site.iterdir()} == {*PAGE_FILES}


def test_a_package_that_has_lost_the_story_says_so_in_one_line(installed, tmp_path):
    shutil.copytree(installed / "facegen_keras", tmp_path / "lost/facegen_keras", ignore=shutil.ignore_patterns(STORY))
    (tmp_path / "empty").mkdir()
    done = subprocess.run([sys.executable, "-m", "facegen_keras", "kernel", "build"], cwd=tmp_path / "empty",
                          env={**os.environ, "PYTHONPATH": str(tmp_path / "lost")}, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "install it again" in done.stderr
    assert not list((tmp_path / "empty").iterdir())
