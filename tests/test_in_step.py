"""Notebooks, module and README say the same: exporting, cleaning and converting change nothing."""

import ast
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
    for name in ("settings.ini", "setup.py", "README.md", "README.zh-CN.md", "Makefile"):
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


def test_both_readmes_are_made_from_the_indexes(checkout):
    before = {name: (checkout / name).read_text() for name in ("README.md", "README.zh-CN.md")}
    for name in before:
        (checkout / name).unlink()
    run_in(checkout, "make", "readme", f"BIN={BIN}")
    assert {name: (checkout / name).read_text() for name in before} == before


def told(text):
    """What each chapter of a README has in any language: commands, code, figures, links, the shape of its tables."""
    for chapter in text.split("\n## "):
        blocks = re.findall(r"```\w+\n(.*?)```", chapter, re.S)
        prose = re.sub(r"```.*?```", "", chapter, flags=re.S).replace("](README.zh-CN.md)", "](README.md)")
        yield {"commands": [line.partition("#")[0].rstrip() for block in blocks for line in block.splitlines()],
               "figures": sorted(re.findall(r"\d+(?:[.,]\d+)*", chapter)), "code": sorted(re.findall(r"`([^`]+)`", prose)),
               "links": sorted(re.findall(r"\]\(([^)]+)\)", prose)), "tables": [line.count("|") for line in prose.splitlines() if "|" in line]}


def test_the_chinese_readme_tells_what_the_english_one_tells():
    english, chinese = ((ROOT / name).read_text() for name in ("README.md", "README.zh-CN.md"))
    assert list(told(chinese)) == list(told(english))
    assert "[中文](README.zh-CN.md)" in english.splitlines()[:6] and "[English](README.md)" in chinese.splitlines()[:6]


@pytest.mark.parametrize("line, other", [("make test ", "make check "), ("12,000", "11,000"), ("](nbs/cli.ipynb)", "](nbs/main.ipynb)"),
                                         ("`train`", "`sample`"), ("|没有公布|", "|"), ("(64, 64, 64, 3)", "(64, 64, 3)")])
def test_a_readme_that_tells_something_else_is_noticed(line, other):
    text = (ROOT / "README.zh-CN.md").read_text()
    assert line in text and list(told(text.replace(line, other, 1))) != list(told(text))


def make(checkout, *arguments, path=None):
    """`path`: a folder whose programs go before the system's."""
    environment = {**os.environ, "PATH": f"{path}:{os.environ['PATH']}"} if path else None
    return subprocess.run(["make", *arguments], cwd=checkout, capture_output=True, text=True, env=environment)


def script(path, text):
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


NO_README = {"no nbconvert": ("echo 'jupyter-nbconvert not found' >&2; exit 1", "cat", "since bin lacks Jupyter's nbconvert"),
             "no jupyter": (None, "cat", "since bin lacks Jupyter's nbconvert"),
             "a broken page": ("[ $2 = --version ] || { echo half; echo no such cell >&2; exit 1; }", "cat", "no such cell"),
             "a full disk": ("echo half", "head -c 2; echo no space left >&2; exit 4", "no space left")}


@pytest.mark.parametrize("jupyter, sed, said", NO_README.values(), ids=NO_README)
def test_a_readme_that_cannot_be_made_stays_as_it_is(checkout, jupyter, sed, said):
    before = contents(checkout)
    (checkout / "bin").mkdir()
    script(checkout / "bin/sed", sed)
    if jupyter:
        script(checkout / "bin/jupyter", jupyter)
    os.utime(checkout / "nbs/index.ipynb")
    for _ in range(2):
        done = make(checkout, "readme", "BIN=bin", path=checkout / "bin")
        assert done.returncode and "README.md: left as it was" in done.stderr and said in done.stderr
        assert "lacks" in said or "lacks" not in done.stderr
    assert {name: content for name, content in contents(checkout).items() if not name.startswith("bin/")} == before


def test_a_python_that_is_not_there_is_named(checkout):
    done = make(checkout, "demo", "PYTHON=no-such-python")
    assert done.returncode and "expected 3.11 to 3.13, got none; run make PYTHON=" in done.stderr and "not found" not in done.stderr


