"""The README's program runs as it is, prints what stands below it, and is the first page's."""

import contextlib
import io
import re
import shlex
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BEGIN = (ROOT / "docs" / "begin.md").read_text(encoding="utf-8")


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def percent(text: str) -> int:
    (number,) = re.findall(r"(\d+)\s*%", text)
    return int(number)


def lines_of(code: str) -> list[str]:
    return [line for line in code.splitlines() if line.strip()]


def run_program(change=lambda code: code) -> str:
    printed = io.StringIO()
    (code,) = blocks("python")
    with contextlib.redirect_stdout(printed):
        exec(compile(change(code), "README.md", "exec"), {"__name__": "readme"})
    return printed.getvalue()


def test_the_readme_and_its_program_stay_short():
    assert len(README.splitlines()) <= 150
    (code,) = blocks("python")
    assert len(code.splitlines()) <= 40


def test_the_readme_the_first_page_and_the_example_have_one_program():
    (code,) = blocks("python")
    example = (ROOT / "examples" / "begin.py").read_text(encoding="utf-8")
    assert [code] == blocks("python", BEGIN)
    assert lines_of(code) == lines_of(example)
    assert blocks("text") == blocks("text", BEGIN)


def test_the_program_runs_and_prints_what_it_says():
    (expected,) = blocks("text")
    # another processor or torch may round otherwise
    assert abs(percent(run_program()) - percent(expected)) <= 3


@pytest.mark.parametrize("text", [README, BEGIN], ids=["README", "begin"])
def test_the_same_app_with_fedavg_prints_what_it_says(text):
    def with_fedavg(code: str) -> str:
        assert "FedCurv(strength=30, fraction" in code
        code = code.replace("FedCurv(strength=30, fraction", "FedAvg(fraction")
        return code.replace(
            "from fedcurv.strategies import FedCurv",
            "from flwr.serverapp.strategy import FedAvg",
        )

    (sentence,) = re.findall(r"the same app prints (\d+ ?%)", text)
    assert abs(percent(run_program(with_fedavg)) - percent(sentence)) <= 3


def test_the_strength_that_is_found_reaches_what_it_is_said_to_reach():
    guess = re.findall(r"`(AutoStrength\(.*?\))`", BEGIN)[0]

    def with_guess(code: str) -> str:
        assert "FedCurv(strength=30, fraction" in code
        code = code.replace("FedCurv(strength=30, fraction", f"FedCurv(strength={guess}, fraction")
        return code.replace("strategies import FedCurv", "strategies import AutoStrength, FedCurv")

    (sentence,) = re.findall(r"statistics, and reaches (\d+ %) here", BEGIN)
    assert abs(percent(run_program(with_guess)) - percent(sentence)) <= 3


def commands(text: str = README) -> list[str]:
    lines = [line for block in blocks("console", text) for line in block.splitlines()]
    return [line.partition(" #")[0].strip() for line in lines]


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    targets = [c.split()[1] for c in commands() if c.startswith("make ")]
    assert {"simulate", "test"} <= set(targets)
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)


def first_of_each_sweep(line: str) -> list[str]:
    """Return a command line's overrides, the first value in the place of several.

    Without those of a launcher, which need not be installed.
    """
    words, others = shlex.split(line)[1:], ("--", "hydra/launcher=", "hydra.launcher.")
    overrides = [word for word in words if not word.startswith(others)]
    parsed = OverridesParser.create().parse_overrides(overrides)
    return [
        f"{o.get_key_element()}={next(o.sweep_string_iterator())}"
        if o.is_sweep_override()
        else text
        for o, text in zip(parsed, overrides, strict=True)
    ]


def test_links_and_pictures_exist():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("https://") or (ROOT / target).exists(), target
