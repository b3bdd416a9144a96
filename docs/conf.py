"""How Sphinx makes build/docs. The whole project is its source, so that every document links to every other.

README.md is the front page. What can be derived from the code is derived here, at each build: a comment
`<!-- generated: NAME -->` in a page becomes what GENERATED[NAME] writes.
"""

import shutil
import sys
from pathlib import Path

from sphinx.application import Sphinx

PROJECT = Path(__file__).parent.parent
sys.path.insert(0, str(PROJECT))

from docs import pictures, reference  # noqa: E402  (found by the line above)

project, author = "Thaw", "The Thaw maintainers"
root_doc = "README"
include_patterns = [
    "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "docs/*.md", "docs/extend/*.md", "infra/README.md",
    "studies/README.md", "studies/*/table.md", "benchmarks/README.md", "requirements/README.md",
    "components/evaluation/README.md",
]  # fmt: skip
exclude_patterns = ["build", "experiments", "runs", "raw", "team", "data", "mlartifacts", "node_modules", "**/.*"]

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_heading_anchors = 4  # the anchors that GitHub gives headings
myst_enable_extensions = ["attrs_block", "deflist"]
highlight_language = "none"
smartquotes = False  # -- begins an option
suppress_warnings = ["myst.header"]  # a page may start below the first level, as benchmarks/README.md does
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
napoleon_use_rtype = False
nitpicky = True
nitpick_ignore_regex = [("py:class", ".*")]  # types of other libraries, whose pages are not here to be linked to

html_theme = "furo"
html_title = "Thaw"
html_static_path = ["static"]
html_css_files = ["thaw.css"]
html_additional_pages = {"index": "redirect.html"}
templates_path = ["static"]
html_theme_options = {"footer_icons": []}

# The pages by their place in the table of contents; a page that stands in none of these lists goes to the last one.
CONTENTS = {
    "Begin": ["docs/start", "docs/continuum", "docs/choose-q", "docs/own-data"],
    "Look up": ["docs/commands", "docs/settings", "docs/estimators", "docs/results", "docs/troubleshooting"],
    "Run": ["docs/operate", "infra/README", "components/evaluation/README"],
    "Evidence": ["studies/README", "benchmarks/README", "docs/decisions"],
    "Extend": ["docs/built", *(f"docs/extend/{name}" for name in ("estimator", "data-set", "engine", "chart"))],
    "Inside": ["CONTRIBUTING", "CHANGELOG", "SECURITY", "requirements/README"],
}
TITLES = {"infra/README": "Servers and clusters"}  # in the table of contents, where it is not the page's own
UNTITLED = {"benchmarks/README": "Benchmarks", "requirements/README": "Versions"}
STUDIES = "\n```{toctree}\n:hidden:\n:glob:\n\n*/table\n```\n"

GENERATED = {
    "settings": reference.settings,
    "commands": reference.commands,
    "statuses": reference.statuses,
} | {f"picture {name}": draw for name, draw in pictures.PICTURES.items()}


def table_of_contents() -> str:
    """The toctrees of CONTENTS."""
    listed = {page for pages in CONTENTS.values() for page in pages}
    more = sorted(f"docs/{path.stem}" for path in (PROJECT / "docs").glob("*.md"))
    contents = CONTENTS | {"Inside": [page for page in more if page not in listed] + CONTENTS["Inside"]}
    parts = []
    for part, pages in contents.items():
        entries = [f"{TITLES[page]} </{page}>" if page in TITLES else f"/{page}" for page in pages]
        parts.append("\n".join(["", "```{toctree}", ":hidden:", f":caption: {part}", "", *entries, "```", ""]))
    return "".join(parts)


def fill_in(_app: Sphinx, page: str, source: list[str]) -> None:
    """Put what is generated into a page, and a title on those that have none."""
    for name, write in GENERATED.items():
        if (mark := f"<!-- generated: {name} -->") in source[0]:
            source[0] = source[0].replace(mark, write())
    if page == root_doc:
        source[0] += table_of_contents()
    elif page == "studies/README":
        source[0] += STUDIES
    elif page in UNTITLED or page.endswith("/table"):
        source[0] = f"# {UNTITLED.get(page) or page.split('/')[1]}\n\n{source[0]}"


def copy_pictures(app: Sphinx, error: Exception | None) -> None:
    """What README.md shows by HTML of its own, of which Sphinx knows nothing."""
    if error is None and (images := PROJECT / "docs" / "images").is_dir():
        shutil.copytree(images, Path(app.outdir) / "docs" / "images", dirs_exist_ok=True)


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("source-read", fill_in)
    app.connect("build-finished", copy_pictures)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
