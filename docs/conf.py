"""Sphinx's settings for `make book`: a static site of the documents and the notebooks as committed, which runs no code.

Pages ask for nothing from elsewhere: formulas are MathML, and pictures that move are drawn by the scripts in
cipherdm/views/front from what notebooks hold.
"""

import json
import re
from importlib import import_module
from inspect import ismodule
from pathlib import Path
from pkgutil import iter_modules
from textwrap import indent

from docutils.nodes import SkipNode
from docutils.utils.math.latex2mathml import tex2mathml

import cipherdm
from cipherdm.views.widgets import FRONT, SCENES

project = "cipherdm"
root_doc = "README"
include_patterns = ["*.md", "notebooks/*.ipynb", "experiments/README.md", "docs/api/*.rst"]
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]

html_theme = "furo"
html_title = "cipherdm"
html_static_path = [str(FRONT), "book.css"]
html_css_files = ["book.css"]
html_js_files = [(f"{name}.js", {"defer": "defer"}) for name in ("drawing", *SCENES, "explorer", "page")]
html_math_renderer = "mathml"
html_copy_source = False

nb_execution_mode = "off"
nb_ipywidgets_js = {}
nb_mime_priority_overrides = [("html", "application/vnd.jupyter.widget-view+json", None)]
nb_merge_streams = True
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 4

autodoc_member_order = "bysource"
autodoc_default_options = {"imported-members": True, "undoc-members": True}
napoleon_use_ivar = True
default_role = "literal"
suppress_warnings = ["ref.python"]  # types such as bytes, which are names of attributes as well

_CONTENTS = """

```{toctree}
:hidden:
:caption: Course
:glob:

notebooks/*
```

```{toctree}
:hidden:
:caption: Documents

USING
RESULTS
DEPLOYING
SECURITY
CONTRIBUTING
experiments/README
```

```{toctree}
:hidden:
:caption: Library
:glob:

docs/api/*
```
"""


def setup(app) -> None:
    """Write a page for the face of each package, and say how contents and formulas are written."""
    packages = [f"cipherdm.{module.name}" for module in iter_modules(cipherdm.__path__) if module.ispkg]
    for name in ("cipherdm", *packages):
        face = import_module(name)
        names = [each for each in dir(face) if not each.startswith("_") and not ismodule(getattr(face, each))]
        page = Path(app.srcdir) / "docs" / "api" / f"{name}.rst"
        page.parent.mkdir(exist_ok=True)
        index = "" if name != "cipherdm" else "   :no-index:\n"  # names of packages, which have them on their own pages
        if names:
            members = f".. automodule:: {name}\n   :members: {', '.join(names)}\n{index}"
            page.write_text(f"{name}\n{'=' * len(name)}\n\n{members}")
    app.connect("source-read", _prepare)
    # Before napoleon, which reads Args and the like.
    app.connect("autodoc-process-docstring", _as_written, priority=400)
    app.add_html_math_renderer("mathml", (_formula, None), (_display, None))


def _prepare(app, name: str, source: list[str]) -> None:
    """Add the contents to the first page; fold cells that only check, and leave out the state of widgets in notebooks."""
    if name == root_doc:
        source[0] += _CONTENTS
    elif name.startswith("notebooks/"):
        notebook = json.loads(source[0])
        notebook["metadata"].pop("widgets", None)
        for cell in notebook["cells"]:
            tags = cell["metadata"].get("tags", [])
            tags += ["hide-input"] if "check" in tags else []
        source[0] = json.dumps(notebook)


def _as_written(app, what, name, obj, options, lines: list[str]) -> None:
    """Keep what docstrings lay out by spaces, such as formulas and tables, and signs that reStructuredText would read."""
    blocks = "\n".join(lines).split("\n\n")
    for number, block in enumerate(blocks):
        laid_out = re.search(r"\S {2,}\S|\n {4,}\S", block)
        if laid_out and not re.match(r"\s*(Args|Returns|Raises|Attributes|Yields):", block):
            blocks[number] = ".. code-block:: text\n\n" + indent(block, "    ")
        else:  # every second part stands in backticks
            parts = block.split("`")
            parts[::2] = [re.sub(r"([|*])", r"\\\1", part) for part in parts[::2]]
            blocks[number] = "`".join(parts)
    lines[:] = "\n\n".join(blocks).split("\n")


def _formula(self, node) -> None:
    self.body.append(tex2mathml(node.astext()))
    raise SkipNode


def _display(self, node) -> None:
    self.body.append(f'<div class="math">{tex2mathml(node.astext(), as_block=True)}</div>')
    raise SkipNode
