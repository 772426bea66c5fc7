"""The site that `make docs` builds: which pages, in which order, what is seen of them, and no link that leads nowhere."""

import ast
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

import pytest

ROOT = Path(__file__).parent.parent
NBS = {path.relative_to(ROOT / "nbs").with_suffix("").as_posix(): path for path in sorted((ROOT / "nbs").rglob("*.ipynb"))
       if ".ipynb_checkpoints" not in path.parts}
PUBLISHED = re.search(r"\n +path: (.+)", (ROOT / ".github/workflows/docs.yml").read_text())[1]

spec = importlib.util.spec_from_file_location("pages", ROOT / "docs/pages.py")
pages = importlib.util.module_from_spec(spec)
spec.loader.exec_module(pages)


def cell(kind, text):
    return {"cell_type": kind, "metadata": {}, "source": text.splitlines(keepends=True)}


def seen(*cells, fold=False):
    return [(each["source"], each["metadata"].get("tags")) for each in
            pages.as_read({"cells": [cell(*each) for each in cells], "metadata": {}}, fold)["cells"]]


def test_hidden_cells_and_directives_are_not_seen():
    code = "#| export\n#| eval: false\n\ntext = '''\n#| hide\n'''\n"
    assert seen(("code", "#| default_exp a.b"), ("code", "#| hide\nassert x"), ("code", "#|hide\n1"), ("code", code), ("code", "x = 1"),
                ("markdown", "#| of prose")) == [("text = '''\n#| hide\n'''\n", None), ("x = 1", None), ("#| of prose", None)]
    assert seen(("code", code), ("code", "x = 1"), fold=True)[0][1] == ["hide-input"] != seen(("code", "x = 1"), fold=True)[0][1]


def test_links_to_headings_are_as_sphinx_writes_them():
    text = "[a](own.ipynb#The-run's-folder), [b](#Sample-and-measure), [c](https://x.org/#A), [d](records/trials.md#three-acts)"
    assert seen(("markdown", text)) == [("[a](own.ipynb#the-runs-folder), [b](#sample-and-measure), [c](https://x.org/#A), "
                                         "[d](records/trials.md#three-acts)", None)]


def test_each_page_has_its_place():
    order = [name for names in pages.chapters(ROOT / "nbs").values() for name in names]
    assert sorted([*order, "index"]) == sorted([*NBS, "records/trials"])
    path, guides, wings = ([name for name in order if re.match(pattern, name)] for pattern in (r"\d\d_", "guides/", "(?!guides|records)[a-z]+/"))
    assert order[:len(path) + len(guides) + len(wings)] == sorted(path) + guides + wings


def program(path, text):
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def make(folder, target):
    "With programs of the test in `bin`, and nothing to install."
    return subprocess.run(["make", target, "-o", ".venv/docs", "BIN=bin"], cwd=folder, capture_output=True, text=True)


def copy(folder):
    "What `make docs` reads; `facegen` is a pretended one that writes its arguments, and the free generator is what `free` says."
    for name in ("nbs", "docs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"))
    for name in ("settings.ini", "Makefile"):
        shutil.copy(ROOT / name, folder)
    (folder / "free").touch()
    program(folder / "bin/python", f'if [ "$1" = -c ]; then cat free; else exec "{sys.executable}" "$@"; fi')
    program(folder / "bin/facegen", 'mkdir -p "$4"; echo "$@" > "$4/index.html"')


def test_where_no_generator_is_free_nothing_is_explored(tmp_path):
    copy(tmp_path)
    (tmp_path / "build/docs/html").mkdir(parents=True)
    assert make(tmp_path, "explorer").returncode == 0 and not (tmp_path / "build/docs").exists()


def test_the_site_asks_for_the_first_generator_that_is_free():
    [code] = re.findall(r'-c "(.+)"\)', (ROOT / "Makefile").read_text())
    from facegen_keras.share.terms import free_generator

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout) == (0, f"{free_generator() or ''}\n"), done.stderr


