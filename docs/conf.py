"""Sphinx's settings for `make docs`: the notebooks in nbs/ as a site, with the outputs that are stored in them."""

import sys
from configparser import ConfigParser
from pathlib import Path

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml

HERE = Path(__file__).resolve().parent
NBS = HERE.parent / "nbs"
sys.path.insert(0, str(HERE))
from pages import page  # noqa: E402  it lies beside this file

settings = ConfigParser(delimiters=["="])
settings.read(HERE.parent / "settings.ini", encoding="utf-8")
settings = settings["DEFAULT"]
extra = HERE.parent / "build/docs/extra"  # what `make docs` puts beside the pages, such as the explorer
play = (extra / "explore/index.html").exists()

project = html_title = settings["title"]
author, copyright = settings["author"], settings["copyright"]
version = release = settings["version"]
extensions = ["myst_nb", "sphinx.ext.githubpages"]
nb_execution_mode = "off"
nb_render_markdown_format = "myst"  # tables that code makes
nb_render_image_options = {"alt": "what the code above shows"}
nb_code_prompt_show = "The code of this page"
nb_code_prompt_hide = "The code of this page"
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4
html_math_renderer = "mathml"  # by the browser; MathJax would come from another host

html_theme = "furo"
html_theme_options = {"source_repository": settings["git_url"], "source_branch": settings["branch"],
                      "source_directory": "nbs/", "top_of_page_buttons": ["view"]}
html_sidebars = {"**": [f"sidebar/{name}.html" for name in ("brand", "search", "scroll-start")]
                 + ["explore.html"] * play + ["sidebar/navigation.html", "sidebar/scroll-end.html"]}
html_baseurl = f"{settings['doc_host']}{settings['doc_baseurl']}/"
html_copy_source = html_use_index = False
html_extra_path = [str(extra)] * play
templates_path = ["templates"]


def show_page(app, name, source):
    "Gives Sphinx what a reader should see of a notebook."
    if app.env.doc2path(name).suffix == ".ipynb":
        source[0] = page(source[0], name, NBS, play)


def finish_page(app, name, template, context, tree):
    "Pictures that a text links open rather than being saved; the Chinese page says that it is Chinese."
    context["body"] = context.get("body", "").replace('download="" href=', "href=")
    if name.endswith(".zh-CN"):
        context["language"] = "zh-CN"


def show_formula(translator, node):
    "A formula as MathML."
    translator.body.append(tex2mathml(node.astext(), as_block=isinstance(node, nodes.math_block)))
    raise nodes.SkipNode


def setup(app):
    app.connect("source-read", show_page)
    app.connect("html-page-context", finish_page)
    app.add_html_math_renderer("mathml", (show_formula, None), (show_formula, None))
