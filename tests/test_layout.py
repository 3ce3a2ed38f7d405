"""The package as it is installed: links, mapping, imports, wheel."""

import ast
import graphlib
import os
import re
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = {"strategies", "clients", "simulations"}
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

# who may import what, beside the standard library
MAY_IMPORT = {
    "fedcurv": {"fedcurv", "torch", "numpy"},
    "strategies": {"fedcurv", "torch", "numpy", "flwr", "cryptography"},
    "clients": {"fedcurv", "torch", "numpy", "flwr", "cryptography"},
    "simulations": None,
}
# and which parts of this project
PARTS = {
    "fedcurv": set(),
    "strategies": {"strategies"},
    "clients": {"clients", "strategies.wire", "strategies.flower_private"},
    "simulations": {"simulations", "clients", "strategies"},
}


# which modules pickle, for each other, behind a key
SITE = {"clients/site/pool.py", "clients/site/host.py"}


def sources(folder: str) -> list[Path]:
    files = sorted((ROOT / folder).rglob("*.py"))
    if folder == "fedcurv":
        files = [f for f in files if f.relative_to(ROOT / folder).parts[0] not in FOLDERS]
    assert files
    return files


def imports_of(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            names.add(node.module)
    return names


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_dependencies_point_one_way(folder):
    for path in sources(folder):
        for name in imports_of(path):
            first, *rest = name.split(".")
            if MAY_IMPORT[folder] is not None and first not in sys.stdlib_module_names:
                assert first in MAY_IMPORT[folder], f"{path} imports {name}"
            if first == "fedcurv" and rest and rest[0] in FOLDERS:
                part = ".".join(rest)
                assert any((part + ".").startswith(p + ".") for p in PARTS[folder]), (
                    f"{path} imports {name}"
                )


def module_of(path: Path) -> str:
    relative = path.relative_to(ROOT).with_suffix("").parts
    relative = relative[:-1] if relative[-1] == "__init__" else relative
    return ".".join(relative if relative[0] == "fedcurv" else ("fedcurv", *relative))


def imported_modules(modules: dict[str, Path]) -> dict[str, set[str]]:
    """Return every module's imports of others, ``from folder import module`` included."""
    found: dict[str, set[str]] = {}
    for module, path in modules.items():
        names = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                inside = {f"{node.module}.{alias.name}" for alias in node.names}
                names |= (inside & modules.keys()) or {node.module}
        found[module] = (names & modules.keys()) - {module}
    return found


def rooms_of(imports: dict[str, set[str]]) -> dict[str, set[str]]:
    """Return the same for folders; a module beside folders is a room of its own."""
    folders = {module.rpartition(".")[0] for module in imports}

    def room(module: str) -> str:
        parent = module if module in folders else module.rpartition(".")[0]
        top = parent in ("fedcurv", *(f"fedcurv.{folder}" for folder in FOLDERS))
        return module if top else parent

    rooms: dict[str, set[str]] = {}
    for module, names in imports.items():
        rooms.setdefault(room(module), set()).update(room(name) for name in names)
    return {one: others - {one} for one, others in rooms.items()}


@pytest.mark.parametrize("of", [dict, rooms_of])
def test_no_circle_of_imports_not_even_of_folders(of):
    modules = {module_of(path): path for folder in MAY_IMPORT for path in sources(folder)}
    assert len(modules) > 100
    imports = of(imported_modules(modules))
    graphlib.TopologicalSorter(imports).prepare()  # raises CycleError, with the circle


def test_nothing_borrows_from_a_command():
    for path in sources("simulations"):
        if path.parent.name == "commands" or path.name == "__main__.py":
            continue
        commands = [n for n in imports_of(path) if n.startswith("fedcurv.simulations.commands")]
        assert not commands, path


def test_nothing_is_imported_under_the_name_of_a_bare_folder():
    for folder in (*MAY_IMPORT, "tests"):
        for path in sources(folder):
            assert not {n.split(".")[0] for n in imports_of(path)} & FOLDERS, path


def test_the_links_are_relative_and_lead_to_the_folders():
    for folder in FOLDERS:
        link = ROOT / "fedcurv" / folder
        assert link.is_symlink()
        assert os.readlink(link) == f"../{folder}"


def test_every_package_is_listed():
    listed = set(PYPROJECT["tool"]["setuptools"]["packages"])
    found = set()
    for folder in MAY_IMPORT:
        for path in sources(folder):
            if path.name == "__init__.py":
                relative = path.parent.relative_to(ROOT).parts
                found.add(".".join(relative if folder == "fedcurv" else ("fedcurv", *relative)))
    assert listed == found
    mapping = PYPROJECT["tool"]["setuptools"]["package-dir"]
    assert mapping == {f"fedcurv.{folder}": folder for folder in FOLDERS}


def test_the_mathematics_needs_torch_alone():
    code = (
        "import sys, fedcurv; "
        "print(sorted({'flwr', 'hydra', 'ray', 'torchvision', 'sklearn'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.strip() == "[]", done.stderr


def test_modules_stay_small():
    for folder in MAY_IMPORT:
        for path in sources(folder):
            assert len(path.read_text().splitlines()) <= 320, path


def test_no_address_of_a_package_index_is_in_the_tree():
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    pattern = re.compile("(index-url|pypi" + r"\.org|files\.pythonhosted|find-links)")
    for name in listed.stdout.splitlines():
        path = ROOT / name
        if path.is_file() and path.suffix in {".py", ".toml", ".md", ".yaml", ".cff", ""}:
            text = path.read_text(encoding="utf-8")
            assert name == "tests/test_layout.py" or not pattern.search(text), name


@pytest.mark.slow
def test_a_wheel_holds_all_four_parts_and_the_configuration(tmp_path):
    """Built from a copy without links, as some checkouts and all archives have it."""
    files = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    ).stdout.splitlines()
    source = tmp_path / "source"
    for name in files:
        origin, copy = ROOT / name, source / name
        if origin.is_symlink() or not origin.is_file():
            continue
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(origin.read_bytes())
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--outdir", tmp_path / "dist", source],
        check=True,
        capture_output=True,
        timeout=500,
    )
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    # a fresh environment that borrows the heavy dependencies, but not this project
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run(
        [python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel],
        check=True,
        capture_output=True,
        timeout=300,
    )
    borrowed = next(p for p in sys.path if p.endswith("site-packages"))
    code = (
        "import sys; sys.path.append(sys.argv[1])\n"
        "import fedcurv, fedcurv.strategies, fedcurv.clients\n"
        "from fedcurv.simulations.commands import simulate as run\n"
        "from pathlib import Path\n"
        "print(fedcurv.__file__)\n"
        "print(run.__file__)\n"
        "print(len(list((Path(run.__file__).parents[1] / 'conf').rglob('*.yaml'))))\n"
        "print((Path(fedcurv.__file__).parent / 'py.typed').exists())\n"
    )
    done = subprocess.run(
        # isolated, or a checkout on PYTHONPATH would be taken for what is installed
        [python, "-I", "-c", code, borrowed],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    package, command, number, typed = done.stdout.split()
    assert str(tmp_path / "venv") in package
    assert str(tmp_path / "venv") in command
    assert int(number) == len(list((ROOT / "simulations" / "conf").rglob("*.yaml")))
    assert typed == "True"


def test_no_pickle_is_loaded_from_outside():
    """Only a site's own processes pickle, for each other, behind a key."""
    for folder in MAY_IMPORT:
        for path in sources(folder):
            text = path.read_text()
            if "pickle" in imports_of(path):
                assert path.relative_to(ROOT).as_posix() in SITE, path
            for call in re.findall(r"np\.load\((.*)", text):
                assert "allow_pickle=False" in call, path
            for call in re.findall(r"(?<!`)torch\.load\((.*)", text):
                assert "weights_only=True" in call, path
