"""How Sphinx makes the site of what `tools/make_site.py` lays before it.

The site needs no other host, when it is built or when it is read: fonts and scripts lie beside the
pages, and formulas are MathML, which browsers draw by themselves.
"""

from __future__ import annotations

import dataclasses
import re
import sys
from pathlib import Path
from typing import Any

import matplotlib
import traitlets
from docutils import nodes
from latex2mathml.converter import convert
from sphinx.util import inspect, logging

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))

import repository  # noqa: E402

import vblora_lab  # noqa: E402

log = logging.getLogger("site")
ADDRESSES = repository.addresses(repository.name())

project = "vblora_lab"
version = release = vblora_lab.__version__
copyright = "the authors of vblora_lab, Apache-2.0"
root_doc = "overview"  # index.html is one of the pages of tools/play.py
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
highlight_language = "none"  # of a block that names no language
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4

# --- notebooks: they were run before, with the outputs that are shown

nb_execution_mode = "off"
nb_output_stderr = "remove"  # what libraries say there is about the machine that ran them
nb_merge_streams = True
# A widget needs a kernel. make_site.py has put HTML or a picture in its place.
nb_mime_priority_overrides = [("html", "application/vnd.jupyter.widget-view+json", None)]
nb_ipywidgets_js: dict[str, dict[str, str]] = {}

# --- reference: docstrings

autodoc_member_order = "bysource"
autodoc_default_options = {"no-value": True}  # of constants
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 80
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
napoleon_custom_sections = [("Traits to set or to observe", "params_style")]
toc_object_entries_show_parents = "hide"
default_role = "py:obj"  # a name in backticks is a link where the reference has it, else code

# --- the look

html_theme = "sphinx_book_theme"
html_title = "vblora_lab"
html_baseurl = ADDRESSES["Documentation"]
html_math_renderer = "mathml"
html_static_path = [
    "site",
    # One font for formulas everywhere. matplotlib brings it along.
    str(Path(matplotlib.get_data_path(), "fonts", "ttf", "STIXGeneral.ttf")),
]
html_favicon = "site/icon.svg"
html_css_files = ["site.css"]
html_js_files = ["site.js"]
html_show_sphinx = False
html_copy_source = False
html_show_sourcelink = False
html_last_updated_fmt = None
html_context = {"default_mode": "auto"}  # light or dark, as the browser asks
html_theme_options = {
    "repository_url": ADDRESSES["Repository"],
    "repository_branch": repository.BRANCH,
    "use_repository_button": True,
    "use_issues_button": True,
    "use_download_button": False,
    "use_fullscreen_button": False,
    "home_page_in_toc": True,
    "footer_content_items": ["copyright"],
    "navbar_persistent": [],  # the search stands in the sidebar
    "show_navbar_depth": 1,
    "show_toc_level": 2,
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}


def _draw_math(translator: Any, node: nodes.Element, display: str = "inline") -> None:
    element = convert(node.astext(), display=display)
    if "\\" in element:  # it leaves what it doesn't know as it is
        log.warning("a formula with an unknown command: %s", node.astext(), location=node)
    translator.body.append(f'<span class="formula {display}">{element}</span>')
    raise nodes.SkipNode


def _draw_math_block(translator: Any, node: nodes.Element) -> None:
    _draw_math(translator, node, "block")


def _indented_is_code(
    _app: Any, _what: str, _name: str, _object: Any, _options: Any, lines: list[str]
) -> None:
    """Docstrings indent code and equations; reStructuredText wants two colons before."""
    for i, (line, blank, code) in enumerate(zip(lines, lines[1:], lines[2:], strict=False)):
        indent = " " * (len(line) - len(line.lstrip()) + 4)
        if line.endswith((":", ",", ".")) and not blank.strip() and code.startswith(indent):
            lines[i] = line + (":" if line.endswith(":") else " ::")


def _fields_have_help(
    _app: Any, _what: str, _name: str, value: Any, _options: Any, lines: list[str]
) -> None:
    """Fields of a dataclass that say in their metadata what they are for."""
    if isinstance(value, type) and dataclasses.is_dataclass(value):
        own = [field for field in dataclasses.fields(value) if field.name in value.__annotations__]
        helps = [f"    {field.name}: {field.metadata['help']}" for field in own if field.metadata]
        lines += ["", "Args:", *helps] if helps else []


def _a_first_line_is_no_type(
    _app: Any, what: str, _name: str, _object: Any, _options: Any, lines: list[str]
) -> None:
    """Napoleon takes what stands before a colon in the first line of a property for its type."""
    if what in ("attribute", "data", "property"):
        lines.insert(0, "")


def _signature_of_a_widget(
    _app: Any, what: str, _name: str, value: Any, _options: Any, _signature: str, returns: str
) -> tuple[str, str] | None:
    """That of `__init__`; Sphinx finds traitlets' `__new__` first, which takes anything."""
    if what != "class" or not issubclass(value, traitlets.HasTraits):
        return None
    signature = inspect.signature(value.__init__, bound_method=True)
    return inspect.stringify_signature(signature, unqualified_typehints=True), returns


def _defaults_are_code(
    _app: Any, _what: str, _name: str, _object: Any, _options: Any, signature: str, returns: str
) -> tuple[str, str] | None:
    """Functions by their names, `...` for what a factory makes: Sphinx can't read angle brackets.

    It would show the whole signature as it is, with types as `~module.Name`.
    """
    if not signature:
        return None
    signature = re.sub(r"<(?:built-in )?function ([\w.]+)(?: at \w+)?>", r"\1", signature)
    return re.sub(r"= ?<factory>", "=...", signature), returns


def setup(app: Any) -> None:
    app.add_html_math_renderer("mathml", (_draw_math, None), (_draw_math_block, None))
    for hook in (_indented_is_code, _fields_have_help, _a_first_line_is_no_type):
        app.connect("autodoc-process-docstring", hook, priority=400)  # before napoleon
    app.connect("autodoc-process-signature", _signature_of_a_widget)
    app.connect("autodoc-process-signature", _defaults_are_code)  # of all others
