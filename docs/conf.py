"""Configuration of the documentation. Nothing here needs a network."""

import re
from importlib.metadata import PackageNotFoundError, version

from sphinx.application import Sphinx

project = "noisynat"
author = "the noisynat authors"
copyright = "2026, the noisynat authors"
try:
    release = version("noisynat")
except PackageNotFoundError:
    release = "unknown"
version = release

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.doctest",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["_build", "gallery/*.ipynb", "gallery/*.py", "results/*_tables.md"]  # the tables are parts of pages
default_role = "literal"

myst_enable_extensions = ["amsmath", "deflist", "dollarmath"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
napoleon_numpy_docstring = False
napoleon_use_rtype = False

doctest_global_setup = """
import torch
torch.manual_seed(0)
"""
doctest_test_doctest_blocks = ""  # pytest runs the examples in docstrings already

# A script in examples/ runs when it is new or has changed (all do after "make clean"); one that fails ends the build.
sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "gallery",
    "filename_pattern": "/plot_",
    "within_subsection_order": "FileNameSortKey",
    "abort_on_example_error": True,
    "capture_repr": (),
    "download_all_examples": False,
    "min_reported_time": 1000,
    "show_signature": False,
    "write_computation_times": False,
}

html_theme = "furo"
html_title = f"noisynat {release}"

# In docstrings, the star of a shape such as (*batch, n, n) opens no emphasis, and the bars of log|C| no
# substitution. Literals and code are left as they are.
_LITERAL_OR_SIGN = re.compile(r"(``.*?``|`[^`]*`)|(?<=[(\[,\s])\*(?=(?:[A-Za-z]\w*)?[,)\[\]])|(?<!\\)\|")


def _escape_signs(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    block: int | None = None  # the indentation of the line that opened a literal block
    for number, line in enumerate(lines):
        indentation = len(line) - len(line.lstrip())
        if block is not None and line.strip() and indentation <= block:
            block = None
        if block is None and not line.lstrip().startswith((">>>", "...")):
            lines[number] = _LITERAL_OR_SIGN.sub(lambda match: match[1] or "\\" + match[0], line)
            if line.rstrip().endswith("::"):
                block = indentation


def setup(app: Sphinx) -> None:
    app.connect("autodoc-process-docstring", _escape_signs)
