"""Every block of Python in docs/ runs, in order, and prints what stands below it."""

import contextlib
import io
import pkgutil
import re
import shlex
import subprocess
import sys
import types
from pathlib import Path

import pytest

from fedcurv.simulations.commands import lasgd as lasgd_command
from fedcurv.simulations.commands.trial import argument_parser
from fedcurv.simulations.deployment.superlink import free_port
from tests.simulations.test_run import configuration
from tests.test_readme import first_of_each_sweep

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
# what reports have written stands in docs/results
PAGES = [page for page in sorted(DOCS.rglob("*.md")) if DOCS / "results" not in page.parents]
EXAMPLE = re.compile(r"\A# (examples/\S+)\n\Z")


def name_of(page: Path) -> str:
    return page.relative_to(DOCS).as_posix()


def blocks(page: Path, language: str) -> list[str]:
    """Return a page's blocks; where one names a file of examples/, that file."""
    found = re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    return [EXAMPLE.sub(lambda named: (ROOT / named[1]).read_text(), code) for code in found]


def alone_under_torchrun() -> dict[str, str]:
    """Return the environment of the only worker."""
    return {
        "RANK": "0",
        "WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda page: page.name)
def test_fences_stand_alone(page):
    fences = re.findall(r"^.*```.*$", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert all(re.fullmatch(r" *```\w*", fence) for fence in fences)
    assert [fence.strip() == "```" for fence in fences] == [False, True] * (len(fences) // 2)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_the_code_of_a_page_runs_and_prints_what_it_says(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, value in alone_under_torchrun().items():
        monkeypatch.setenv(name, value)
    for library in re.findall(r"^from (opacus|transformers)\b", page.read_text(), re.MULTILINE):
        pytest.importorskip(library, reason=f"{library} is in the extra dev-apps")
    name = f"page_{page.stem}"
    printed, namespace = io.StringIO(), {"__name__": name}
    # dataclasses look their module up
    monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    with contextlib.redirect_stdout(printed):
        for code in blocks(page, "python"):
            exec(compile(code, page.name, "exec"), namespace)
    assert_prints(printed.getvalue(), "".join(blocks(page, "text")))
    for picture in re.findall(r"\]\(\.\./images/gallery/(.+)\)", page.read_text(encoding="utf-8")):
        assert (tmp_path / picture).stat().st_size > 5_000


def assert_prints(got: str, expected: str) -> None:
    """Compare word by word; a share may differ by 3 %, as another processor rounds otherwise."""
    share = re.compile(r"(\d+)%")
    assert share.sub("%", got) == share.sub("%", expected)
    for one, other in zip(share.findall(got), share.findall(expected), strict=True):
        assert abs(int(one) - int(other)) <= 3


CONFIGURATIONS = {
    "fedcurv-simulate": "config",
    "fedcurv-experiment": "experiments",
}


def without_options(command: str) -> str:
    """Return a trial's overrides as a simulation's."""
    parser = argument_parser()
    overrides = parser.parse_intermixed_args(command.split()[1:]).overrides
    return " ".join(["fedcurv-simulate", *overrides])


def unwrapped(command: str) -> str:
    return " ".join(command.split())


def without_comment(line: str) -> str:
    return line.partition(" #")[0].strip()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_the_commands_of_a_page_are_valid_configurations(page):
    inline = re.findall(r"`(fedcurv-[^`\s]+\s[^`]+)`", page.read_text(encoding="utf-8"))
    printed = map(without_comment, "".join(blocks(page, "console")).splitlines())
    for line in [*printed, *map(unwrapped, inline)]:
        program, *_ = line.split()
        if program == "make":
            assert f"\n{line.split()[1]}:" in (ROOT / "Makefile").read_text(), line
            continue
        if (
            program == "torchrun" or "--config-dir" in line
        ):  # of a reader's own folder: run elsewhere
            continue
        if program == "fedcurv-lasgd":
            options = lasgd_command.argument_parser().parse_args(shlex.split(line)[1:])
            kind = options.steps.partition(":")[0]
            assert kind.endswith(".json") or lasgd_command.lengths_of(options.steps, 4)
            continue
        if program == "fedcurv-trial":
            line, program = without_options(line), "fedcurv-simulate"
        line = line.replace("--config-dir . experiment=wine", "")
        config = CONFIGURATIONS[program]
        assert configuration(*first_of_each_sweep(line), name=config).strategy, line


def test_every_example_is_in_the_gallery():
    pages = {page.stem for page in DOCS.glob("gallery/*.md")}
    examples = {path.stem for path in ROOT.glob("examples/*.py")}
    assert pages == examples - {"begin"} | {"index"}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_what_a_page_links_to_exists(page):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
        assert target.startswith("https://") or (page.parent / target).exists(), target


def test_the_page_on_the_layout_names_every_folder():
    page = (ROOT / "docs" / "layout.md").read_text(encoding="utf-8")
    for folder in ("fedcurv", "strategies", "clients", "simulations", "examples", "tests"):
        assert f"\n| `{folder}/` |" in page
    for name in re.findall(r"`(\w+)/`", page):
        assert any(ROOT.glob(f"{name}/")) or any(ROOT.glob(f"[!.]*/{name}/")), name


def formula_rows() -> list[str]:
    page = (ROOT / "docs" / "formulas.md").read_text(encoding="utf-8")
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| ")]
    return [name for row in rows for name in re.findall(r"`([\w.]+)(?:\(.*?\))?`", row[-2])]


@pytest.mark.parametrize("name", sorted(set(formula_rows())))
def test_the_function_of_a_formula_exists(name):
    homes = ("fedcurv", "fedcurv.clients", "fedcurv.CurvaturePenalty")
    assert any(resolves(f"{home}.{name}") for home in homes)


def resolves(name: str) -> bool:
    try:
        pkgutil.resolve_name(name)
    except (ImportError, AttributeError):
        return False
    return True


@pytest.mark.slow
def test_the_lasgd_page_runs_under_torchrun(tmp_path):
    page = ROOT / "docs" / "lasgd.md"
    (tmp_path / "train.py").write_text(blocks(page, "python")[0])
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", "train.py"]
    result = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    assert result.returncode == 0, result.stderr
    accuracy, steps = re.findall(r"(\d+)% after (\d+) steps", result.stdout)[0]
    assert int(accuracy) >= 97
    assert int(steps) == 570
