"""What the site makes of the pages.

A block of code that is ``# examples/wine.py`` alone becomes that file, and
``<!-- rows of rivals: fedavg, fedcurv -->`` the rows of these methods in that experiment's table.
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
ROWS = re.compile(r"<!-- rows of (\w+): (.+) -->")
CONTRIBUTING = "contributing.md"
PAGES = {"CONTRIBUTING.md": CONTRIBUTING, "examples/begin.py": "begin.md"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the page on contributing."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").replace("](docs/", "](")
    files.append(File.generated(config, CONTRIBUTING, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Return a page with code and rows in it, and without links that lead out of the site."""
    folder = posixpath.dirname(page.file.src_uri)

    def inside(link: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join("docs", folder, link[1]))
        if path.startswith("docs/"):
            return link[0]
        target = PAGES.get(path, f"gallery/{Path(path).stem}.md")
        return f"]({posixpath.relpath(target, folder or '.')})"

    def code(named: re.Match[str]) -> str:
        return named[1] + (ROOT / named[2]).read_text(encoding="utf-8")

    markdown = ROWS.sub(lambda asked: rows_of(asked[1], asked[2].split(", ")), markdown)
    return EXAMPLE.sub(code, re.sub(r"\]\((\.\./[^)#]+)\)", inside, markdown))


def rows_of(experiment: str, methods: list[str]) -> str:
    """Return the methods' rows of an experiment's table; nothing where it has but one of them."""
    summary = ROOT / "docs" / "results" / "experiments" / experiment / "summary.md"
    table, *_ = summary.read_text(encoding="utf-8").split("\n\n")
    head, line, *rows = table.splitlines()
    column = [cell.strip() for cell in head.split("|")].index("method")
    chosen = [row for row in rows if row.split("|")[column].strip() in methods]
    if len(chosen) < 2:
        return ""
    told = "Test accuracy in %, mean ± standard deviation over the seeds; final is the mean of the"
    told += f" last five rounds. [How it was measured](../results.md#{experiment})."
    return "\n".join([head, line, *chosen, "", told])


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Return a page in which ``:meth:`fits``` is ``fits`` alone."""
    return re.sub(r":(?:attr|class|func|meth|mod):(?=<code>)", "", html)
