from pathlib import Path

import pytest

from fedcurv.simulations.results import CONCLUSIONS, page

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs" / "results" / "experiments"


def test_the_page_is_what_the_command_makes_of_the_outputs():
    assert (ROOT / "docs" / "results.md").read_text(encoding="utf-8") == page(FOLDER, ROOT / "docs")


def test_every_experiment_is_on_the_page(tmp_path):
    for name in ("b", "a"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "summary.md").write_text(f"the table of {name}")
    (tmp_path / CONCLUSIONS).write_text("what follows")
    text = page(tmp_path, tmp_path.parent)
    order = [text.index(part) for part in ("what follows", "the table of a", "the table of b")]
    assert order == sorted(order)
    assert f"({tmp_path.name}/a/accuracy.png)" in text


def test_without_experiments_there_is_no_page(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"expected a folder with summary\.md"):
        page(tmp_path, tmp_path)
