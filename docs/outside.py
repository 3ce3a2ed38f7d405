"""Bring what the pages name outside of docs/ into the site.

A block of code that is ``# examples/wine.py`` alone becomes that file.
In the repository a page links to ``../examples/wine.py`` and ``../CONTRIBUTING.md``; on the site
these are the gallery's page of that example and a page of its own. And in the reference, the roles
by which docstrings refer to each other are taken off, which Markdown does not know.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

EXAMPLE = re.compile(r"(```\w+\n)# (examples/\S+)\n(?=```)")
ROOT = Path(__file__).resolve().parents[1]
CONTRIBUTING = "contributing.md"
PAGES = {"CONTRIBUTING.md": CONTRIBUTING, "examples/begin.py": "begin.md"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the page on contributing."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").replace("](docs/", "](")
    files.append(File.generated(config, CONTRIBUTING, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Return a page with examples' code in it, and no links that lead out of the site."""
    folder = posixpath.dirname(page.file.src_uri)

    def inside(link: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join("docs", folder, link[1]))
        if path.startswith("docs/"):
            return link[0]
        target = PAGES.get(path, f"gallery/{Path(path).stem}.md")
        return f"]({posixpath.relpath(target, folder or '.')})"

    def code(named: re.Match[str]) -> str:
        return named[1] + (ROOT / named[2]).read_text(encoding="utf-8")

    return EXAMPLE.sub(code, re.sub(r"\]\((\.\./[^)#]+)\)", inside, markdown))


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Return a page in which ``:meth:`fits``` is ``fits`` alone."""
    return re.sub(r":(?:attr|class|func|meth|mod):(?=<code>)", "", html)
