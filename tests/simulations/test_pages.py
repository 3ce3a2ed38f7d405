"""report.html of a run and of a sweep: its numbers, its names, and how it is renewed."""

import re
from dataclasses import dataclass, field
from html.parser import HTMLParser
from itertools import accumulate

import pytest

from fedcurv.simulations.console import telling
from fedcurv.simulations.console.interruption import Interrupted
from fedcurv.simulations.parts.metrics import ACCURACY
from fedcurv.simulations.reports import comparison, live_page
from fedcurv.simulations.reports.history import History
from fedcurv.simulations.reports.live_page import RENEW_S, LivePage
from fedcurv.simulations.reports.panels import Panel, figure_of
from fedcurv.simulations.reports.pictures import Curve
from fedcurv.simulations.reports.run_page import (
    client_panels,
    metric_panels,
    run_page,
    strength_panels,
    traffic_panels,
)
from fedcurv.simulations.reports.sweep import write_sweep, write_sweep_page
from fedcurv.simulations.reports.sweep_curves import best_curves
from fedcurv.simulations.reports.sweep_jobs import read_jobs
from fedcurv.strategies.loop.rounds import ClientRecord, RoundRecord
from tests.simulations.test_run import FEW, configuration, resolve, rows_of, run
from tests.simulations.test_sweep import write_job

CONFIG = resolve(configuration("num_clients=6", "num_rounds=4"))


@pytest.fixture(autouse=True)
def told(monkeypatch, caplog):
    """Return the lines that have been told, of which none was before."""
    monkeypatch.setattr(telling, "_told", set())
    return lambda: [r.getMessage() for r in caplog.records if r.name == telling.__name__]


@dataclass
class Page(HTMLParser):
    """What a browser finds in a page."""

    text: str = ""
    tags: list[str] = field(default_factory=list)
    attributes: list[tuple[str, str]] = field(default_factory=list)
    tables: list[list[list[str]]] = field(default_factory=list)
    in_cell: bool = False

    def __post_init__(self):
        super().__init__()

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self.in_cell = True

    def handle_endtag(self, tag):
        self.in_cell = self.in_cell and tag not in ("td", "th")

    def handle_data(self, data):
        self.text += data
        if self.in_cell:
            self.tables[-1][-1][-1] += data


def read(text) -> Page:
    page = Page()
    page.feed(text)
    page.close()
    return page


@pytest.fixture(scope="module")
def small_run(tmp_path_factory):
    """A run's folder and histories, and its page each time that it was written."""
    folder, histories, texts = tmp_path_factory.mktemp("page") / "out", [], []
    make = live_page.run_page

    def noted(given, *others, **more):
        histories[:] = given
        texts.append(make(given, *others, **more))
        return texts[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comparison, "save", lambda *_: None)
        patch.setattr(live_page, "run_page", noted)
        patch.setattr(live_page, "_LARGEST_SHARE", 1e9)  # every round
        run(folder, FEW, "num_rounds=4", "strategy=[fedavg,fedcurv]")
    return folder, histories, texts


def numbers(folder, strategy, column):
    """Return a column of metrics.csv, by round; what is empty is left out."""
    rows = [r for r in rows_of(folder / "metrics.csv") if r["strategy"] == strategy]
    return {int(r["round"]): float(r[column]) for r in rows if r[column]}


def test_the_curves_are_those_of_the_tables(small_run):
    folder, histories, _ = small_run
    over_rounds, over_bytes, over_seconds, loss = metric_panels(histories, ACCURACY, CONFIG)
    received, sent = traffic_panels(histories)
    for number, name in enumerate(("fedavg", "fedcurv")):
        accuracy = [100 * value for value in numbers(folder, name, "accuracy").values()]
        down, up = (list(numbers(folder, name, f"bytes_{d}").values()) for d in ("down", "up"))
        costs = [
            (over_rounds, range(5)),
            (over_bytes, accumulate((a + b) / 1e6 for a, b in zip(down, up, strict=True))),
            (over_seconds, accumulate(numbers(folder, name, "seconds").values())),
        ]
        for panel, cost in costs:
            assert panel.curves[number].y == pytest.approx(accuracy)
            # metrics.csv has four digits of a second, for each of five rounds
            assert panel.curves[number].x == pytest.approx(list(cost), abs=5e-4)
        assert loss.curves[number].y == list(numbers(folder, name, "loss").values())
        assert received.curves[number].y == pytest.approx([value / 1e6 for value in down[1:]])
        assert sent.curves[number].y == pytest.approx([value / 1e6 for value in up[1:]])


