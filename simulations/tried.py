"""Trial of a configuration: what its things make, before anything starts."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedcurv.clients.training import fault_of_loss
from fedcurv.errors import in_one_line
from fedcurv.global_state import seeded
from fedcurv.simulations.build import load_anew, make_model, versions_of
from fedcurv.simulations.data.samples import DataSet
from fedcurv.simulations.parts.losses import make_loss

# numbers of a data set's inputs, from which on it is not loaded twice
_LARGE = 20_000_000

_found_same: set[tuple[object, ...]] = set()


def check_model(model: nn.Module, data: DataSet, name: str) -> None:
    """Raise a ValueError unless a model turns inputs of these data into what their task needs."""
    inputs, targets = data.telling_inputs(), data.train_targets
    taken = f"{str(inputs.dtype).removeprefix('torch.')} inputs of shape {tuple(inputs.shape)}"
    if not inputs.is_floating_point():
        taken += f" with numbers from {int(inputs.min())} to {int(inputs.max())}"
    was_training = model.training
    try:
        with torch.no_grad():
            outputs = model.eval()(inputs)
    except Exception as error:  # whatever the model's code raises
        raise ValueError(
            f"model={name} cannot take {taken} ({in_one_line(error)}){_hint(inputs, data, error)}"
        ) from error
    finally:
        model.train(was_training)
    got = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
    wanted = data.task.shapes(len(inputs), data.num_outputs, tuple(targets.shape[1:]))
    if got not in wanted:
        shapes = " or ".join(map(str, wanted))
        raise ValueError(
            f"model={name}: expected {data.task.outputs.format(shapes)}, from {taken}, got {got}"
        )
    if not data.task.like_outputs and targets.ndim > 1 and got[1:-1] == got[2:]:
        raise ValueError(
            f"model={name}: cannot tell which axis of the outputs {got} has the classes, for "
            f"targets {tuple(targets.shape)}; name more classes in the data, or take another "
            "number of positions"
        )


def _hint(inputs: Tensor, data: DataSet, error: Exception) -> str:
    """Return what may be done about inputs that a model cannot take."""
    if inputs.is_floating_point():
        return ""
    if isinstance(error, IndexError) and int(inputs.min()) < 0:
        return "; number tokens from 0 on"
    if isinstance(error, IndexError) and int(inputs.max()) >= data.num_outputs:
        return (
            f"; model=lstm and model=transformer know as many tokens as there are classes, here "
            f"{data.num_outputs}: where some are never a target, give the names of all as classes; "
            "text of other classes needs model=function"
        )
    return "; data.standardise=true makes floats of them"


def require_same_parts(
    parts: list[NDArray[np.int64]], again: list[NDArray[np.int64]], place: str
) -> None:
    """Raise a ValueError if a partition, asked once more, deals out otherwise.

    Clients in other processes ask for themselves; they would share samples.
    """
    if not all(np.array_equal(one, other) for one, other in zip(parts, again, strict=True)):
        raise ValueError(
            f"partition.function={place}: expected the same parts each time, got others when it "
            "was called again; draw from a generator made of seed"
        )


def require_same_model(config: Mapping[str, Any], data: DataSet, model: nn.Module) -> None:
    """Raise a ValueError if the user's function, called once more, makes another model.

    Weights travel; what else a model has, each client makes for itself.

    Args:
        config: that names the function, if it names one.
        data: that both models are tried on, with the same weights.
        model: that it made, checked.
    """
    if config["model"]["name"] != "function":
        return
    again = make_model(config, data)
    try:
        again.load_state_dict(model.state_dict())
        one, other = (_outputs(made, data.telling_inputs()) for made in (model, again))
        are_same = torch.allclose(one, other, equal_nan=True)
    except Exception:  # of whatever class other shapes make
        are_same = False
    if not are_same:
        raise ValueError(
            f"model.function={config['model']['function']}: expected the same model each time, got "
            "one that gives other outputs with the same weights when it was called again; keep "
            "what is drawn as a buffer, or draw it from a generator with a seed of its own"
        )


def _outputs(model: nn.Module, inputs: Tensor) -> Tensor:
    was_training = model.training
    try:
        with torch.no_grad(), seeded(0):
            outputs: Tensor = model.eval()(inputs)
            return outputs
    finally:
        model.train(was_training)


def require_same_data(config: Mapping[str, Any], data: DataSet) -> None:
    """Raise a ValueError if the user's function, called once more, returns other data.

    Clients in other processes call it for themselves. It is called again once a process, and not
    for data that are large.
    """
    named = config["data"]
    place, versions = f"data.function={named.get('function')}", versions_of(config)
    key = (place, str(named.get("options")), *versions)
    is_large = data.train_inputs.numel() + data.test_inputs.numel() > _LARGE
    if named["name"] != "function" or key in _found_same or is_large:
        return
    again = load_anew(config)
    for part in ("train_inputs", "train_targets", "test_inputs", "test_targets", "train_groups"):
        one, other = getattr(data, part), getattr(again, part)
        if not np.array_equal(np.asarray(one), np.asarray(other)):
            raise ValueError(
                f"{place}: expected the same {part} each time, got others when it was called "
                "again; draw from a generator with a seed of its own"
            )
    _found_same.add(key)


def check_own_loss(client: Mapping[str, Any], model: nn.Module, data: DataSet) -> None:
    """Raise a ValueError unless a model can be trained by the user's own loss, if there is one.

    Args:
        client: of a configuration.
        model: left as it is.
        data: of which a batch is tried, drawn at random.
    """
    description = client["loss"]
    if not isinstance(description, Mapping) or description.get("name") != "function":
        return
    drawn = np.random.default_rng(0).permutation(len(data.labels))[: client["batch_size"]]
    inputs, targets = data.train_samples(drawn)
    place = f"client.loss.function={description.get('function')}"
    loss, was_training = make_loss(description), model.training
    try:
        with torch.enable_grad():
            fault = fault_of_loss(loss(model.eval()(inputs), targets))
    except Exception as error:  # whatever the loss's code raises
        raise ValueError(
            f"{place} raised {in_one_line(error)}, for {len(inputs)} samples' outputs and targets"
        ) from error
    finally:
        model.train(was_training)
    if fault:
        raise ValueError(f"{place}: {fault}")
