"""What a forge reads, templates and hooks, beside the Makefile and pyproject.toml."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

import fedcurv

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
MAKEFILE = (ROOT / "Makefile").read_text()


def test_hooks_run_the_commands_of_make_check():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    recipe = re.search(r"^check:.*\n((?:\t.*\n)+)", MAKEFILE, re.MULTILINE)[1]
    wanted = [line.strip().replace("$(BIN)", ".venv/bin") for line in recipe.splitlines()]
    assert [hook["entry"] for hook in hooks] == wanted


@pytest.mark.parametrize("path", sorted((ROOT / ".github/ISSUE_TEMPLATE").iterdir()), ids=str)
def test_a_form_has_what_a_forge_asks_for(path):
    form = yaml.safe_load(path.read_text())
    assert form["name"] and form["description"]
    assert all(part["type"] == "textarea" and part["attributes"]["label"] for part in form["body"])


def test_the_version_is_the_packages():
    assert fedcurv.__version__ == PYPROJECT["project"]["version"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == PYPROJECT["project"]["version"]
    assert f"## {fedcurv.__version__}" in (ROOT / "CHANGELOG.md").read_text()
    with pytest.raises(AttributeError, match="no attribute 'versoin'"):
        _ = fedcurv.versoin


def test_the_version_costs_nothing_until_it_is_asked_for():
    code = (
        "import importlib.metadata as m; of = m.version\n"
        "m.version = lambda name: 1 / 0 if name == 'fedcurv' else of(name)\n"
        "import fedcurv\n"
        "try:\n    fedcurv.__version__\nexcept ZeroDivisionError:\n    print('asked')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.stdout == "asked\n", done.stderr
