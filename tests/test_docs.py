"""Every block of Python in docs/ runs, in order, and prints what stands below it."""

import contextlib
import io
import re
from pathlib import Path

import pytest

from tests.simulations.test_run import configuration
from tests.test_readme import first_of_each_sweep

PAGES = sorted((Path(__file__).parents[1] / "docs").glob("*.md"))


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_code_of_a_page_runs_and_prints_what_it_says(page):
    printed, namespace = io.StringIO(), {"__name__": page.stem}
    with contextlib.redirect_stdout(printed):
        for code in blocks(page, "python"):
            exec(compile(code, page.name, "exec"), namespace)
    assert printed.getvalue() == "".join(blocks(page, "text"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_commands_of_a_page_are_valid_configurations(page):
    for line in "".join(blocks(page, "console")).splitlines():
        program, *_ = line.split()
        config = {"fedcurv-simulate": "config", "fedcurv-label-noise": "label_noise"}[program]
        assert configuration(*first_of_each_sweep(line), name=config).strategy, line