def test_the_clients_curves_are_those_of_the_tables(small_run):
    folder, histories, _ = small_run
    of_clients = {"training loss": "train-loss", "time": "train-seconds"}
    losses, seconds = client_panels(histories, of_clients)
    strength, penalty = strength_panels(histories)
    columns = [(losses, "train_loss"), (seconds, "train_seconds"), (penalty, "penalty")]
    for panel, column in columns:
        curve = panel.curves[1]
        assert list(curve.x) == [1, 2, 3, 4]
        for place, number in enumerate(curve.x):
            rows = [r for r in rows_of(folder / "clients.csv") if r["strategy"] == "fedcurv"]
            own = [float(r[column]) for r in rows if int(r["round"]) == number]
            weights = [float(r["num_examples"]) for r in rows if int(r["round"]) == number]
            weighted = sum(w * v for w, v in zip(weights, own, strict=True)) / sum(weights)
            assert (curve.low[place], curve.high[place]) == pytest.approx((min(own), max(own)))
            assert curve.y[place] == pytest.approx(weighted)
    # the first round has no sums of others that could pull
    assert numbers(folder, "fedcurv", "strength") == {2: 30.0, 3: 30.0, 4: 30.0}
    assert numbers(folder, "fedavg", "strength") == {}
    assert set(numbers(folder, "fedavg", "penalty").values()) == {0.0}
    assert strength.curves.keys() == penalty.curves.keys() == {1}
    assert (strength.curves[1].x, strength.curves[1].y) == ([2, 3, 4], [30.0] * 3)


def test_the_page_has_the_final_table_and_the_last_rounds_and_clients(small_run):
    folder, _, texts = small_run
    page = read(texts[-1])
    assert (folder / "report.html").read_text() == texts[-1]
    result, *others = page.tables
    lines = [line for line in (folder / "summary.md").read_text().splitlines() if "|" in line]
    assert [" | ".join(row) for row in result] == [
        line.strip("| ") for line in lines if "---" not in line
    ]
    by_head = {tuple(table[0][:2]): table for table in others}
    rounds = by_head["round", "accuracy"]
    wanted = [r for r in rows_of(folder / "metrics.csv") if r["strategy"] == "fedcurv"]
    for row, line in zip(rounds[1:], wanted, strict=True):
        for name, value in zip(rounds[0], row, strict=True):
            assert value == line[name] or float(value) == pytest.approx(float(line[name]), 1e-5)
    clients = by_head["client", "status"]
    assert [row[0] for row in clients[1:]] == [str(n) for n in range(6)]
    records = by_head["record", "MB received in all rounds"]
    traffic = rows_of(folder / "traffic.csv")
    for name, down, up in records[1:]:
        own = [r for r in traffic if (r["strategy"], r["record"]) == ("fedcurv", name)]
        assert float(down) == pytest.approx(sum(int(r["bytes_down"]) for r in own) / 1e6, abs=6e-4)
        assert float(up) == pytest.approx(sum(int(r["bytes_up"]) for r in own) / 1e6, abs=6e-4)
    assert (folder / "config.yaml").read_text() in page.text
    assert "the command" in page.text and "fedcurv, λ = 30" in page.text


def test_a_page_loads_nothing_and_runs_nothing(small_run):
    _, _, texts = small_run
    page = read(texts[-1])
    assert "http:" not in texts[-1] and "https:" not in texts[-1]
    assert not {"script", "link", "img", "iframe", "object", "base"} & set(page.tags)
    for name, value in page.attributes:
        assert not name.startswith("on")
        assert name not in ("href", "xlink:href", "src") or value.startswith("#"), value
    assert "url(" not in re.sub(r"url\(#\w+\)", "", texts[-1])
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    assert ("content", policy) in page.attributes


