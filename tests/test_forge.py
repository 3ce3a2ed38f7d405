"""What a forge reads: workflows, templates and hooks, beside the Makefile and pyproject.toml."""

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
WORKFLOW = yaml.safe_load((ROOT / ".github/workflows/check.yaml").read_text())
JOBS = WORKFLOW["jobs"]


def commands(job: str) -> list[str]:
    runs = [step["run"] for step in JOBS[job]["steps"] if "run" in step]
    return [line.strip() for run in runs for line in run.splitlines()]


def test_workflows_call_targets_that_exist():
    called = {c.split()[1] for job in JOBS for c in commands(job) if c.startswith("make ")}
    targets = set(re.findall(r"^([\w-]+):", MAKEFILE, re.MULTILINE)) | {".venv/installed"}
    assert {"check", "docs", "test", "release-check"} <= called <= targets
    assert commands("everything") == [".ci/run"]
    assert "make check\nmake docs\nmake test-all\n" in (ROOT / ".ci/run").read_text()


def test_every_job_has_a_time_limit_and_may_only_read():
    assert all(job["timeout-minutes"] <= 90 for job in JOBS.values())
    assert WORKFLOW["permissions"] == {"contents": "read"}


def test_the_lowest_python_is_tried():
    (lowest,) = re.findall(r"3\.\d+", PYPROJECT["project"]["requires-python"])
    assert lowest in JOBS["tests"]["strategy"]["matrix"]["python"]


def test_the_lowest_versions_are_those_of_pyproject():
    project = PYPROJECT["project"]
    needed = [*project["dependencies"], *project["optional-dependencies"]["simulation"]]
    lowest = dict(
        re.fullmatch(r"([\w-]+)>=([\d.]+).*", text).groups() for text in needed if "[" not in text
    )
    (install,) = (c for c in commands("lowest") if "pip install" in c)
    tried = dict(re.findall(r"(\w+)(?:\[\w+\])?==([\d.]+)", install))
    assert tried.keys() == {"flwr", "numpy", "torch", "torchvision"}
    assert tried == {name: lowest[name] for name in tried}


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
