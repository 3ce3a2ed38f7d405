import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from sklearn.datasets import load_digits

from fedcurv.clients import ClientCurvature  # 1
from fedcurv.simulations.local import run_local
from fedcurv.strategies import FedCurv

images, labels = (torch.from_numpy(array) for array in load_digits(return_X_y=True))
images = images.float() / 16  # 1500 scans are the clients', the other 297 the test
server_app, client_app = ServerApp(), ClientApp()
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(64, 50), torch.nn.ReLU(), torch.nn.Linear(50, 10))


@client_app.train()
def train(message, context):
    mine = (labels[:1500] // 2 == context.node_config["partition-id"]).nonzero().squeeze(1)
    batches = list(zip(images[mine].split(16), labels[mine].split(16)))
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    curvature = ClientCurvature(message, context, model, mode="proximal")  # 2: the others' pull
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for inputs, targets in 5 * batches:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
    metrics = MetricRecord({"num-examples": len(mine)})
    reply = RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics})
    curvature.report(reply, model, batches, kind="exact")  # 3: Fisher information at the solution
    return Message(reply, reply_to=message)


@server_app.main()
def main(grid, context):
    strategy = FedCurv(strength=30, fraction_evaluate=0.0)  # was: FedAvg(fraction_evaluate=0.0)
    result = strategy.start(grid, ArrayRecord(model.state_dict()), num_rounds=20)
    model.load_state_dict(result.arrays.to_torch_state_dict())
    right = model(images[1500:]).argmax(1) == labels[1500:]
    print(f"accuracy after 20 rounds: {right.double().mean():.0%}")


run_local(server_app, client_app, num_nodes=5)
