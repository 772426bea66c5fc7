"""Everything here is read from settings.ini; a built package carries the story that Kaggle runs."""
import json
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

settings = ConfigParser(delimiters=["="])
settings.read("settings.ini", encoding="utf-8")
settings = settings["DEFAULT"]
STORY = Path("nbs/00_story.ipynb")  # what `facegen kernel build` makes its notebook of


class BuildWithStory(build_py):
    """Puts the story, without its outputs, where an installed package looks for it."""

    def run(self):
        super().run()
        notebook = json.loads(STORY.read_text(encoding="utf-8"))
        for cell in notebook["cells"]:
            if cell["cell_type"] == "code":
                cell.update(outputs=[], execution_count=None)
        target = Path(self.build_lib, settings["lib_name"], "kaggle", STORY.name)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


class SourcesWithStory(sdist):
    """The files that building needs, beside the package itself."""

    def make_release_tree(self, base_dir, files):
        super().make_release_tree(base_dir, [*files, "settings.ini", STORY.as_posix()])


setup(
    name=settings["lib_name"],
    version=settings["version"],
    description=settings["description"],
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author=settings["author"],
    author_email=settings["author_email"],
    url=settings["git_url"],
    license="MIT",
    keywords=settings["keywords"],
    packages=find_packages(include=[f"{settings['lib_name']}*"]),
    package_data={settings["lib_name"]: ["shipped/*/*", "share/site/*"]},  # generators; the page in the browser
    cmdclass={"build_py": BuildWithStory, "sdist": SourcesWithStory},
    python_requires=f">={settings['min_python']}",
    install_requires=settings["requirements"].split(),
    extras_require={name: settings[f"{name}_requirements"].split() for name in ("dev", "docs", "jax", "align", "video", "export")},
    entry_points={
        "console_scripts": settings["console_scripts"].split(),
        "nbdev": [f"{settings['lib_name']}={settings['lib_name']}._modidx:d"],
    },
    zip_safe=False,
)
