"""The mod that gives a server sums and nothing else, in any ClientApp."""

from collections.abc import Callable, Collection, Mapping
from os import PathLike
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict

from fedcurv.clients.owner import owner_allows
from fedcurv.clients.secure.identity import Anybody, Identity
from fedcurv.clients.secure.members import SMALLEST_GROUP, Floors
from fedcurv.clients.secure.memory import Memory
from fedcurv.clients.secure.node import Node
from fedcurv.clients.secure.refused import RefusedByNode
from fedcurv.clients.secure.signatures import Signatures
from fedcurv.clients.telling import once_a_run
from fedcurv.strategies.wire.identity import CONFIG, client_id_of, pack_client_id
from fedcurv.strategies.wire.records import SECURE_PLAN
from fedcurv.strategies.wire.secure.digests import digest_of_message
from fedcurv.strategies.wire.secure.neighbours import DEFAULT_NEIGHBOURS, SMALLEST_THRESHOLD
from fedcurv.strategies.wire.secure.plan import Plan
from fedcurv.strategies.wire.secure.stages import (
    MASKED,
    SECURE,
    AskForAgreement,
    AskForKeys,
    AskForMasked,
    AskForShares,
    AskForUnmasking,
    Masked,
    Stage,
    stage_in,
)
from fedcurv.strategies.wire.secure.statistics import unpack_exact_sums
from fedcurv.strategies.wire.secure.vector import vector_of
from fedcurv.strategies.wire.sums import STATISTICS

CallNext = Callable[[Message, Context], Message]

ONLY, ONLY_VARIABLE = "secure-sums", "FEDCURV_SECURE_SUMS"
_GROUP, _KEY, _TRUSTED = "secure-group", "secure-key", "secure-trusted"
_NEIGHBOURS, _THRESHOLD = "secure-neighbours", "secure-threshold"

# in Context.state: small, and gone with the run
_PLACE = "fedcurv.secure"

_STRANGERS = (
    "secure sums with members whose keys this node does not know: a server that plays the others "
    "reads its numbers, and no node would notice; name keys that are trusted (trusted_keys or "
    "secure-trusted, see docs/privacy.md)"
)


def _whole(name: str, number: Any) -> int:
    if type(number) is not int or number < 2:
        raise ValueError(f"{name} must be a whole number >= 2, got {number!r}")
    return number


def _majority(share: Any) -> float:
    if type(share) not in (int, float) or not 0.5 < share <= 1:
        raise ValueError(f"smallest_threshold must be above 1/2 and at most 1, got {share!r}")
    return float(share)


