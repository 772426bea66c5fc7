"""The rules of the house: small rooms, one direction, one home for each name, the path as it is listed."""

import ast
import configparser
import json
import re
import sys
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = {path.relative_to(ROOT / "nbs").as_posix(): json.loads(path.read_text(encoding="utf-8"))["cells"]
         for path in sorted((ROOT / "nbs").rglob("*.ipynb")) if ".ipynb_checkpoints" not in path.parts}
MODULES = {path.relative_to(ROOT / "facegen_keras").with_suffix("").as_posix().replace("/", "."): path
           for path in sorted((ROOT / "facegen_keras").rglob("*.py")) if path.stem != "_modidx" and path != ROOT / "facegen_keras" / "__init__.py" and path.read_text()}
PATH = {"00_story": None, "01_config": "config", "02_toyfaces": "toyfaces", "03_faces": "faces",
        "04_networks": "networks", "05_losses": "losses", "06_gan": "gan", "07_training": "training",
        "08_modern": "residual", "09_metrics": "metrics", "10_results": None}
BESIDE = {"index": "__init__", "index.zh-CN": None, "cli": "cli", "main": "__main__"}
WINGS = {"base", "data", "engine", "features", "runs", "measure", "use", "share", "kaggle", "guides"}
FLOORS = [["base"], ["config"], ["data"], ["toyfaces"], ["faces"], ["losses", "networks"], ["residual"], ["engine"],
          ["gan"], ["features"], ["runs"], ["training"], ["metrics", "measure", "use"], ["share"], ["kaggle"], ["cli"], ["__main__"]]
MIRRORS = {"engine.step_tensorflow", "engine.step_jax"}  # the same functions for two backends
COMMANDS = {"cli", "data.commands", "kaggle.commands", "share.commands", "use.commands"}  # a command may be called as the function it calls


def source(cell):
    return "".join(cell["source"])


def exports(cell):
    return cell["cell_type"] == "code" and source(cell).startswith("#| export")


def code_lines(cell):
    return sum(not line.startswith("#|") for line in source(cell).splitlines())


def words(text):
    return len(text.split())


def most(things, limit):
    """Those that are larger than allowed: name -> size."""
    return {name: size for name, size in things.items() if size > limit}


