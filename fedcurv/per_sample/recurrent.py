"""LSTM, GRU and plain recurrent layers as two linear maps each, and the steps between them.

A layer multiplies its inputs and its states by weights at every step. The steps, and the way of the
gradients back through them, are written out here. They give the gradient of both products at every
step, from which those of the weights follow as for any linear map with several positions.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from fedcurv.per_sample.projections import Projection, StandIn
from fedcurv.per_sample.rules.linear import Linear
from fedcurv.per_sample.rules.registry import register_rule

_KINDS = (nn.LSTM, nn.GRU, nn.RNN)

# of a layer, (N, H): the hidden state, and the cell of an LSTM
State = tuple[Tensor, ...]


class StateProjection(Projection):
    """The linear map of the states, whose product the steps have formed: here it is not.

    Its outputs are there for their gradient; their values are zeros.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return zeros in the shape of x·Wᵀ + b, whose gradient leads to W and b."""
        product: Tensor = _ProductFormedElsewhere.apply(x, self.rows("weight"), self.rows("bias"))
        return product


register_rule(StateProjection)(Linear)


class _ProductFormedElsewhere(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x)
        return x.new_zeros(()).expand(*x.shape[:-1], len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (x,), delta = ctx.saved_tensors, gradients[0].flatten(0, 1)
        of_bias = delta.sum(0) if ctx.needs_input_grad[2] else None
        return None, delta.T @ x.flatten(0, 1), of_bias


class RecurrentByProjections(StandIn):
    """Stands in for a recurrent module's ``forward``.

    Args:
        module: see :meth:`fits`.
    """

    under_vmap = False

    def __init__(self, module: nn.RNNBase) -> None:
        self._recurrent = module
        ends = [
            f"l{layer}{direction}"
            for layer in range(module.num_layers)
            for direction in (("", "_reverse") if module.bidirectional else ("",))
        ]
        super().__init__(
            module,
            {
                f"{part}_{end}": kind(
                    module,
                    {
                        "weight": (f"weight_{part}_{end}", slice(None)),
                        "bias": (f"bias_{part}_{end}", slice(None)),
                    },
                )
                for end in ends
                for part, kind in (("ih", Projection), ("hh", StateProjection))
            },
        )
        self._ends = ends

    @staticmethod
    def fits(module: nn.Module) -> bool:
        """Return whether this computes what the module does, as it is configured."""
        return (
            isinstance(module, _KINDS)
            and type(module) in _KINDS
            and not module.proj_size
            and "forward" not in vars(module)
            and all(name in module._parameters for name in module._flat_weights_names)
        )

    def __call__(self, input: Any, hx: Any = None) -> Any:
        """Return what the module would."""
        module = self._recurrent
        plain = isinstance(input, Tensor) and input.ndim == 3 and not input.is_nested
        draws = module.training and module.dropout and module.num_layers > 1
        if not plain or not input.numel() or draws or not torch.is_grad_enabled():
            return type(module).forward(module, input, hx)
        if hx is not None:
            module.check_forward_args(input, hx, None)  # a state of another size would be repeated
        x = input if module.batch_first else input.transpose(0, 1)
        states = self._states(x, hx)
        ends: list[State] = []
        each = 2 if module.bidirectional else 1
        for first in range(0, len(self._ends), each):
            outputs = []
            for place in range(first, first + each):
                output, last = self._layer(x, self._ends[place], states[place])
                outputs.append(output)
                ends.append(last)
            x = outputs[0] if each == 1 else torch.cat(outputs, -1)
        output = x if module.batch_first else x.transpose(0, 1)
        last_of_all = tuple(torch.stack(tensors) for tensors in zip(*ends, strict=True))
        return output, last_of_all if isinstance(module, nn.LSTM) else last_of_all[0]

    def _states(self, x: Tensor, hx: Any) -> list[State]:
        """Return the states before the first step, by layer and direction."""
        number = 2 if isinstance(self._recurrent, nn.LSTM) else 1
        if hx is None:
            zeros = x.new_zeros(len(x), self._recurrent.hidden_size)
            return [(zeros,) * number for _ in self._ends]
        given = tuple(hx) if isinstance(self._recurrent, nn.LSTM) else (hx,)
        return list(zip(*(tensor.unbind() for tensor in given), strict=True))

    def _layer(self, x: Tensor, end: str, state: State) -> tuple[Tensor, State]:
        """Return a layer's outputs, (N, T, H), and its state after the last step."""
        backwards = end.endswith("_reverse")
        x = x.flip(1) if backwards else x
        of_inputs, of_states = self.projections[f"ih_{end}"], self.projections[f"hh_{end}"]
        weight, bias = of_states.rows("weight"), of_states.rows("bias")
        assert weight is not None
        weight = weight.detach()
        # the steps are taken in the weights' own type, where autocast would take another
        product, state = of_inputs(x).to(weight.dtype), tuple(s.to(weight.dtype) for s in state)
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            by_step = product.detach().transpose(0, 1).contiguous()
            bias = by_step.new_zeros(len(weight)) if bias is None else bias
            hidden, saved = self._steps(by_step, weight, bias, [s.detach() for s in state])
            before = torch.cat([state[0].detach().unsqueeze(0), hidden[:-1]]).transpose(0, 1)
        kind = _LstmSteps if isinstance(self._recurrent, nn.LSTM) else _Steps
        results = kind.apply(product, of_states(before), weight, *state, hidden, *saved)
        outputs, *cell = results if isinstance(results, tuple) else (results,)
        last = (outputs[:, -1], *cell)
        return outputs.flip(1) if backwards else outputs, last

    def _steps(
        self, product: Tensor, weight: Tensor, bias: Tensor, state: list[Tensor]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the hidden states after every step, (T, N, H), and what the way back needs."""
        if isinstance(self._recurrent, nn.LSTM):
            return _lstm(product + bias, weight, state)
        if isinstance(self._recurrent, nn.GRU):
            return _gru(product, weight, bias, state[0])
        return _plain(product + bias, weight, state[0], self._recurrent.nonlinearity == "tanh")


def _lstm(
    product: Tensor, weight: Tensor, state: list[Tensor]
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Take the steps of an LSTM, given the products of the inputs, (T, N, 4H)."""
    h, c = state
    steps, samples, size = len(product), *h.shape
    i_f = product.new_empty(steps, samples, 2 * size)
    g, o, cells, tanhs, hidden = product.new_empty(5, steps, samples, size)
    for t in range(steps):
        a = torch.addmm(product[t], h, weight.T)
        torch.sigmoid(a[:, : 2 * size], out=i_f[t])
        torch.tanh(a[:, 2 * size : 3 * size], out=g[t])
        torch.sigmoid(a[:, 3 * size :], out=o[t])
        i, f = i_f[t].chunk(2, 1)
        c = torch.addcmul(i * g[t], f, c, out=cells[t])
        h = torch.mul(o[t], torch.tanh(c, out=tanhs[t]), out=hidden[t])
    i, f = i_f.chunk(2, 2)
    before = torch.cat([state[1].unsqueeze(0), cells[:-1]])
    # by how much the gates' products move with the cell's gradient, and with the output's
    slopes = (g * i * (1 - i), before * f * (1 - f), i * (1 - g * g), tanhs * o * (1 - o))
    return hidden, (cells[-1], f, o * (1 - tanhs * tanhs), torch.cat(slopes, -1))


def _gru(
    product: Tensor, weight: Tensor, bias: Tensor, h: Tensor
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Take the steps of a GRU, given the products of the inputs, (T, N, 3H)."""
    first, size = h, h.shape[1]
    r_z = product.new_empty(*product.shape[:2], 2 * size)
    n, of_n, hidden = product.new_empty(3, *product.shape[:2], size)
    for t in range(len(product)):
        a = torch.addmm(bias, h, weight.T)
        both = product[t, :, : 2 * size] + a[:, : 2 * size]
        r, z = torch.sigmoid(both, out=r_z[t]).chunk(2, 1)
        of_n[t] = a[:, 2 * size :]
        torch.tanh(torch.addcmul(product[t, :, 2 * size :], r, of_n[t]), out=n[t])
        h = torch.lerp(n[t], h, z, out=hidden[t])
    (r, z), before = r_z.chunk(2, 2), torch.cat([first.unsqueeze(0), hidden[:-1]])
    of_new = (1 - z) * (1 - n * n)
    of_r, of_z = of_new * of_n * r * (1 - r), (before - n) * z * (1 - z)
    to_inputs, to_states = (of_r, of_z, of_new), (of_r, of_z, of_new * r)
    return hidden, (torch.cat(to_inputs, -1), torch.cat(to_states, -1), z)


def _plain(
    product: Tensor, weight: Tensor, h: Tensor, tanh: bool
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Take the steps of a plain recurrent layer, given the products of the inputs, (T, N, H)."""
    hidden = torch.empty_like(product)
    for t in range(len(product)):
        a = torch.addmm(product[t], h, weight.T)
        h = torch.tanh(a, out=hidden[t]) if tanh else torch.clamp(a, min=0, out=hidden[t])
    slope = 1 - hidden * hidden if tanh else (hidden > 0).to(hidden.dtype)
    return hidden, (slope, slope, torch.zeros_like(slope))


class _LstmSteps(torch.autograd.Function):
    """From both products, (N, T, 4H), and the state before, to the outputs and the last cell."""

    @staticmethod
    def forward(ctx: Any, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        _, _, weight, _, _, hidden, last, *saved = tensors
        ctx.save_for_backward(weight, *saved)
        return hidden.transpose(0, 1).clone(), last.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        weight, f, of_cell, slopes = ctx.saved_tensors
        of_outputs, cell = gradients
        hidden = torch.zeros_like(cell)
        deltas = torch.empty_like(slopes)
        for t in reversed(range(len(f))):
            hidden = hidden + of_outputs[:, t]
            cell = torch.addcmul(cell, hidden, of_cell[t])
            delta = torch.mul(torch.cat((cell, cell, cell, hidden), 1), slopes[t], out=deltas[t])
            cell, hidden = cell * f[t], delta @ weight
        delta = deltas.transpose(0, 1).contiguous()
        return delta, delta, None, hidden, cell, *[None] * 5


class _Steps(torch.autograd.Function):
    """From both products, (N, T, ...), and the state before, to the outputs.

    What is saved is by how much the products of inputs and of states move with the output's
    gradient, and how much of that goes on to the state before unchanged.
    """

    @staticmethod
    def forward(ctx: Any, *tensors: Tensor) -> Tensor:
        _, _, weight, _, hidden, *saved = tensors
        ctx.save_for_backward(weight, *saved)
        return hidden.transpose(0, 1).clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        weight, to_inputs, to_states, kept = ctx.saved_tensors
        (of_outputs,) = gradients
        gates = to_states.shape[-1] // kept.shape[-1]
        hidden = torch.zeros_like(kept[0])
        each = torch.empty_like(kept)
        for t in reversed(range(len(kept))):
            torch.add(hidden, of_outputs[:, t], out=each[t])
            delta = each[t].repeat(1, gates) * to_states[t]
            hidden = torch.addcmul(delta @ weight, each[t], kept[t])
        by_gate = each.repeat(1, 1, gates).transpose(0, 1)
        of_inputs, of_states = (
            by_gate * to_inputs.transpose(0, 1),
            by_gate * to_states.transpose(0, 1),
        )
        return of_inputs, of_states, None, hidden, *[None] * 4