class Page(HTMLParser):
    """Links, what a browser fetches, headings to link to, code, pictures in the text."""

    def __init__(self, path):
        super().__init__()
        self.links, self.fetched, self.ids, self.code, self.pictures, self.next = [], [], {""}, [], 0, None
        self.inside = {"article": 0, "input": 0, "pre": 0}
        self.open = []  # what each open div or article is
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.ids |= {given["id"]} if "id" in given else set()
        if tag == "link" and given.get("rel") == "next":
            self.next = given["href"]
        self.links += [given[name] for name in ("href", "src") if given.get(name)]
        if "src" in given or (tag == "link" and given.get("rel") in ("stylesheet", "preload", "icon")):
            self.fetched.append(given.get("src") or given["href"])
        if tag in ("div", "article"):
            kind = "article" if tag == "article" else "input" if "cell_input" in given.get("class", "").split() else None
            self.open.append(kind)
            if kind:
                self.inside[kind] += 1
        if tag == "pre" and self.inside["input"]:
            self.code.append("")
            self.inside["pre"] = 1
        self.pictures += tag == "img" and self.inside["article"] > 0

    def handle_endtag(self, tag):
        if tag in ("div", "article") and (kind := self.open.pop()):
            self.inside[kind] -= 1
        if tag == "pre":
            self.inside["pre"] = 0

    def handle_data(self, data):
        if self.inside["pre"]:
            self.code[-1] += data


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    "Built by `make docs`, as if a free generator came with the package."
    if "CI" not in os.environ:
        for name in ("sphinx", "myst_nb", "furo"):
            pytest.importorskip(name, reason=f"{name} is not installed: pip install -e '.[docs]'")
    folder = tmp_path_factory.mktemp("docs")
    copy(folder)
    (folder / "free").write_text("drawn\n")
    done = make(folder, "docs")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "warning" not in done.stderr.lower()
    return folder / PUBLISHED


@pytest.fixture(scope="module")
def built(site):
    built = {path.relative_to(site).with_suffix("").as_posix(): Page(path) for path in sorted(site.rglob("*.html"))
             if "explore" not in path.relative_to(site).parts and "_static" not in path.parts}
    assert built.keys() == {*NBS, "records/trials", "search"}
    return built


def cells_of(name):
    return json.loads(NBS[name].read_text(encoding="utf-8"))["cells"]


@pytest.mark.slow
def test_each_link_within_the_site_leads_somewhere(site, built):
    lost = set()
    for name, page in built.items():
        for link in page.links:
            address, heading = urldefrag(link)
            if urlsplit(address).scheme:
                continue
            way = unquote(urlsplit(address).path)
            target = (site / name).parent / way if way else site / f"{name}.html"
            other = os.path.relpath(target, site).removesuffix(".html")
            if not target.is_file() or (heading and target.suffix == ".html" and heading not in built[other].ids):
                lost.add((name, link))
    assert lost == set()


@pytest.mark.slow
def test_next_leads_through_all_pages_in_their_order(built):
    order, name = [], "index"
    while built[name].next and name not in order:
        order.append(name)
        name = os.path.normpath(os.path.join(os.path.dirname(name), built[name].next)).removesuffix(".html")
    assert [*order, name] == ["index", *(name for names in pages.chapters(ROOT / "nbs").values() for name in names)]


@pytest.mark.slow
def test_code_is_seen_but_for_hidden_cells_and_directives(built):
    for name in NBS:
        codes = ["".join(cell["source"]) for cell in cells_of(name) if cell["cell_type"] == "code"]
        codes = [re.sub(r"\A(#\|.*\n?)+", "", code).strip("\n") for code in codes if not code.startswith("#| hide")]
        assert [code.strip("\n") for code in built[name].code] == [code for code in codes if code], name


@pytest.mark.slow
def test_each_picture_of_a_page_is_shown(built):
    for name in NBS:
        outputs = [output for cell in cells_of(name) for output in cell.get("outputs", [])]
        drawn = sum(any(kind.startswith("image/") for kind in output.get("data", {})) for output in outputs)
        linked = sum("".join(cell["source"]).count("![") for cell in cells_of(name) if cell["cell_type"] == "markdown")
        assert built[name].pictures == drawn + linked, name


@pytest.mark.slow
def test_a_page_needs_no_other_host_and_is_found_by_the_search(site, built):
    assert [link for page in built.values() for link in page.fetched if urlsplit(link).netloc] == []
    index = (site / "searchindex.js").read_text(encoding="utf-8")
    assert set(ast.literal_eval(re.search(r'"?docnames"?:\s*(\[.*?\])', index)[1])) == {*NBS, "records/trials"}


@pytest.mark.slow
def test_the_explorer_lies_in_the_site(site, built):
    assert (site / "explore/index.html").read_text() == "explore drawn --out build/docs/extra/explore\n"
    assert all(sum("explore/index.html" in link for link in built[name].links) == (2 if name.startswith("index") else 1) for name in NBS)