def renewal(text):
    attributes = read(text).attributes
    if ("http-equiv", "refresh") not in attributes:
        return None
    return int(attributes[attributes.index(("http-equiv", "refresh")) + 1][1])


def test_the_page_is_renewed_with_each_round_until_the_run_has_ended(small_run):
    _, _, texts = small_run
    *during, last = texts
    assert len(during) == 2 * 5
    assert [renewal(text) for text in texts] == [RENEW_S] * len(during) + [None]
    told = [f"running · {name}, round {n} of 4" for name in ("fedavg", "fedcurv") for n in range(5)]
    assert all(line in read(text).text for line, text in zip(told, during, strict=True))
    assert "ended · fedcurv, round 4 of 4" in read(last).text


def test_a_drawn_curve_has_its_points_where_they_belong():
    curve = Curve("", [0, 1, 2, 3], [5.0, 1.0, 2.0, 9.0])
    drawn = read(figure_of(Panel("a thing", "round", {0: curve})))
    # on the plot, y grows downwards; three numbers fix each scale, the fourth point tests it
    paths = [value for name, value in drawn.attributes if name == "d"]
    (path,) = (p for p in paths if re.fullmatch(r"M( ?-?[\d.]+ [\d.]+ ?L?){4}", p))
    points = [tuple(map(float, point.split())) for point in re.split("[ML]", path)[1:]]
    (x0, y0), (x1, y1), (x2, y2), (x3, y3) = points
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.02) == pytest.approx(x3 - x2, abs=0.02)
    assert x1 > x0 and y1 > y0 > y3
    assert (y1 - y2) / (y1 - y0) == pytest.approx((2 - 1) / (5 - 1), abs=1e-3)
    assert (y1 - y3) / (y1 - y0) == pytest.approx((9 - 1) / (5 - 1), abs=1e-3)


def test_a_curve_of_many_rounds_is_thinned_and_keeps_its_end():
    long = Curve("", range(5001), [float(n) for n in range(5001)])
    whole = Curve("", [0, 5000], [0.0, 5000.0])
    texts = [figure_of(Panel("a", "round", {0: c})) for c in (long, whole)]
    assert len(texts[0]) < 2 * len(texts[1])
    ends = [max(float(x) for x in re.findall(r"L ?([\d.]+)", t)) for t in texts]
    assert ends[0] == pytest.approx(ends[1], abs=0.1)


def test_values_that_are_not_finite_are_gaps():
    curve = Curve("", [0, 1, 2], [1.0, float("inf"), 2.0], [0, float("nan"), 1], [1, 2, 3])
    assert "svg" in figure_of(Panel("a", "round", {0: curve}))


HOSTILE = "</title></style><script>alert(1)</script><img src=x onerror=alert(2)>&amp;\"'$\\frac$"


def test_names_are_text_whatever_they_are():
    client = ClientRecord(HOSTILE, "failed", HOSTILE, {HOSTILE: 7}, {HOSTILE: 8}, {"lr": 0.1})
    rounds = [RoundRecord(0, server_metrics={"accuracy": 0.5, "loss": 1.0})]
    rounds.append(RoundRecord(1, [client], server_metrics={"accuracy": 0.6, "loss": 0.9}))
    config = {**CONFIG, "strategy": {HOSTILE: {"_target_": HOSTILE}}}
    config["data"] = {**CONFIG["data"], "name": HOSTILE}
    config["partition"] = {"name": HOSTILE}
    history = History(HOSTILE, rounds, failure=f"{HOSTILE}\n{HOSTILE}")
    page = read(run_page([history], config, [HOSTILE], HOSTILE))
    assert not {"script", "img"} & set(page.tags)
    assert not any(name.startswith("on") for name, _ in page.attributes)
    # title, heading, state, place, legend, table, failure, two of the client, record, about
    assert page.text.count(HOSTILE) >= 11


def live(folder, **options):
    rounds = [RoundRecord(0, server_metrics={"accuracy": 0.5, "loss": 1.0})]
    return LivePage(folder, [History("fedavg", rounds)], CONFIG, "a command", **options)


