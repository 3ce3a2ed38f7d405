"""A run as a page: its curves, its clients, what travelled, its configuration, and its table."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from fedcurv.simulations.parts.metrics import Metric, targets_of
from fedcurv.simulations.parts.tasks import metric_of
from fedcurv.simulations.reports.comparison import (
    caption_of,
    cells,
    config_text,
    ended_early,
    summarise,
)
from fedcurv.simulations.reports.elements import Markup, element, joined, page, table
from fedcurv.simulations.reports.history import History
from fedcurv.simulations.reports.over_rounds import megabytes_by, scores, seconds_by
from fedcurv.simulations.reports.panels import Panel, figure_of, over, swatch
from fedcurv.simulations.reports.pictures import Curve, label_of, name_of_data
from fedcurv.simulations.reports.round_files import client_rows, round_rows, traffic_rows

# what a score is drawn over beside rounds
_COSTS: Mapping[str, Callable[[History, Iterable[float]], list[float]]] = {
    "megabytes": megabytes_by,
    "seconds": seconds_by,
}
RUNNING, ENDED = "running", "ended"
# of each strategy; all are in the CSV files
_MOST_ROUNDS, _MOST_CLIENTS = 20, 100


def run_page(
    histories: Sequence[History],
    config: Mapping[str, Any],
    about: Sequence[str],
    state: str,
    *,
    renew_s: int | None = None,
) -> str:
    """Return a run's page.

    Args:
        histories: so far, each with at least one round.
        config: resolved.
        about: lines on how the run came about.
        state: ``RUNNING``, ``ENDED``, or what else has ended it.
        renew_s: seconds after which a browser loads the page again; None where the run has ended.
    """
    metric, title = metric_of(config), name_of_data(config)
    summaries = [summarise(history, targets_of(metric, config), metric) for history in histories]
    told = [caption_of(metric), *ended_early(summaries, config["num_rounds"])]
    last = max(record.server_round for record in histories[-1].rounds)
    where = f"{histories[-1].strategy}, round {last} of {config['num_rounds']}"
    return page(
        title,
        element("h1", title),
        element("p", said(state), f" · {where} · {now()}"),
        legend([label_of(h.strategy, _options(config, h)) for h in histories]),
        element("h2", "Result"),
        table(cells(summaries)),
        *(element("p", element("small", line)) for line in told),
        *_sections(histories, metric, config),
        element("h2", "Configuration"),
        *(element("p", element("small", line.strip())) for line in about),
        details("config.yaml", element("pre", config_text(config))),
        renew_s=renew_s,
    )


def said(state: str) -> Markup:
    """Return what goes on, or how it ended, in its colour."""
    kind = state if state in (RUNNING, ENDED) else "stopped"
    return element("span", state, class_=kind)


def legend(labels: Sequence[str]) -> Markup:
    """Return what curves are called, which stays in sight."""
    named = (element("span", swatch(n), label) for n, label in enumerate(labels))
    return element("div", *named, class_="legend")


def section(title: str, panels: Iterable[Panel], *more: Markup) -> Markup:
    """Return panels below a heading; nothing where there is nothing to show."""
    drawn = [figure_of(panel) for panel in panels if panel.curves]
    if not drawn and not more:
        return Markup()
    return joined([element("h2", title), element("div", *drawn, class_="panels"), *more])


def details(title: str, *inside: Markup) -> Markup:
    """Return what shows once one asks for it."""
    return element("details", element("summary", title), *inside)


def _sections(
    histories: Sequence[History], metric: Metric, config: Mapping[str, Any]
) -> list[Markup]:
    trained = [history for history in histories if history.rounds[-1].clients]
    return [
        section(
            "Test set",
            metric_panels(histories, metric, config),
            *(details(f"last rounds of {h.strategy}", _last_rounds(h, metric)) for h in histories),
        ),
        section(
            "Clients: their mean, and from the lowest to the highest",
            client_panels(histories, _OF_CLIENTS),
            *(details(f"last round of {h.strategy}", _last_clients(h)) for h in trained),
        ),
        section("Curvature", strength_panels(histories)),
        section(
            "Traffic",
            traffic_panels(histories),
            *(details(f"records of {h.strategy}", _records(h)) for h in trained),
        ),
    ]


def metric_panels(
    histories: Sequence[History], metric: Metric, config: Mapping[str, Any]
) -> list[Panel]:
    """Return the metric over rounds, megabytes and seconds, and the loss over rounds."""
    targets = [metric.scale * target for target in targets_of(metric, config)]
    shown = {
        number: Curve("", list(values), [metric.scale * value for value in values.values()])
        for number, history in enumerate(histories)
        if (values := scores(history, metric))
    }
    panels = [over("round", metric.axis, shown, targets)]
    for cost, cost_of in _COSTS.items():
        by_cost = {
            number: Curve("", cost_of(histories[number], curve.x), curve.y)
            for number, curve in shown.items()
        }
        panels.append(over(cost, metric.axis, by_cost, targets))
    return [*panels, _over_rounds("test loss", histories, "loss")]


_OF_CLIENTS = {
    "training loss": "train-loss",
    "seconds of training": "train-seconds",
    "seconds of Fisher information": "fisher-seconds",
}


def client_panels(histories: Sequence[History], keys: Mapping[str, str]) -> list[Panel]:
    """Return what clients report, by title: the strategy's mean, and the clients' range."""
    return [over("round", title, _curves(histories, key)) for title, key in keys.items()]


def _curves(histories: Sequence[History], key: str) -> dict[int, Curve]:
    found = {}
    for number, history in enumerate(histories):
        points = []
        for record in history.rounds:
            mean = record.train_metrics.get(key)
            own = [c.metrics[key] for c in record.clients if c.status == "ok" and key in c.metrics]
            if isinstance(mean, int | float) and own:
                points.append((record.server_round, float(mean), min(own), max(own)))
        if points and any(high for *_, high in points):
            found[number] = Curve("", *(list(values) for values in zip(*points, strict=True)))
    return found


def strength_panels(histories: Sequence[History]) -> list[Panel]:
    """Return λ of the others' pull, and the penalty that clients paid in the end."""
    return [
        _over_rounds("λ", histories, "strength"),
        *client_panels(histories, {"penalty": "penalty"}),
    ]


