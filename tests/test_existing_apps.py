"""The page on apps that exist: its changes, made to an app of Flower's quickstart's shape."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
APP = ROOT / "tests" / "apps" / "quickstart"
PAGE = (ROOT / "docs" / "existing_apps.md").read_text(encoding="utf-8")

# what `flwr run` does with the app's own files, without Flower's engine
RUN = """
import tomllib
from fedcurv.simulations.runners.local import run_local
from quickstart.client_app import app as client_app
from quickstart.server_app import app as server_app

config = tomllib.load(open("pyproject.toml", "rb"))["tool"]["flwr"]["app"]["config"]
run_local(server_app, client_app, 5, run_config=config)
"""

MODS = """
from flwr.clientapp.mod import arrays_size_mod, message_size_mod

def own_mod(message, context, call_next):
    assert message.content["arrays"]
    reply = call_next(message, context)
    print("the mod saw", sorted(reply.content))
    return reply

app = ClientApp(mods=[arrays_size_mod, message_size_mod, own_mod])
"""


def diffs() -> dict[str, str]:
    blocks = re.findall(r"```diff\n--- a/(\S+)\n\+\+\+ b/\S+\n(.*?)```", PAGE, re.DOTALL)
    return dict(blocks)


def apply(diff: str, file: Path) -> None:
    text = file.read_text()
    for hunk in re.split(r"^@@.*@@\n", diff, flags=re.MULTILINE)[1:]:
        lines = hunk.splitlines(keepends=True)
        before = "".join(line[1:] for line in lines if line[0] in " -")
        after = "".join(line[1:] for line in lines if line[0] in " +")
        assert text.count(before) == 1, hunk
        text = text.replace(before, after)
    file.write_text(text)


def printed(folder: Path, *changed: str, mods: str = "app = ClientApp()\n") -> str:
    """Return what the app prints, with the page's changes to these of its files."""
    app = folder / f"app-{len(list(folder.iterdir()))}"
    shutil.copytree(APP, app)
    for name in changed:
        apply(diffs()[name], app / name)
    client = app / CLIENT
    client.write_text(client.read_text().replace("app = ClientApp()\n", mods))
    done = subprocess.run(
        [sys.executable, "-c", RUN],
        cwd=app,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def final_accuracy(text: str) -> int:
    (accuracy,) = re.findall(r"accuracy after 10 rounds: (\d+)%", text)
    return int(accuracy)


SERVER, CLIENT = "quickstart/server_app.py", "quickstart/client_app.py"


def test_the_changes_are_two_lines_on_the_server_and_three_on_the_client():
    def added(diff: str) -> int:
        return len(re.findall(r"^\+", diff, re.MULTILINE))

    assert {name: added(diff) for name, diff in diffs().items()} == {SERVER: 2, CLIENT: 3}


@pytest.mark.slow
def test_the_app_as_it_is_and_changed_ends_as_the_page_says(tmp_path):
    plain, changed = re.findall(r"(\d+) % as it is and of (\d+) % with these lines", PAGE)[0]
    as_it_is = printed(tmp_path)
    # another processor or torch may round otherwise
    assert abs(final_accuracy(as_it_is) - int(plain)) <= 4
    assert abs(final_accuracy(printed(tmp_path, SERVER, CLIENT)) - int(changed)) <= 4
    # a server without FedCurv gets plain clients, and clients without it are averaged plainly
    assert printed(tmp_path, CLIENT) == printed(tmp_path, SERVER) == as_it_is


@pytest.mark.slow
def test_the_apps_own_mods_stay(tmp_path):
    text = printed(tmp_path, SERVER, CLIENT, mods=MODS)
    assert "the mod saw ['arrays', 'fedcurv', 'fedcurv.precision', 'metrics']" in text
    without_mods = printed(tmp_path, SERVER, CLIENT)
    assert final_accuracy(text) == final_accuracy(without_mods)
