"""Replies that hold boosted trees, as Flower's FedXgbBagging puts them together."""

import json
from typing import Any

from flwr.app import RecordDict

from fedcurv.strategies.wire.arrays import read_array

_NAME = "0"


def check_trees(content: RecordDict) -> None:
    """Check what a reply holds for bagging: XGBoost's model as JSON, in one array of bytes.

    Raises:
        ValueError: unless its trees can be appended to others', and others' to them.
    """
    records = list(content.array_records.values())
    if len(records) != 1 or list(records[0]) != [_NAME]:
        raise ValueError(f"expected trees in one array {_NAME!r}, got {[list(r) for r in records]}")
    values = read_array(_NAME, records[0][_NAME])
    if values.dtype.str != "|u1" or values.ndim != 1:
        raise ValueError(f"expected trees as bytes, got {values.dtype} {values.shape}")
    try:
        model = json.loads(values.tobytes(), parse_constant=_constant)
        booster = model["learner"]["gradient_booster"]["model"]
        numbers = booster["gbtree_model_param"]
        trees, info, firsts = (booster[n] for n in ("trees", "tree_info", "iteration_indptr"))
        number, side_by_side = int(numbers["num_trees"]), int(numbers["num_parallel_tree"])
    except Exception as error:  # whatever a stranger's JSON makes of it
        raise ValueError(
            f"expected XGBoost's model as JSON, got what cannot be read: {type(error).__name__}: "
            f"{str(error)[:100]}"
        ) from error
    if not (
        _is_list_of(trees, dict)
        and _is_list_of(info, int)
        and _is_list_of(firsts, int)
        and len(trees) == len(info) == number
        and 1 <= side_by_side <= number
        and firsts
    ):
        raise ValueError(
            f"expected as many trees as the model says, {number}, in sets of {side_by_side}; it "
            "has others"
        )


def _constant(name: str) -> float:
    if name == "NaN":
        raise ValueError("it holds NaN")
    return float(name)


def _is_list_of(values: Any, kind: type) -> bool:
    return isinstance(values, list) and all(type(value) is kind for value in values)