def traffic_panels(histories: Sequence[History]) -> list[Panel]:
    """Return what all clients receive and send, round by round."""
    return [
        _over_rounds("MB received by all clients", histories, "bytes_down", 1e-6),
        _over_rounds("MB sent by all clients", histories, "bytes_up", 1e-6),
    ]


def _over_rounds(
    title: str, histories: Sequence[History], column: str, scale: float = 1.0
) -> Panel:
    """Return a column of metrics.csv."""
    curves = {}
    for number, history in enumerate(histories):
        rows = [row for row in round_rows(history, "") if row[column] not in ("", None)]
        if column.startswith("bytes_"):
            rows = [row for row in rows if row["round"] != 0]
        if rows:
            values = [scale * float(str(row[column])) for row in rows]
            curves[number] = Curve("", [int(str(row["round"])) for row in rows], values)
    return over("round", title, curves)


def _last_rounds(history: History, metric: Metric) -> Markup:
    rows = round_rows(history, metric.name)[-_MOST_ROUNDS:]
    return joined([_rows(rows, "strategy"), _note("metrics.csv", "rounds")])


def _last_clients(history: History) -> Markup:
    last = History(history.strategy, history.rounds[-1:])
    rows = client_rows(last, "")[:_MOST_CLIENTS]
    return joined([_rows(rows, "strategy", "round"), _note("clients.csv", "rounds and clients")])


def _records(history: History) -> Markup:
    totals: dict[str, list[int]] = {}
    for row in traffic_rows(history, ""):
        total = totals.setdefault(str(row["record"]), [0, 0])
        total[0] += int(str(row["bytes_down"]))
        total[1] += int(str(row["bytes_up"]))
    rows = [[name, *(f"{value / 1e6:.3f}" for value in total)] for name, total in totals.items()]
    return table([["record", "MB received in all rounds", "MB sent"], *rows])


def _note(file: str, what: str) -> Markup:
    return element("p", element("small", f"All {what} are in {file}."))


def _rows(rows: Sequence[Mapping[str, object]], *without: str) -> Markup:
    names = [name for name in rows[0] if name not in without]
    return table([names, *([_text(row[name]) for name in names] for row in rows)])


def _text(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _options(config: Mapping[str, Any], history: History) -> Any:
    return (config.get("strategy") or {}).get(history.strategy)


def now() -> str:
    """Return the time of writing."""
    return f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC"