def test_pages_take_a_twentieth_of_the_time(tmp_path, monkeypatch):
    now, made = [0.0], []

    def slow(*_, **__):
        now[0] += 2.0
        made.append(now[0])
        return "a page"

    monkeypatch.setattr(live_page, "run_page", slow)
    page = live(tmp_path, clock=lambda: now[0])
    for _ in range(100):
        page.renew()
        now[0] += 1.0
    assert len(made) == 3  # 2 seconds each, and 40 in between
    assert made == [2.0, 44.0, 86.0]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (None, "ended ·"),
        (Interrupted(2), "interrupted by SIGINT; it can go on ·"),
        (RuntimeError("out of\nmemory"), "ended by an error: RuntimeError: out of memory ·"),
    ],
)
def test_the_page_says_how_a_run_was_left(tmp_path, error, said):
    def work():
        with live(tmp_path) as page:
            page.renew()
            if error is not None:
                raise error

    if error is None:
        work()
    else:
        with pytest.raises(type(error)):
            work()
    text = (tmp_path / "report.html").read_text()
    assert said in read(text).text
    assert renewal(text) is None


@pytest.mark.usefixtures("quick_pictures")
def test_a_page_that_cannot_be_written_ends_no_run_and_is_told_once(tmp_path, told):
    (tmp_path / "report.html").mkdir()
    (summary,) = run(tmp_path, FEW, "strategy=[fedavg]")
    assert summary.rounds == 2
    (line,) = told()
    assert re.search(r"report.html was not written \(IsADirectoryError.*the work goes on", line)
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".part")]


def test_a_run_in_which_no_round_has_ended_has_no_page(tmp_path):
    with LivePage(tmp_path, [History("fedavg")], CONFIG, "a command"):
        pass
    assert list(tmp_path.iterdir()) == []


def write_run(folder, accuracies, *, seed, seconds):
    write_job(folder, seed=seed, best=max(accuracies), final=accuracies[-1], rounds_to="")
    rows = [f"fedavg,{n},{a},{10**6 * n},{10**6},{seconds}" for n, a in enumerate(accuracies)]
    header = "strategy,round,accuracy,bytes_down,bytes_up,seconds"
    (folder / "metrics.csv").write_text("\n".join([header, *rows]))


def test_a_sweeps_curves_are_the_seeds_means_at_their_mean_costs(tmp_path):
    write_run(tmp_path / "0", [0.1, 0.5, 0.6], seed=1, seconds=1.0)
    write_run(tmp_path / "1", [0.2, 0.9, 0.8], seed=2, seconds=3.0)
    (curves,), number = best_curves(read_jobs(tmp_path), tmp_path)
    assert number == 1
    for curve in curves.values():
        assert curve.y == pytest.approx([15, 70, 70])
        assert list(curve.low) == pytest.approx([10, 50, 60])
        assert list(curve.high) == pytest.approx([20, 90, 80])
    assert curves["round"].x == [0, 1, 2]
    assert curves["megabytes"].x == pytest.approx([1, 3, 6])
    assert curves["seconds"].x == pytest.approx([2, 4, 6])


def test_a_sweep_has_a_page_with_its_table_and_its_jobs(tmp_path):
    write_run(tmp_path / "0", [0.1, 0.5], seed=1, seconds=1.0)
    write_run(tmp_path / "1", [0.2, 0.9], seed=2, seconds=1.0)
    write_sweep(tmp_path)
    for ended in (False, True):
        write_sweep_page(tmp_path, ended=ended)
        text = (tmp_path / "report.html").read_text()
        assert renewal(text) == (None if ended else RENEW_S)
    page = read(text)
    assert page.tags.count("figure") == 3
    result, jobs = page.tables
    assert " | ".join(result[1]) == "fedavg | 2 | 70.0 ± 28.3 | 70.0 ± 28.3 | -"
    assert [row[0] for row in jobs[1:]] == ["0", "1"]
    links = [value for name, value in page.attributes if name == "href"]
    assert links == ["0/report.html", "1/report.html"]
