"""Readers of what comes from elsewhere raise their own error and nothing else, whatever comes."""

import random
import tracemalloc

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from fedcurv import Curvature
from fedcurv.strategies import FedCurv, JsonLines
from fedcurv.strategies.flower_private import set_message_id, task_identity
from fedcurv.strategies.loop.rounds import ClientRecord, RoundRecord
from fedcurv.strategies.loop.watchers import scalars
from fedcurv.strategies.replies.check import Sent
from fedcurv.strategies.wire.arrays import read_array
from fedcurv.strategies.wire.records import (
    CONFIG,
    PRECISION,
    WEIGHTED,
    Instruction,
    add_report,
    pack_instruction,
    pack_tensors,
    take_report,
    unpack_instruction,
)
from tests.federation import context_of

NUMBER = 20_000
ROUNDS = 3_000  # each of which sums up four replies
TYPES = ["f2", "f4", "f8", "i1", "i8", "u2", "b1", "c8", ">f4", "U3", "S5", "M8[s]"]
DESCRIPTIONS = ["<f4", "<f16", "<u8", "|O", "<U9", "|V8", ">i8", "<f", "f4,f4", "<m8"]


def mutated(data: bytes, rng: random.Random) -> bytes:
    """Return bytes of which some were changed, removed, repeated or are something else."""
    changed = bytearray(data)
    for _ in range(rng.choice([0, 1, 1, 2, 8])):
        at = rng.randrange(max(1, min(len(changed), rng.choice([10, 80, 10**6]))))
        kind = rng.randrange(5)
        if kind == 0 and changed:
            changed[at % len(changed)] = rng.randrange(256)
        elif kind == 1:
            del changed[at : at + rng.randrange(1, 20)]
        elif kind == 2:
            changed[at:at] = changed[at : at + rng.randrange(1, 20)]
        elif kind == 3:
            changed[at:at] = rng.choice([b"(", b"9" * 12, b"'", b"\0", b"{", b"-", b"\xff", b"#"])
        else:
            old, new = rng.choice([(b"3", b"4294967296"), (b"4", b"-1"), (b"False", b"True")])
            changed = bytearray(bytes(changed).replace(old, new))
    if rng.random() < 0.2:
        changed = bytearray(bytes(changed).replace(b"<f4", rng.choice(DESCRIPTIONS).encode()))
    return bytes(rng.randbytes(rng.randrange(200)) if rng.random() < 0.03 else changed)


def some_array(rng: random.Random) -> Array:
    shape = rng.choice([(), (3,), (3, 4), (0,), (2, 0, 5)])
    values = np.ones(shape, np.dtype(rng.choice(TYPES) if rng.random() < 0.3 else "f4"))
    if values.dtype.kind == "f" and rng.random() < 0.2:
        values = np.asarray(values * rng.choice([np.nan, -np.inf, -1.0, 3e38]))
    whole = Array(values)
    told = rng.choice([(3, 4), (2**32, 2**32), (-1,)]) if rng.random() < 0.1 else whole.shape
    stype = rng.choice(["numpy.ndarray"] * 20 + ["", "torch"])
    return Array(dtype=whole.dtype, shape=told, stype=stype, data=mutated(whole.data, rng))


def some_value(rng: random.Random):
    numbers = [0, -1, 3, 2**70, 10**400, 0.5, float("nan"), float("inf"), -2.0]
    lists = [[], [1], [0.5, float("nan")], ["a"], [b"a"], [True]]
    return rng.choice([*numbers, True, "", "a", b"", b"x", *lists])


def some_config(rng: random.Random, base: dict) -> ConfigRecord:
    table = dict(base)
    for _ in range(rng.choice([0, 1, 1, 2, 4])):
        name = rng.choice([*base, "more", "sums-taken"])
        if rng.random() < 0.3:
            table.pop(name, None)
        else:
            table[name] = some_value(rng)
    return ConfigRecord(table)