@pytest.mark.parametrize("lacks", ["venv", "ensurepip"])
def test_a_python_without_virtual_environments_is_not_taken_for_kaggles(checkout, lacks):
    """As Debian's, which has venv in a package of its own."""
    (checkout / "bin").mkdir()
    script(checkout / "bin/python3.13", f"""case "$2" in *{lacks}*) exit 1;; esac; [ "$1" = -c ]""")
    done = make(checkout, "test-kaggle", f"PYENV_ROOT={checkout}", path=checkout / "bin")
    assert done.returncode == 0 and "not tested, no Python 3.13 here" in done.stdout, done.stderr


@pytest.mark.parametrize("version, good", {"2.7": False, "3.10": False, "3.11": True, "3.13": True, "3.14": False, "3.15": False}.items())
def test_a_python_that_will_not_do_is_named(checkout, version, good):
    """Of Python only what it says of its version is pretended."""
    pretend = f"import sys, collections; sys.version_info = ({version.replace('.', ', ')}, 0)\n"
    python = script(checkout / "python", f"""case "$1" in
        --version) echo Python {version}.0;;
        -c) exec {sys.executable} -c "{pretend}$2";;
        *) exit 7;; esac""")
    done = make(checkout, "demo", f"PYTHON={python}")
    assert done.returncode and ("expected 3.11 to 3.13" in done.stderr) == (not good)
    assert good or f"got Python {version}.0; run make PYTHON=" in done.stderr


@pytest.mark.parametrize("left", ["bin/python", "bin/python bin/pip", "pyvenv.cfg"])
def test_a_virtual_environment_that_failed_is_made_again(checkout, left):
    made = "; ".join(f"mkdir -p $(dirname .venv/{name}); touch .venv/{name}" for name in left.split())
    python = script(checkout / "python", f"""[ "$1" = -c ] && exit 0; {made}; [ -e good ] || exit 1
        mkdir -p .venv/bin; for name in pip facegen; do printf '#!/bin/sh\\n' > .venv/bin/$name; chmod +x .venv/bin/$name; done""")
    for _ in range(2):
        assert make(checkout, "demo", f"PYTHON={python}").returncode
    (checkout / "good").touch()
    done = make(checkout, "demo", f"PYTHON={python}")
    assert done.returncode == 0, done.stderr
    assert "venv .venv" not in make(checkout, "demo", f"PYTHON={python}").stdout, "once made, it stays"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.relative_to(ROOT / "nbs").as_posix())
def test_a_page_is_small_and_was_run(path):
    notebook = json.loads(path.read_text())
    assert path.stat().st_size < 1_000_000
    for cell in notebook["cells"]:
        for output in cell.get("outputs", []):
            assert output["output_type"] != "error"
            assert output.get("name") != "stderr", "a page shows what a reader should read, not warnings"
            assert "WARNING" not in "".join(output.get("text", "")), "nor those printed elsewhere"
    if path.stem.partition(".")[0] != "index":
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
    assert by_their_way(path) == []


def by_their_way(path):
    """Texts of a page's own code, also parts of f-strings, that are such a way."""
    found = []
    for cell in json.loads(path.read_text())["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "code" and not source.startswith("#| export"):
            texts = [node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
            found += [text for text in texts if re.match(r"\.\.$|\.\./(?!\.bashrc)|(records|images|guides)/(?!s$)", text)]
    return found


WAYS = ['Path("..")', 'np.load("records/acts.npz")', 'Image(filename="images/two_paths.png")', 'open(f"records/{name}.json")',
        'sys.path.insert(0, "../../tests")', 'Path("guides") / ".." / "images"', 'display.Image("../images/a.png")']


@pytest.mark.parametrize("code", WAYS)
def test_a_way_from_the_page_is_noticed(tmp_path, code):
    page = {"cells": [{"cell_type": "code", "source": ["x = 1\n", f"y = {code}"]}]}
    (tmp_path / "page.ipynb").write_text(json.dumps(page))
    assert len(by_their_way(tmp_path / "page.ipynb")) == 1
