"""The benchmarks run and write their table; what they measure is not judged here."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_a_benchmark_runs_and_writes_its_table(tmp_path):
    file = ROOT / "tests" / "benchmarks" / "test_penalty.py"
    done = subprocess.run(
        [
            *(
                sys.executable,
                "-m",
                "pytest",
                f"--rootdir={ROOT}",
                f"--config-file={ROOT}/pyproject.toml",
            ),
            *("-m", "benchmark_suite", "-k", "gradient-10", file),
        ],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    table = (tmp_path / "outputs" / "benchmarks" / "costs.md").read_text()
    assert "| CNN, 582 thousand | 10 | cpu | gradient | " in table
    assert "Machine: " in table
