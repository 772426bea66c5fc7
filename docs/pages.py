"""The site's pages: what a reader sees of a notebook, and in which order. Nothing here needs Sphinx."""

import json
import re
from pathlib import Path

WINGS = ("base", "data", "engine", "features", "runs", "measure", "use", "share", "kaggle")  # each imports from those before it
PLAY = {"index": "Without installing anything: move a face with sliders, and guess which faces a network made",
        "index.zh-CN": "不装任何东西，现在就玩：拖动滑块改变一张脸，猜猜哪些脸出自神经网络"}


def source(cell):
    return "".join(cell["source"])


def title(
    path: Path,  # of a notebook
) -> str:
    "The heading that a page begins with."
    return source(json.loads(path.read_text(encoding="utf-8"))["cells"][0]).splitlines()[0].removeprefix("# ")


def chapters(
    nbs: Path,  # the folder of the notebooks
) -> dict[str, list[str]]:  # heading -> pages, without their endings
    "All pages but `index`, which links the path and the guides in their order."
    index = " ".join(map(source, json.loads((nbs / "index.ipynb").read_text(encoding="utf-8"))["cells"]))
    linked = dict.fromkeys(re.findall(r"\]\(([\w/]+)\.ipynb\)", index))
    wings = {wing: [f"{wing}/{path.stem}" for path in sorted((nbs / wing).glob("*.ipynb"))] for wing in WINGS}
    found = {"The path": [name for name in linked if name[0].isdigit()],
             "Guides": [name for name in linked if name.startswith("guides/")],
             **wings, "The command": ["cli", "main"], "Records": ["records/trials"], "中文": ["index.zh-CN"]}
    return {heading: names for heading, names in found.items() if names}


def contents(
    nbs: Path,  # the folder of the notebooks
) -> str:  # Markdown that Sphinx makes the side bar, and next and previous, of
    "What the page `index` ends with."
    named = {name: f"{name[:2]} {title(nbs / f'{name}.ipynb')} <{name}>" for name in chapters(nbs)["The path"]}
    return "\n\n".join("\n".join(["```{toctree}", ":hidden:", f":caption: {heading}", "", *(named.get(name, name) for name in names), "```"])
                       for heading, names in chapters(nbs).items())


def anchor(
    target: str,  # of a link within the site, such as own_pictures.ipynb#The-run's-folder
) -> str:
    "The same link with its heading as Sphinx and GitHub write it; Jupyter keeps capitals and marks."
    page, mark, heading = target.partition("#")
    return page + mark + re.sub(r"[^\w-]", "", heading).lower()


def as_read(
    notebook: dict,  # as nbformat has it
    fold: bool = False,  # whether exported code waits behind a line to click
) -> dict:
    "A notebook without hidden cells and without nbdev's directives."
    cells = []
    for cell in notebook["cells"]:
        text = source(cell)
        if cell["cell_type"] == "code":
            directives = re.match(r"(#\|.*\n?)*", text)[0]
            text = text[len(directives):].lstrip("\n")
            if re.search(r"^#\|\s*hide\b", directives, re.M) or not text:
                continue
            cell = cell | {"metadata": cell["metadata"] | ({"tags": ["hide-input"]} if fold and directives else {})}
        elif cell["cell_type"] == "markdown":
            text = re.sub(r"(?<=\]\()([^):]*#[^)]*)(?=\))", lambda link: anchor(link[0]), text)
        cells.append(cell | {"source": text})
    return notebook | {"cells": cells, "metadata": notebook["metadata"] | {"language_info": {"name": "python"}}}


def page(
    text: str,  # of a notebook's file
    name: str,  # of the page, such as data/store
    nbs: Path,  # the folder of the notebooks
    play: bool = False,  # whether the explorer of faces lies in the site
) -> str:  # a notebook for Sphinx
    "A page of the site; both front pages lead to the explorer, and the English one holds the contents."
    notebook = as_read(json.loads(text), fold=name == "index")
    cells = notebook["cells"]
    if play and name in PLAY:
        heading, subject, rest = cells[0]["source"].split("\n\n", 2)
        link = f'```{{raw}} html\n<p><a href="explore/index.html"><strong>{PLAY[name]}</strong></a></p>\n```'
        cells[0]["source"] = "\n\n".join([heading, subject, link, rest])
    if name == "index":
        cells.append({"cell_type": "markdown", "id": "contents", "metadata": {}, "source": contents(nbs)})
    return json.dumps(notebook)
