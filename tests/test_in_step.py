"""Notebooks, module and README say the same: exporting, cleaning and converting change nothing."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent
NOTEBOOKS = sorted(path for path in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts)


@pytest.fixture
def checkout(tmp_path):
    """A copy in which tools may write."""
    for name in ("nbs", "facegen_keras"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"))
    for name in ("settings.ini", "setup.py", "README.md", "Makefile"):
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def contents(root):
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*"))
            if path.is_file() and "__pycache__" not in path.parts}


def run_in(checkout, *command):
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", [("nbdev_export",), ("nbdev_clean",)], ids=lambda command: command[0])
def test_changes_nothing(checkout, command):
    before = contents(checkout)
    run_in(checkout, str(BIN / command[0]))
    after = contents(checkout)
    assert [name for name in {*before, *after} if before.get(name) != after.get(name)] == []


def test_readme_is_made_from_the_index(checkout):
    before = (checkout / "README.md").read_text()
    (checkout / "README.md").unlink()
    run_in(checkout, "make", "readme", f"BIN={BIN}")
    assert (checkout / "README.md").read_text() == before


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.relative_to(ROOT / "nbs").as_posix())
def test_a_page_is_small_and_was_run(path):
    notebook = json.loads(path.read_text())
    assert path.stat().st_size < 1_000_000
    for cell in notebook["cells"]:
        for output in cell.get("outputs", []):
            assert output["output_type"] != "error"
            assert output.get("name") != "stderr", "a page shows what a reader should read, not warnings"
            assert "WARNING" not in "".join(output.get("text", "")), "nor those printed elsewhere"
    if path.stem != "index":
        assert any(cell.get("outputs") for cell in notebook["cells"]), "the page was never run"


def test_links_between_pages_lead_somewhere():
    for path in NOTEBOOKS:
        for cell in json.loads(path.read_text())["cells"]:
            source = "".join(cell["source"])
            for piece in source.split("](")[1:] if cell["cell_type"] == "markdown" else []:
                target = piece.split(")")[0]
                if not target.startswith(("http", "#")):
                    assert (path.parent / target.partition("#")[0]).exists(), f"{path.name}: {target}"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.relative_to(ROOT / "nbs").as_posix())
def test_a_page_finds_its_files_from_wherever_it_is_run(path):
    """From the root of the repository too: no code names a file of the project by its way from the page."""
    code = ["".join(cell["source"]) for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    by_its_way = re.compile(r"""(Path|open|insert|read|Image)\((\d+, )?["'](\.\./|records|images/|guides/)""")
    assert not [found.group() for cell in code for found in by_its_way.finditer(cell)]