def exported_names(path):
    """`__all__` of a generated module."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign) and node.targets[0].id == "__all__":
            return ast.literal_eval(node.value)
    return []


def imports(module):
    """The modules of this package that a module imports, at its top or inside a function."""
    found = set()
    package = ["facegen_keras", *module.split(".")[:-1]]
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.ImportFrom):
            base = package[:len(package) + 1 - node.level] if node.level else []
            name = ".".join([*base, *(node.module or "").split(".")]).strip(".")
            for each in (name, *(f"{name}.{alias.name}" for alias in node.names)):
                found.add(each.removeprefix("facegen_keras."))
    return sorted(found & MODULES.keys() - {module})


def floor(module):
    [found] = [number for number, rooms in enumerate(FLOORS) if module.split(".")[0] in rooms]
    return found


def test_no_module_is_longer_than_400_lines():
    assert most({name: len(path.read_text().splitlines()) for name, path in MODULES.items()}, 400) == {}


def test_no_page_has_more_than_60_cells():
    assert most({name: len(cells) for name, cells in PAGES.items()}, 60) == {}


def test_no_export_cell_has_more_than_60_lines():
    lines = {f"{name}, cell {number}": code_lines(cell)
             for name, cells in PAGES.items() for number, cell in enumerate(cells) if exports(cell)}
    assert most(lines, 60) == {}


def test_most_export_cells_have_fewer_than_20_lines():
    lines = [code_lines(cell) for cells in PAGES.values() for cell in cells if exports(cell)]
    assert sum(number < 20 for number in lines) > len(lines) / 2


def test_imports_lead_down_and_never_in_a_circle():
    upwards = [(module, used) for module in MODULES for used in imports(module) if floor(used) > floor(module)]
    assert upwards == []
    left = {module: set(imports(module)) for module in MODULES}
    while free := [module for module, used in left.items() if not used & left.keys()]:
        for module in free:
            del left[module]
    assert left == {}, "these import each other"


def test_no_name_is_exported_by_two_modules():
    homes = {}
    for module, path in MODULES.items():
        for name in exported_names(path):
            homes.setdefault(name, set()).add(module)
    mirrored = set(exported_names(MODULES["engine.step_tensorflow"])) | set(exported_names(MODULES["engine.step_jax"]))
    for name, modules in homes.items():
        rest = modules - COMMANDS
        if name in mirrored or name in ("speed_up", "speed_up_adam"):
            rest -= MIRRORS
        assert len(rest) <= 1, f"{name} is exported by {sorted(modules)}"


def test_the_path_is_as_listed_and_the_wings_are_folders():
    top = {name.removesuffix(".ipynb") for name in PAGES if "/" not in name}
    assert top == PATH.keys() | BESIDE.keys()
    assert {name.split("/")[0] for name in PAGES if "/" in name} == WINGS


@pytest.mark.parametrize("name", PAGES)
def test_a_page_exports_the_module_it_is_named_after(name):
    stem = name.removesuffix(".ipynb")
    found = [source(cell).split()[-1] for cell in PAGES[name] if source(cell).startswith("#| default_exp")]
    if stem in PATH | BESIDE:
        expected = (PATH | BESIDE)[stem]
    else:
        expected = None if stem.startswith("guides/") else stem.replace("/", ".")
    assert found == ([expected] if expected else [])
    assert expected in (None, "__init__") or expected in MODULES


def test_every_module_has_a_page():
    named = {source(cell).split()[-1] for cells in PAGES.values() for cell in cells
             if source(cell).startswith("#| default_exp")}
    assert MODULES.keys() | {"__init__"} == named


def test_a_page_begins_with_its_title_and_its_subject():
    for name, cells in PAGES.items():
        title, _, rest = source(cells[0]).partition("\n")
        assert title.startswith("# ") and rest.lstrip().startswith(">"), name
        assert not any(re.match(r"# \w", source(cell)) for cell in cells[1:] if cell["cell_type"] == "markdown"), \
            f"{name}: a second title"


def texts_of(code):
    """All texts but those that describe: of a formatted one the parts that are written there."""
    tree = ast.parse(code)
    described = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    pieces = {id(value) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for value in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(value.value if isinstance(value, ast.Constant) else "X" for value in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in described | pieces:
            yield node.value


def advises_to_delete_before_the_end(text):
    """Whether an advice to delete is followed by another one."""
    return bool(re.search(r"\bdelet(e|ing)\b.*?([,;:] |\b(or|else|instead)\b)(?!(add|needs)\b)", text))


def test_what_deletes_is_suggested_last():
    told = {name: [text for text in texts_of(path.read_text()) if advises_to_delete_before_the_end(text)] for name, path in MODULES.items()}
    assert {name: texts for name, texts in told.items() if texts} == {}
    assert sum("delete" in text for path in MODULES.values() for text in texts_of(path.read_text())) > 5


@pytest.mark.parametrize("text, early", [("choose another --out, or add --yes to delete that run", False), ("delete it, or choose another --out", True),
                                         ("to delete it, add --fresh --yes", False), ("add --yes to delete it; else choose another --out", True)])
def test_an_early_advice_to_delete_is_noticed(text, early):
    assert advises_to_delete_before_the_end(text) == early


def test_the_readme_has_at_most_700_words():
    assert words((ROOT / "README.md").read_text()) <= 700


def test_the_page_of_results_is_short():
    cells = PAGES["10_results.ipynb"]
    assert len(cells) <= 25
    assert sum(words(source(cell)) for cell in cells if cell["cell_type"] == "markdown") <= 1500


def test_hidden_cells_are_short():
    """What hides more than a few lines of plotting hides what a reader came for."""
    lines = {f"{name}, cell {number}": len(source(cell).splitlines()) for name, cells in PAGES.items()
             for number, cell in enumerate(cells) if source(cell).startswith("#| hide") and ".plot(" in source(cell)}
    assert most(lines, 10) == {}


def test_the_catch_is_told_once_a_page():
    for name, cells in PAGES.items():
        told = sum(source(cell).lower().count("the catch") for cell in cells if cell["cell_type"] == "markdown")
        assert told <= 1, f"{name}: {told} times"


def test_the_floors_name_every_room_once():
    rooms = [room for each in FLOORS for room in each]
    assert len(rooms) == len(set(rooms)) and {module.split(".")[0] for module in MODULES} == set(rooms)
    assert all(set(lower).isdisjoint(upper) for lower, upper in pairwise(FLOORS))


def installed_by_make_demo():
    """Names that a page may import: Python's, ours, those of the requirements that are not for development, and Jupyter's own."""
    settings = configparser.ConfigParser(interpolation=None)
    settings.read(ROOT / "settings.ini")
    required = set(re.findall(r"([a-z]+)[<>=]", settings["DEFAULT"]["requirements"]))
    helpers = {path.stem for path in (ROOT / "tests").glob("*.py")}  # of the pretend Kaggle, which some pages show
    return sys.stdlib_module_names | required | helpers | {"facegen_keras", "PIL", "IPython", "nbformat"}


def names_in(tree):
    """The packages that code imports, the names that it binds, and those that it reads."""
    packages, bound, read = set(), set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            (read if isinstance(node.ctx, ast.Load) else bound).add(node.id)
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            bound.add(node.name)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""] * (not node.level)
            packages.update(name.partition(".")[0] for name in names)
            bound.update((alias.asname or alias.name).partition(".")[0] for alias in node.names)
    return packages, bound, read


def needs_more_than_make_demo(cells):
    """Packages that a page needs outside its hidden tests, and names that it takes from them."""
    needs, dropped, kept, used = set(), set(), set(), set()
    for cell in cells:
        if cell["cell_type"] == "code":
            packages, bound, read = names_in(ast.parse(source(cell)))
            foreign = set() if exports(cell) else packages - installed_by_make_demo()
            if foreign and source(cell).startswith("#| hide"):
                dropped |= bound
            else:
                needs, kept, used = needs | foreign, kept | bound, used | read
    return needs | (dropped - kept) & used


@pytest.mark.parametrize("name", PAGES)
def test_a_page_but_for_its_tests_needs_no_more_than_make_demo_installs(name):
    assert needs_more_than_make_demo(PAGES[name]) == set()


@pytest.mark.parametrize("found, codes", [
    ({"pytest"}, ["import pytest\nx = 1"]), ({"pytest"}, ["#| hide\nimport pytest", "with pytest.raises(ValueError): int('x')"]),
    ({"folder"}, ["#| hide\nimport pytest\nfolder = 1", "print(folder)"]), ({"hypothesis"}, ["from hypothesis import given"]),
    (set(), ["#| hide\nimport pytest\nassert x", "import numpy.linalg, PIL.Image\nfrom keras import ops"])])
def test_what_a_page_needs_is_noticed(found, codes):
    assert needs_more_than_make_demo([{"cell_type": "code", "source": [code]} for code in codes]) == found
