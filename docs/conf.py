"""Configuration of the documentation: ``make docs``."""

from __future__ import annotations

import os
import warnings
from importlib.metadata import version as installed_version

# Headless, and the gallery takes its figures from Matplotlib, not from files that a script writes.
os.environ["MPLBACKEND"] = "Agg"
os.environ.pop("PYRALLOY_FIGURES", None)


def short_warning(message: object, category: type[Warning], *_: object) -> str:
    """Write a warning as a page is to show it: without the folder of whoever builds the pages."""
    return f"{category.__name__}: {message}\n"


warnings.formatwarning = short_warning

project = "pyralloy"
author = "The pyralloy developers"
project_copyright = author
release = installed_version("pyralloy")
version = release

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_gallery.gen_gallery",
]
templates_path = ["_templates"]
exclude_patterns = ["_build"]

# Links into other projects' pages need the network, so they are made only when asked for.
if os.environ.get("PYRALLOY_DOCS_ONLINE"):
    extensions.append("sphinx.ext.intersphinx")
    intersphinx_mapping = {
        "python": ("https://docs.python.org/3", None),
        "numpy": ("https://numpy.org/doc/stable", None),
        "torch": ("https://docs.pytorch.org/docs/stable", None),
        "pyro": ("https://docs.pyro.ai/en/stable", None),
        "sklearn": ("https://scikit-learn.org/stable", None),
        "matplotlib": ("https://matplotlib.org/stable", None),
    }

autosummary_generate = True
# `Fit` and `fit` would be one file where a file system ignores case.
autosummary_filename_map = {"pyralloy.Fit": "pyralloy.Fit-class"}
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
napoleon_use_ivar = True  # or the fields of a named tuple would be described twice
napoleon_numpy_docstring = False
napoleon_use_rtype = False

html_theme = "furo"
html_title = f"pyralloy {release}"
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_show_sphinx = False

# No timings on the pages: they would say more about the machine than about the example.
sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "gallery",
    "filename_pattern": r"plot_",
    "within_subsection_order": "FileNameSortKey",
    "capture_repr": (),
    "remove_config_comments": True,
    "show_memory": False,
    "show_signature": False,
    "write_computation_times": False,
    "min_reported_time": 86_400,
    "download_all_examples": False,
}


def skip_member(
    app: object, what: str, name: str, obj: object, skip: bool, options: object
) -> bool | None:
    """Leave out what scikit-learn writes into every estimator for its metadata routing."""
    if name.startswith("set_") and name.endswith("_request"):
        return True
    return None


def setup(app: object) -> None:
    """Connect :func:`skip_member`."""
    app.connect("autodoc-skip-member", skip_member)
