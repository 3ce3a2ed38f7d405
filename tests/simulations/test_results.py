from pathlib import Path

import pytest

from fedcurv.simulations.reports.results import CONCLUSIONS, INTRODUCTION, glance, page

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs" / "results" / "experiments"


def an_experiment(folder: Path, runs: list[tuple[str, str, str, str, str]]) -> Path:
    """Runs are cell, method, rounds to 90 %, final accuracy and megabytes a round."""
    folder.mkdir()
    (folder / "config.yaml").write_text("experiment: {target: 0.9}")
    lines = ["cell,method,rounds_to_0.9,final,megabytes_a_round", *map(",".join, runs)]
    (folder / "results.csv").write_text("\n".join(lines))
    (folder / "trials.csv").write_text("seconds\n60\n61.5")
    return folder


def test_the_page_is_what_the_command_makes_of_the_outputs():
    assert (ROOT / "docs" / "results.md").read_text(encoding="utf-8") == page(FOLDER, ROOT / "docs")


def test_every_experiment_is_on_the_page(tmp_path):
    for name in ("b", "a"):
        folder = an_experiment(tmp_path / name, [])
        (folder / "summary.md").write_text(f"the table of {name}")
    (tmp_path / INTRODUCTION).write_text("what was done")
    (tmp_path / CONCLUSIONS).write_text("what we think")
    text = page(tmp_path, tmp_path.parent)
    parts = ("what was done", "| experiment |", "what we think", "the table of a", "the table of b")
    order = [text.index(part) for part in parts]
    assert order == sorted(order)
    assert f"({tmp_path.name}/a/accuracy.png)" in text
    assert "2 minutes in all" in text


def test_without_experiments_there_is_no_page(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"expected a folder with summary\.md"):
        page(tmp_path, tmp_path)


def test_a_glance_sets_fedcurv_beside_what_it_was_put_around(tmp_path):
    runs = [
        ("one", "fedavg", "10", "0.91", "2"),
        ("one", "fedavg", "20", "0.93", "2"),
        ("one", "fedprox", "1", "0.99", "2"),
        ("one", "fedcurv-auto", "11", "0.95", "5"),
        ("one", "fedcurv-auto", "4", "0.95", "5"),
        ("two", "fedavg", "3", "0.9", "2"),
    ]
    _, *rows = glance([an_experiment(tmp_path / "shards", runs)])
    assert [row[:5] for row in rows] == [["shards", "one", "fedavg", "fedcurv-auto", "90 %"]]
    # 7.5 of 15 rounds; 37.5 of 30 megabytes
    assert rows[0][5:] == ["15.0 → 7.5", "0.50", "1 of 2", "1.25", "92.0 → 95.0"]


def test_a_glance_gives_no_ratio_where_a_seed_never_got_there(tmp_path):
    runs = [
        ("one", "fedadam", "10", "0.9", "2"),
        ("one", "fedadam", "", "0.8", "2"),
        ("one", "fedcurv-fedadam", "8", "0.9", "2"),
        ("one", "fedcurv-fedadam", "9", "0.9", "2"),
    ]
    _, row = glance([an_experiment(tmp_path / "shards", runs)])
    assert row[5:] == ["- → 8.5", "-", "2 of 2", "-", "85.0 → 90.0"]
