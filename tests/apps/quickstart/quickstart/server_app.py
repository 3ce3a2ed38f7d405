"""The server's side."""

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from quickstart.task import Net, load_central_test_set, test

app = ServerApp()


def evaluate_centrally(server_round: int, arrays: ArrayRecord) -> MetricRecord:
    model = Net()
    model.load_state_dict(arrays.to_torch_state_dict())
    loss, accuracy = test(model, load_central_test_set(), torch.device("cpu"))
    return MetricRecord({"accuracy": accuracy, "loss": loss})


@app.main()
def main(grid: Grid, context: Context) -> None:
    run_config = context.run_config
    torch.manual_seed(0)
    strategy = FedAvg(fraction_train=run_config["fraction-train"])
    result = strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(Net().state_dict()),
        train_config=ConfigRecord({"lr": run_config["learning-rate"]}),
        num_rounds=run_config["num-server-rounds"],
        evaluate_fn=evaluate_centrally,
    )
    last = max(result.evaluate_metrics_serverapp)
    accuracy = result.evaluate_metrics_serverapp[last]["accuracy"]
    print(f"accuracy after {last} rounds: {accuracy:.0%}")
