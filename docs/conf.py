"""The site: pages of docs/, the reference from docstrings, tutorials that run; `make docs`."""

from importlib.util import find_spec

from docutils.nodes import Text

from steer_lightning import __version__

project = "steer_lightning"
author = copyright = "The steer_lightning authors"
release = version = __version__

extensions = [
    "myst_nb",  # Markdown, and tutorials, which run at every build
    "sphinx.ext.autosummary",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
]
exclude_patterns = ["_build"]
templates_path = ["_templates"]

html_theme = "furo"
html_title = "steer_lightning"
html_css_files = ["site.css"]
html_theme_options = {"navigation_with_keys": True}
html_copy_source = False
html_show_sourcelink = False

# MathJax is copied from a package, so that the site needs no network.
mathjax = find_spec("sphinx-mathjax-offline").submodule_search_locations[0]
html_static_path = ["_static", f"{mathjax}/static"]
mathjax_path = "mathjax/tex-chtml.js"

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3  # links such as your-model.md#fabric, as elsewhere
# Pages of results begin with a second-level heading; `make docs` makes other warnings errors.
suppress_warnings = ["myst.header"]

# Names of others, whose sites are not asked, and bases of ours that are no public names.
nitpicky = True
nitpick_ignore_regex = [
    ("py:.*", r"(abc|collections|lightning_fabric|pathlib|pytorch_lightning|torch)\..*"),
    ("py:.*", "MisconfigurationException"),
    ("py:class", r"steer_lightning\.\w+\.[a-z_.]+\.\w+"),
]

nb_execution_mode = "force"
nb_execution_in_temp = True
nb_execution_raise_on_error = True
nb_execution_timeout = 900  # seconds a cell, for machines that are shared
nb_merge_streams = True
nb_output_stderr = "remove"  # what Lightning logs at the start of a run

# Public names are those of `__all__`, whatever file they live in.
autosummary_ignore_module_all = False
autosummary_imported_members = True
autodoc_inherit_docstrings = False
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_member_order = "bysource"
napoleon_numpy_docstring = False


def setup(app):
    """Mend types that stand behind a ``Literal``, which keep Sphinx's mark of a short name."""
    app.connect("doctree-resolved", lambda app, doctree, page: shorten_types(doctree))


def shorten_types(doctree):
    """Leave the last part of each name that begins with the mark."""
    for text in [text for text in doctree.findall(Text) if text.startswith("~")]:
        text.parent.replace(text, Text(text.rpartition(".")[2]))