def some_metrics(rng: random.Random) -> MetricRecord:
    table = {"num-examples": 12, "loss": 1.0}
    for _ in range(rng.choice([0, 1, 2])):
        value = some_value(rng)
        while isinstance(value, str | bytes | bool) or (
            isinstance(value, list) and value and not isinstance(value[0], int | float)
        ):
            value = some_value(rng)
        value = [1, 2] if value == [True] else value
        table[rng.choice(["num-examples", "loss", "more"])] = value
    return MetricRecord(table)


def some_arrays(rng: random.Random, whole: ArrayRecord) -> ArrayRecord:
    table = dict(whole)
    for _ in range(rng.choice([0, 1, 1, 2])):
        name = rng.choice([*whole, "x", ""])
        if rng.random() < 0.3:
            table.pop(name, None)
        else:
            table[name] = some_array(rng)
    return ArrayRecord(table)


def some_content(rng: random.Random, whole: RecordDict) -> RecordDict:
    content = RecordDict(dict(whole))
    for name, record in whole.items():
        luck = rng.random()
        if luck < 0.05:
            del content[name]
        elif luck < 0.1:
            content[name] = rng.choice(
                [MetricRecord({"a": 1}), ConfigRecord({"a": "b"}), ArrayRecord()]
            )
        elif luck < 0.15:
            content[rng.choice(["y", CONFIG, PRECISION])] = record
        elif isinstance(record, ArrayRecord):
            content[name] = some_arrays(rng, record)
        elif isinstance(record, ConfigRecord):
            content[name] = some_config(rng, dict(record))
        else:
            content[name] = some_metrics(rng)
    return content


def numbers(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "weight": torch.rand(3, 4, generator=generator),
        "bias": torch.rand(3, generator=generator),
    }


@pytest.mark.slow
def test_arrays_are_read_or_refused():
    rng, read = random.Random(1), 0
    tracemalloc.start()
    try:
        for index in range(NUMBER):
            if index == NUMBER // 10:  # watching costs as much as reading
                assert tracemalloc.get_traced_memory()[1] < 20e6
                tracemalloc.stop()
            try:
                values = read_array("w", some_array(rng))
            except ValueError as error:
                assert str(error).startswith("array 'w'")
            else:
                read += 1
                assert values.dtype.kind in "fiubc"
    finally:
        tracemalloc.stop()
    # neither all nor none
    assert 0.05 * NUMBER < read < 0.9 * NUMBER


@pytest.mark.slow
def test_instructions_are_read_or_refused():
    sums = Curvature(numbers(0), numbers(1))
    whole = pack_instruction(Instruction(0.1, 3, 2, ["a", "b"], False, "name", sums))
    rng, read = random.Random(2), 0
    for _ in range(NUMBER):
        try:
            unpack_instruction(some_content(rng, whole))
        except ValueError:
            continue
        read += 1
    assert 0.05 * NUMBER < read < 0.95 * NUMBER


