"""The site of docs/ builds strictly and offline, and leaves out no page and no public name."""

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PACKAGES = ["fedcurv", "fedcurv.losses", "fedcurv.lasgd", "fedcurv.strategies", "fedcurv.clients"]
# nothing listens there
NO_NETWORK = dict.fromkeys(("http_proxy", "https_proxy"), "http://127.0.0.1:9")


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the site where every way to a network is shut."""
    pytest.importorskip("material", reason="the site needs the extra docs")
    pytest.importorskip("mkdocstrings", reason="the site needs the extra docs")
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1", **NO_NETWORK},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def pages_of(entry: Any) -> list[str]:
    """Return the files that a part of the navigation names."""
    if isinstance(entry, str):
        return [entry]
    parts = entry.values() if isinstance(entry, dict) else entry
    return [page for part in parts for page in pages_of(part)]


def test_all_pages_are_in_the_navigation():
    named = pages_of(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"])
    assert len(named) == len(set(named))
    pages = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")}
    parts_of_the_results = {page for page in pages if page.startswith("results/experiments/")}
    assert set(named) == (pages - parts_of_the_results) | {"contributing.md"}


def test_every_page_is_built(site):
    for page in pages_of(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]):
        assert (site / page).with_suffix(".html").stat().st_size > 1000


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_is_in_the_reference(package, site):
    pages = "".join(page.read_text(encoding="utf-8") for page in site.glob("reference/*.html"))
    for name in importlib.import_module(package).__all__:
        assert f' id="{package}.{name}"' in pages, f"{package}.{name}"


def test_no_page_fetches_anything_from_a_network(site):
    fetches = re.compile(r"<(?:script|img|iframe|source)[^>]*\ssrc=[\"']?(?:https?:)?//")
    styles = re.compile(r"<link[^>]*rel=[\"']?(?:stylesheet|preconnect|icon)[^>]*href=[\"']?http")
    pages = list(site.rglob("*.html"))
    assert len(pages) > 30
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert not fetches.search(text), page
        assert not styles.search(text), page


def test_links_out_of_the_pages_stay_on_the_site(site):
    page = (site / "own_things.html").read_text(encoding="utf-8")
    for target in ("gallery/wine.html", "gallery/sparse.html", "contributing.html"):
        assert f'href="{target}"' in page
    assert 'href="own_things.html#a-layer-with-a-closed-form"' in (
        site / "contributing.html"
    ).read_text(encoding="utf-8")


def test_no_role_of_another_markup_is_left_in_the_reference(site):
    for page in site.glob("reference/*.html"):
        assert not re.search(r":(attr|class|func|meth|mod):", page.read_text(encoding="utf-8"))
