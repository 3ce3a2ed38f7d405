"""The ServerApp of a real deployment, configured as ``fedcurv-simulate`` is."""

import logging
import shlex
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from fedcurv.simulations.report import summarise, write_report
from fedcurv.simulations.run import CONF, only_strategy, resolve
from fedcurv.simulations.server import History, make_server_app
from fedcurv.strategies.rounds import RoundRecord

logger = logging.getLogger("flwr")

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the strategy that the run's ``overrides`` name, and write the report to ``output``.

    Raises:
        ValueError: if the configuration cannot work, or there are several strategies.
        RoundFailed: if all clients of a round fail.
    """
    overrides = str(context.run_config["overrides"])
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("config", shlex.split(overrides))
    resolved = resolve(config)
    name, node = only_strategy(config)
    history = History(name)
    make_server_app(resolved, instantiate(node), history, _log)(grid, context)
    if output := str(context.run_config.get("output", "")):
        Path(output).mkdir(parents=True, exist_ok=True)
        write_report(Path(output), [history], resolved, f"flwr run, overrides: {overrides}")
    summary = summarise(history, resolved["target_accuracies"])
    logger.info("final accuracy %.4f, best %.4f", summary.final, summary.best)


def _log(record: RoundRecord) -> None:
    lost = [c for c in record.clients if c.status != "ok"]
    logger.info(
        "round %d: accuracy %.4f, %d clients, %d lost",
        record.server_round,
        float(str(record.server_metrics["accuracy"])),
        len(record.clients),
        len(lost),
    )
