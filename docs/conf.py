"""Configuration of Sphinx. `nox -s docs` builds the pages in docs/_build/html, without a network."""

import logging
import os
import sys
from pathlib import Path

DOCS = Path(__file__).parent
sys.path[:0] = [str(DOCS.parent), str(DOCS / "_ext")]

import russellgrad  # noqa: E402

os.environ["JUPYTER_PATH"] = str(DOCS / "_jupyter")  # a kernel that only prints errors
logging.getLogger("traitlets").setLevel(logging.WARNING)  # not a line for each notebook

project = "RussellGrad"
author = "the RussellGrad authors"
version = release = russellgrad.__version__
html_title = f"RussellGrad {version}"
html_show_copyright = False
language = "en"

extensions = [
    "myst_nb", "sphinx_design", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode",
    "lessons", "offline", "one_line_examples", "plain_docstrings", "repository_links", "signatures", "source_links",
]  # fmt: skip
exclude_patterns = ["_build", "_ext", "_jupyter"]
source_suffix = {".md": "myst-nb", ".rst": "restructuredtext"}

# --- Pages in Markdown. Those with a notebook header are executed at each build.
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3  # links such as own_op.md#add-a-derived-primitive
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 300  # seconds for a cell
nb_merge_streams = True

# --- The API reference, from docstrings
default_role = "code"  # names in docstrings have single backticks
smartquotes_action = "D"  # dashes only: "float32" and (..., n) are code
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
napoleon_custom_sections = [("Attributes", "params_style")]
napoleon_use_param = False  # several parameters with one description stay together
napoleon_use_rtype = False
python_maximum_signature_line_length = 76
toc_object_entries_show_parents = "hide"

# --- HTML
html_theme = "furo"
pygments_dark_style = "github-dark"  # the default underlines names of modules, as if they were links
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_domain_indices = False  # the reference is by topic, not by module
html_show_search_summary = False  # a page that is opened from a file cannot fetch others
