"""A sweep as a page: its curves with the seeds' bands, its table, and its jobs' pages."""

from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from fedcurv.simulations.reports.elements import Markup, element, page, table
from fedcurv.simulations.reports.live_page import PAGE_FILE, RENEW_S
from fedcurv.simulations.reports.panels import AXES, Panel, over
from fedcurv.simulations.reports.run_page import ENDED, RUNNING, legend, now, said, section
from fedcurv.simulations.reports.sweep_curves import CurveOver, best_curves, left_out
from fedcurv.simulations.reports.sweep_jobs import Job, rows_of

_COLUMNS = ("rounds", "best", "final", "failure")


def sweep_page(
    folder: Path, jobs: Sequence[Job], rows: Sequence[Sequence[str]], caption: str, *, ended: bool
) -> str:
    """Return a sweep's page.

    Args:
        folder: of the jobs' folders.
        jobs: at least one.
        rows: of sweep.md's table; the first is its header.
        caption: of the table.
        ended: whether no more jobs are to come.
    """
    curves, number = best_curves(jobs, folder)
    title = f"{len(jobs)} jobs of a sweep"
    return page(
        title,
        element("h1", title),
        element("p", said(ENDED if ended else RUNNING), f" · {now()}"),
        legend([curve["round"].label for curve in curves]),
        element("h2", "Result"),
        table(rows),
        element("p", element("small", caption)),
        section(
            "Test set: the seeds' mean, and from the lowest to the highest",
            sweep_panels(jobs, curves),
            element("p", element("small", left_out(curves, number))),
        ),
        element("h2", "Jobs"),
        table(_jobs(jobs)),
        renew_s=None if ended else RENEW_S,
    )


def sweep_panels(jobs: Sequence[Job], curves: Sequence[CurveOver]) -> list[Panel]:
    """Return the metric over rounds, megabytes and seconds."""
    return [
        over(cost, jobs[0].metric.axis, {n: curve[cost] for n, curve in enumerate(curves)})
        for cost in AXES
    ]


def _jobs(jobs: Sequence[Job]) -> list[list[str]]:
    """Return the lines of sweep.csv, each with a link to its job's page."""
    rows = rows_of(jobs)
    names = list(rows[0])
    settings = names[: names.index("strategy") + 1]
    shown = [*settings[1:], *(name for name in _COLUMNS if name in names)]
    links = [_link(str(row["job"])) for row in rows]
    cells = [[str(row.get(name, "")) for name in shown] for row in rows]
    return [["job", *shown], *([link, *own] for link, own in zip(links, cells, strict=True))]


def _link(job: str) -> Markup:
    return element("a", job, href=f"{quote(job)}/{PAGE_FILE}")
