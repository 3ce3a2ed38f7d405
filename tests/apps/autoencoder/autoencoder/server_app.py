"""The server's side."""

import lightning as L
from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from autoencoder.task import LitDigits

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    L.seed_everything(0, verbose=False)
    strategy = FedAvg(fraction_evaluate=0.0)
    strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(LitDigits().state_dict()),
        num_rounds=context.run_config["num-server-rounds"],
    )
