"""The ServerApp of a real deployment, configured as ``fedcurv-simulate`` is."""

import logging
import shlex
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedcurv.private_files import made_private, private_folder
from fedcurv.simulations.configuration import composed, only_strategy, resolve
from fedcurv.simulations.federation.server_app import make_server_app
from fedcurv.simulations.parts.strategies import make_strategy
from fedcurv.simulations.parts.tasks import metric_of
from fedcurv.simulations.reports.comparison import summarise, write_report
from fedcurv.simulations.reports.history import History, tell_unused_terms
from fedcurv.simulations.reports.live_page import LivePage
from fedcurv.simulations.reports.round_files import evaluation
from fedcurv.strategies import BestModel, JsonLines
from fedcurv.strategies.loop.rounds import RoundRecord

logger = logging.getLogger("flwr")

ROUNDS_FILE = "rounds.jsonl"
BEST_MODEL_FILE = "best.pt"

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the strategy that the run's ``overrides`` name, and leave in ``output`` what came of it.

    That is checkpoint.npz, from which a run with ``resume`` goes on, rounds.jsonl, best.pt and
    report.html as rounds end, and the rest of the report at the end.

    Raises:
        ValueError: if the configuration cannot work, or there are several strategies.
        FileExistsError: if an earlier run's checkpoint is in the folder and ``resume`` is not set.
        RoundFailed: if all clients of a round fail.
    """
    run_config = context.run_config
    overrides = str(run_config["overrides"])
    config = composed(shlex.split(overrides))
    resolved = resolve(config)
    name, node = only_strategy(config)
    metric = metric_of(resolved)
    history, options = History(name), dict[str, Any]()
    watchers: list[Callable[[RoundRecord], object]] = [partial(_log, metric.name)]
    output = Path(str(run_config["output"])) if run_config.get("output") else None
    command = f"flwr run, overrides: {overrides}"
    page: AbstractContextManager[object] = nullcontext()
    if output is not None:
        private_folder(output)
        rounds = output / ROUNDS_FILE
        watchers.append(JsonLines(rounds))
        page = live = LivePage(output, [history], resolved, command, private=True)
        watchers.append(lambda record: live.renew())
        if run_config["resume"] and rounds.exists():
            history.rounds = JsonLines.read(rounds)
        options = {
            "checkpoint": output,
            "checkpoint_every": int(run_config["checkpoint-every"]),
            "resume": bool(run_config["resume"]),
            "best_model": BestModel(output / BEST_MODEL_FILE, metric.name, metric.mode),
        }
    elif run_config["resume"]:
        raise ValueError("resume needs output: the folder of the run that is to go on")
    strategy = make_strategy(node, resolved)
    with page:
        make_server_app(resolved, strategy, history, watchers, **options)(grid, context)
        tell_unused_terms(resolved, [history])
        if output is not None:
            with made_private():
                write_report(output, [history], resolved, command)
    summary = summarise(history, (), metric)
    logger.info("final %s %.4f, best %.4f", metric.name, summary.final, summary.best)


def _log(metric: str, record: RoundRecord) -> None:
    lost = [c for c in record.clients if c.status != "ok"]
    logger.info(
        "round %d: %s %s, %d clients, %d lost",
        record.server_round,
        metric,
        evaluation(record).get(metric, "unknown"),
        len(record.clients),
        len(lost),
    )