class SecureSumsMod:
    """A Flower mod: what the app answers to training messages leaves the node under masks.

    ``ClientApp(mods=[SecureSumsMod()])`` is all that an app needs, for a server with
    ``fedcurv.strategies.SecureSums``; ``private_errors_mod`` before it withholds what errors say.
    The mod answers the stages around training itself; the app sees the training message as ever.
    Evaluation goes through as it is.

    A node's owner decides what it takes part in, in this call or in the SuperNode's
    ``--node-config``; no message can.

    Args:
        plain: whether the node trains for a server without secure sums, too, which then sees its
            numbers. None: unless the owner says ``secure-sums=true``, or ``FEDCURV_SECURE_SUMS=1``
            in the environment.
        smallest_group: how many members a sum must have, >= 2; None for ``secure-group``, or 3.
        fewest_neighbours: how many others it must share its secrets among, >= 2, where there are
            so many; None for ``secure-neighbours``, or 64.
        smallest_threshold: the share of them that must be needed to read it, in (1/2, 1]; None for
            ``secure-threshold``, or 0.66.
        weight_keys: metrics that a server may weight by, which must be > 0: it learns for each
            client whether they are.
        signing_key: file of the node's own private key, in OpenSSH's form or PEM, Ed25519 or ECDSA
            (such as the one for ``--auth-supernode-private-key``); None for ``secure-key``, or no
            key.
        trusted_keys: public keys, as lines in OpenSSH's form by client id, or a folder of
            ``CLIENT-ID.pub``; None for ``secure-trusted``. Then all members must have signed by
            one of these; without it a server that plays members itself is not noticed.

    Raises:
        ValueError: for numbers out of range, for no weight's name, and for keys of other kinds.
        OSError: if a file cannot be read.
    """

    def __init__(
        self,
        *,
        plain: bool | None = False,
        smallest_group: int | None = None,
        fewest_neighbours: int | None = None,
        smallest_threshold: float | None = None,
        weight_keys: Collection[str] = ("num-examples",),
        signing_key: str | PathLike[str] | None = None,
        trusted_keys: Mapping[str, str] | str | PathLike[str] | None = None,
    ) -> None:
        if isinstance(weight_keys, str) or not weight_keys:
            raise ValueError(f"weight_keys must be names of metrics, got {weight_keys!r}")
        self._plain, self._smallest_group = plain, smallest_group
        self._weight_keys = tuple(weight_keys)
        self._fewest_neighbours, self._smallest_threshold = fewest_neighbours, smallest_threshold
        self._signing_key, self._trusted_keys = signing_key, trusted_keys
        self._floors({})  # what is given must be right from the beginning
        self._identity({})

    def __call__(self, message: Message, context: Context, call_next: CallNext) -> Message:
        """Answer a stage of a secure sum, or let the app answer.

        Raises:
            RefusedByNode: for a message that would give more than a sum away.
            ValueError: for one that is not fit for use.
        """
        config = stage_in(message.content) if message.has_content() else None
        if config is not None:
            return self._answer(config, message, context, call_next)
        category = message.metadata.message_type.partition(".")[0]
        if category in ("train", "evaluate"):
            _forget(context)
        if category == "train" and not self._may_be_plain(context):
            raise RefusedByNode(
                "expected a server with SecureSums, got one that wants this node's numbers in the "
                "clear; let the server use fedcurv.strategies.SecureSums, or the node's owner say "
                "SecureSumsMod(plain=True)"
            )
        return call_next(message, context)

    def _answer(
        self, config: ConfigRecord, message: Message, context: Context, call_next: CallNext
    ) -> Message:
        node = self._node(context)
        stage = config.get("stage")
        reply: Stage
        if stage == AskForMasked.stage:
            return self._train(node, AskForMasked.from_config(config), message, context, call_next)
        if stage == AskForKeys.stage:
            begin = AskForKeys.from_config(config)
            reply = node.keys(begin)
            if not node.knows_others:
                once_a_run(context, begin.federation, _PLACE)(_STRANGERS)
        elif stage == AskForShares.stage:
            reply = node.shares(AskForShares.from_config(config))
        elif stage == AskForAgreement.stage:
            reply = node.agree(AskForAgreement.from_config(config))
        elif stage == AskForUnmasking.stage:
            reply = node.reveal(AskForUnmasking.from_config(config))
        else:
            raise ValueError(f"expected a stage of a secure sum, got {str(stage)[:40]!r}")
        _remember(context, node.memory)
        return _reply(message, context, {SECURE: reply.to_config()})

    def _train(
        self,
        node: Node,
        asked: AskForMasked,
        message: Message,
        context: Context,
        call_next: CallNext,
    ) -> Message:
        plan = Plan.from_text(asked.plan)
        if plan.clients < len(asked.present):
            raise RefusedByNode("expected scales for all that are present, got some for fewer")
        if plan.weighted_by_key not in self._weight_keys:
            raise RefusedByNode(
                f"expected sums weighted by {' or '.join(self._weight_keys)}, got "
                f"{plan.weighted_by_key[:60]!r}; the node's owner may allow it (weight_keys)"
            )
        sent = _model_in(message.content)
        node.accept(asked, digest_of_message(message))
        _remember(context, node.memory)  # before training: these masks are for one reply
        message.content.pop(SECURE)
        _tell_app(message.content, asked)
        try:
            reply = call_next(message, context)
            if reply is None or reply.has_error():
                _forget(context)
                return reply
            form, words = vector_of(plan, sent, reply.content)
        except BaseException:
            _forget(context)
            raise
        node.add_masks(words)
        packed = Array(np.frombuffer(words.to_bytes(), np.uint8))
        masked = Masked(*asked.round_name, form=form.to_text())
        words_record = ArrayRecord({"words": packed})
        return _reply(message, context, {SECURE: masked.to_config(), MASKED: words_record})

    def _node(self, context: Context) -> Node:
        config = context.node_config
        return Node(
            client_id_of(context),
            _memory_in(context),
            identity=self._identity(config),
            floors=self._floors(config),
        )

    def _floors(self, node_config: Mapping[str, Any]) -> Floors:
        """Return below which numbers the node takes no part."""

        def of(given: float | None, key: str, default: float) -> Any:
            return node_config.get(key, default) if given is None else given

        return Floors(
            _whole("smallest_group", of(self._smallest_group, _GROUP, SMALLEST_GROUP)),
            _whole(
                "fewest_neighbours", of(self._fewest_neighbours, _NEIGHBOURS, DEFAULT_NEIGHBOURS)
            ),
            _majority(of(self._smallest_threshold, _THRESHOLD, SMALLEST_THRESHOLD)),
        )

    def _identity(self, node_config: Mapping[str, Any]) -> Identity:
        key = self._signing_key or node_config.get(_KEY)
        trusted = self._trusted_keys or node_config.get(_TRUSTED)
        return Anybody() if key is None and trusted is None else Signatures(key, trusted)

    def _may_be_plain(self, context: Context) -> bool:
        if self._plain is not None:
            return self._plain
        return not owner_allows(context.node_config, ONLY, ONLY_VARIABLE)


secure_sums_mod = SecureSumsMod()


def _reply(
    message: Message, context: Context, records: Mapping[str, ConfigRecord | ArrayRecord]
) -> Message:
    return Message(RecordDict({CONFIG: pack_client_id(context), **records}), reply_to=message)


def _model_in(content: RecordDict) -> ArrayRecord:
    records = [record for name, record in content.array_records.items() if name not in STATISTICS]
    if len(records) != 1:
        raise ValueError(
            f"expected one ArrayRecord with the model in the message, got {len(records)}"
        )
    return ArrayRecord(dict(records[0]))  # whatever the app does with the message


def _tell_app(content: RecordDict, asked: AskForMasked) -> None:
    """Give the app's side of FedCurv the sums as numbers, and the scales for its report."""
    if asked.sums_plan:
        unpack_exact_sums(content, Plan.from_text(asked.sums_plan))
    if (config := content.config_records.get(CONFIG)) is not None:
        content[CONFIG] = ConfigRecord({**config, SECURE_PLAN: asked.plan})


def _memory_in(context: Context) -> Memory:
    config = context.state.config_records.get(_PLACE)
    return Memory() if config is None else Memory.from_config(config)


def _remember(context: Context, memory: Memory) -> None:
    context.state[_PLACE] = memory.to_config()


def _forget(context: Context) -> None:
    """Let go of the secrets of a round that is over for this node."""
    if _PLACE in context.state:
        _remember(context, _memory_in(context).without_secrets())
