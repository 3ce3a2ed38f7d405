"""``python -m fedcurv.simulations.results``: one page of all experiments that were run.

Every folder below has what ``fedcurv-experiment`` wrote; ``conclusions.md`` beside them is written
by hand and stands in front.
"""

import argparse
import os
from pathlib import Path

CONCLUSIONS = "conclusions.md"

_TITLE = "# When FedCurv pays: results"


def page(folder: Path, beside: Path) -> str:
    """Return the page.

    Args:
        folder: with a folder for each experiment.
        beside: where the page will stand, for its links.

    Raises:
        FileNotFoundError: if there is no experiment, or no conclusions.
    """
    experiments = sorted(path.parent for path in folder.glob("*/summary.md"))
    if not experiments:
        raise FileNotFoundError(f"{folder}: expected a folder with summary.md for each experiment")
    parts = [_TITLE, (folder / CONCLUSIONS).read_text(encoding="utf-8").strip()]
    for experiment in experiments:
        link = Path(os.path.relpath(experiment, beside)).as_posix()
        parts += [
            f"## {experiment.name}",
            f"![Test accuracy over rounds]({link}/accuracy.png)",
            (experiment / "summary.md").read_text(encoding="utf-8").strip(),
            f"Every run is a line of [results.csv]({link}/results.csv), every trial of "
            f"[trials.csv]({link}/trials.csv); [config.yaml]({link}/config.yaml).",
        ]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m fedcurv.simulations.results",
        description="Write one page of all experiments that were run.",
    )
    parser.add_argument("folder", type=Path, help="with a folder for each experiment")
    parser.add_argument("page", type=Path, help="to write, such as docs/results.md")
    options = parser.parse_args()
    text = page(options.folder, options.page.parent)
    options.page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
