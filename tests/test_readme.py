"""Every block of Python in the README runs, in order, and prints what stands below it."""

import contextlib
import io
import re
import shlex
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from tests.simulations.test_run import configuration

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def percent(text: str) -> int:
    (number,) = re.findall(r"(\d+)\s*%", text)
    return int(number)


def run_blocks(change=lambda code: code) -> str:
    printed, namespace = io.StringIO(), {"__name__": "readme"}
    with contextlib.redirect_stdout(printed):
        for code in blocks("python"):
            exec(compile(change(code), "README.md", "exec"), namespace)
    return printed.getvalue()


def test_the_code_runs_and_prints_what_it_says():
    (expected,) = blocks("text")
    # another processor or torch may round otherwise
    assert abs(percent(run_blocks()) - percent(expected)) <= 3


def test_the_same_app_with_fedavg_prints_what_it_says():
    def with_fedavg(code: str) -> str:
        code = code.replace("FedCurv(strength=30, fraction", "FedAvg(fraction")
        return code.replace(
            "from fedcurv.strategies import FedCurv",
            "from flwr.serverapp.strategy import FedAvg",
        )

    (sentence,) = re.findall(r"the same app prints (\d+ ?%)", README)
    assert abs(percent(run_blocks(with_fedavg)) - percent(sentence)) <= 3


def test_the_strength_that_is_found_reaches_what_it_is_said_to_reach():
    guess = re.findall(r"`(AutoStrength\(.*?\))`", README)[0]

    def with_guess(code: str) -> str:
        code = code.replace("FedCurv(strength=30, fraction", f"FedCurv(strength={guess}, fraction")
        return code.replace("strategies import FedCurv", "strategies import AutoStrength, FedCurv")

    (sentence,) = re.findall(r"statistics, and reaches (\d+ %) here", README)
    assert abs(percent(run_blocks(with_guess)) - percent(sentence)) <= 3


def commands() -> list[str]:
    lines = [line for block in blocks("console") for line in block.splitlines()]
    return [line.partition("#")[0].strip() for line in lines]


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


@pytest.mark.parametrize("line", [c for c in commands() if c.startswith("fedcurv-simulate")])
def test_every_printed_command_is_a_valid_configuration(line):
    assert configuration(*first_of_each_sweep(line)).strategy


def test_links_and_pictures_exist():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("https://") or (ROOT / target).exists(), target


def test_files_and_names_in_the_tables_exist():
    import fedcurv
    import fedcurv.clients.terms as terms
    import fedcurv.strategies as strategies

    assert strategies.FedCurv and terms.attach_proximal_term and fedcurv.Curvature.__sub__
    for folder in (
        "fedcurv",
        "strategies",
        "clients",
        "simulations",
        "examples",
        "tests",
        "tests/oracles",
    ):
        assert f"`{folder}/`" in README
        assert (ROOT / folder).is_dir()
