"""What a device must have installed, and what its process loads."""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

BLOCK = """
import sys

sys.modules.update(dict.fromkeys({names!r}))  # an import of these fails
"""

# a torch that was built without distributed has the module, and next to nothing in it
WITHOUT_DISTRIBUTED = """
import torch, torch._dynamo
torch.distributed.is_available = lambda: False
for name in ("TCPStore", "PrefixStore", "Store", "rendezvous", "all_reduce"):
    delattr(torch.distributed, name)
"""

# one round of the ready-made ClientApp, FedCurv included, from the app's own folder
A_ROUND = """
sys.path.insert(0, "simulations/app")
from client_app import app
import tempfile, json, pathlib
folder = pathlib.Path(tempfile.mkdtemp())
(folder / "a.csv").write_text("x,label,y\\n1,a,2\\n3,b,5\\n0,a,1\\n")
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from fedcurv.simulations.parts.models import mlp
from fedcurv.strategies.flower_private import set_message_id, task_identity
from fedcurv.strategies.wire.records import CONFIG, Instruction, pack_instruction
task = {
    "data": {"name": "device", "shape": [1, 1, 2], "classes": ["a", "b"], "mean": 0.0,
             "deviation": 1.0, "label": "label"},
    "partition": {"name": "iid"}, "model": {"name": "mlp", "hidden": [4]}, "num_clients": 1,
    "seed": 1, "client": {"loss": "gce", "stragglers": {"share": 0.0, "epochs": 1}},
}
content = pack_instruction(Instruction(1.0, 1, 0, (), False, "f", None))
content["arrays"] = ArrayRecord(mlp((1, 1, 2), 2, hidden=[4]).state_dict())
content["config"] = ConfigRecord({"fedcurv-task": json.dumps(task), "server-round": 1})
with task_identity(run_id=1, node_id=1):
    message = Message(content, dst_node_id=2, message_type="train")
set_message_id(message, "question")
reply = app(message, Context(1, 2, {"data-csv": str(folder / "a.csv")}, RecordDict(), {}))
assert reply.content.array_records["fedcurv.precision"]
"""


def run_python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_clients_need_neither_posix_nor_torchs_distributed():
    """As on Windows, and where torch was built without distributed."""
    imports = """
import fedcurv, fedcurv.losses, fedcurv.strategies
from fedcurv.clients import ClientCurvature, client_app
"""
    run_python(BLOCK.format(names={"fcntl"}) + WITHOUT_DISTRIBUTED + imports + A_ROUND)


NOT_ON_A_DEVICE = {"PIL", "hydra", "matplotlib", "omegaconf", "ray", "sklearn", "torchvision"}


def test_a_device_trains_with_what_the_plain_installation_brings():
    printed = run_python(
        BLOCK.format(names=NOT_ON_A_DEVICE)
        + A_ROUND
        + "print([n for n in sys.modules if n.startswith('fedcurv.simulations')])"
    )
    for of_the_server in (
        "commands.simulate",
        "configuration",
        "deployment.server_app",
        "federation.server_app",
        "reports.comparison",
        "reports.results",
    ):
        assert f"'fedcurv.simulations.{of_the_server}'" not in printed


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (
            "from fedcurv.simulations.parts.models import resnet18; resnet18((3, 32, 32), 10)",
            "torchvis",
        ),
        (
            "import os; os.makedirs('train/a'); open('train/a/a.png', 'w').close()\n"
            "from fedcurv.simulations.data.owner import DeviceData, load_device\n"
            "load_device({'data-folder': '.'}, DeviceData(shape=(1, 2, 2), classes=['a']))",
            "pip install pillow",
        ),
    ],
)
def test_what_a_task_needs_beside_that_is_named(use, message, tmp_path):
    code = BLOCK.format(names=NOT_ON_A_DEVICE) + f"import os; os.chdir({str(tmp_path)!r})\n" + use
    with pytest.raises(AssertionError, match=f"ImportError: .*{message}"):
        run_python(code)