@pytest.mark.slow
def test_a_round_with_any_reply_among_good_ones_is_the_round_without_it_or_with_it():
    def content(client: int) -> RecordDict:
        return RecordDict(
            {
                "arrays": ArrayRecord(numbers(client)),
                "metrics": MetricRecord({"num-examples": 10, "loss": 1.0}),
                CONFIG: ConfigRecord(
                    {"wire-version": 2, "client-id": str(client), "message-id": f"m{client}"}
                ),
                PRECISION: pack_tensors(numbers(client + 50)),
                WEIGHTED: pack_tensors(numbers(client + 70)),
            }
        )

    questions = []
    with task_identity(run_id=1, node_id=1):
        for client in range(4):
            question = Message(RecordDict(), dst_node_id=client, message_type="train")
            set_message_id(question, f"m{client}")
            questions.append(question)

    def strategy_after(contents) -> tuple[FedCurv, ArrayRecord]:
        strategy = FedCurv(strength=0.1)
        strategy._sent = Sent.of(ArrayRecord(numbers(9)))
        replies = [Message(c, reply_to=questions[i]) for i, c in contents.items()]
        arrays, _ = strategy.aggregate_train(1, replies)
        return strategy, arrays

    def bits(strategy: FedCurv, arrays: ArrayRecord) -> list[bytes]:
        sums = strategy._instruction.sums
        tensors = [*sums.precision.values(), *sums.weighted_parameters.values()]
        return [*(a.data for a in arrays.values()), *(t.numpy().tobytes() for t in tensors)]

    honest = {i: content(i) for i in range(4)}

    def again(client: int) -> RecordDict:
        """Return a client's content anew: a strategy takes records out of what it gets."""
        return RecordDict(dict(honest[client]))

    expected = bits(*strategy_after({i: again(i) for i in (0, 1, 3)}))

    def evaluation_after(rng: random.Random, strategy: FedCurv) -> bool:
        """Evaluate with one odd reply; return whether it took part."""
        told = {i: MetricRecord({"num-examples": 10, "loss": 1.0 + i}) for i in range(4)}
        told[2] = some_metrics(rng)
        replies = [
            Message(RecordDict({"metrics": m}), reply_to=questions[i]) for i, m in told.items()
        ]
        mean = strategy.aggregate_evaluate(1, replies)["loss"]
        if mean == pytest.approx((1.0 + 2.0 + 4.0) / 3):
            return False
        weight, loss = told[2]["num-examples"], told[2]["loss"]
        assert mean == pytest.approx((70 + weight * loss) / (30 + weight))
        return True

    rng, refused, evaluated = random.Random(3), 0, 0
    with task_identity(run_id=1, node_id=1):
        for index in range(ROUNDS):
            bad = some_content(rng, again(2))
            strategy, arrays = strategy_after({0: again(0), 1: again(1), 2: bad, 3: again(3)})
            assert not strategy.refused.keys() - {"m2"}
            if strategy.refused:
                refused += 1
                assert bits(strategy, arrays) == expected
            for array in arrays.values():
                assert np.isfinite(array.numpy()).all()
            if index % 3 == 0:
                evaluated += evaluation_after(rng, strategy)
    assert 0.3 * ROUNDS < refused < ROUNDS
    assert 0.1 * ROUNDS < evaluated < 0.3 * ROUNDS


@pytest.mark.slow
def test_rounds_are_read_or_refused_by_line(tmp_path):
    path, rng, read = tmp_path / "rounds.jsonl", random.Random(4), 0
    client = ClientRecord("0", "ok", "", {"arrays": 20}, {"arrays": 10}, {"loss": 0.5})
    whole = RoundRecord(1, (client,), {"loss": 0.5}, refused_evaluations={"1": "no"}, seconds=1.0)
    JsonLines(path)(whole)
    JsonLines(path)(RoundRecord(2))
    good = path.read_bytes()
    for _ in range(NUMBER):
        path.write_bytes(mutated(good, rng))
        try:
            rounds = JsonLines.read(path)
        except ValueError as error:
            assert type(error) is ValueError
            assert str(error).startswith(f"{path}, line "), error
            continue
        read += len(rounds) == 2
        for record in rounds:
            scalars(record)
    assert 0.05 * NUMBER < read < 0.9 * NUMBER


def test_records_of_another_version_of_the_wire_are_refused_by_their_number():
    for version, told in ((4, "got 4"), (None, "got 1")):
        records = pack_instruction(Instruction(0.5))
        if version is None:
            del records.config_records[CONFIG]["wire-version"]
        else:
            records.config_records[CONFIG]["wire-version"] = version
        with pytest.raises(ValueError, match=f"records in version 2 or 3 of the wire, {told}"):
            unpack_instruction(records)
    content = RecordDict()
    add_report(content, context_of(0), pack_tensors({"w": torch.ones(2)}), None, message_id="m")
    del content.config_records[CONFIG]["wire-version"]
    with pytest.raises(
        ValueError, match="statistics in version 2 or 3 of the wire, got 1; install"
    ):
        take_report(content)
