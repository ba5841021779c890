"""Recurrent layers, GRU and LSTM: a loop over the steps of a sequence.

Shapes: T steps of B sequences with I = input_size, H = hidden_size, L = num_layers, D = 2 if bidirectional, else 1.
"""

import math
from typing import TypeAlias

from .. import init
from ..creation import zeros
from ..functional import linear
from ..module import Module
from ..random import Generator
from ..tensor import Tensor
from .check import check_input, flags, positive
from .dropout import Dropout

State: TypeAlias = tuple[Tensor, ...]  # (h,) of a GRU, (h, c) of an LSTM
_KINDS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


class _Recurrent(Module):
    """Base class of GRU and LSTM. A subclass defines its number of gates, and `_cell`, which computes one step."""

    gates: int
    states: tuple[str, ...]

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        generator: Generator | None = None,
    ) -> None:
        name = type(self).__name__
        positive(name, input_size=input_size, hidden_size=hidden_size, num_layers=num_layers)
        flags(name, bias=bias, batch_first=batch_first, bidirectional=bidirectional)
        if dropout and num_layers == 1:
            raise ValueError(
                f"{name}: dropout={dropout} needs num_layers > 1, because it is applied between layers; for one layer, "
                "apply Dropout to the output"
            )
        self.input_size, self.hidden_size, self.num_layers = input_size, hidden_size, num_layers
        self.batch_first, self.bidirectional = batch_first, bidirectional
        self.dropout = Dropout(dropout)
        directions = ("", "_reverse") if bidirectional else ("",)
        # One pass over the sequence for each layer and direction, and how the names of its parameters end.
        self._passes = [f"l{layer}{direction}" for layer in range(num_layers) for direction in directions]
        bound, rows = 1 / math.sqrt(hidden_size), self.gates * hidden_size
        for i, end in enumerate(self._passes):
            width = input_size if i < len(directions) else hidden_size * len(directions)
            shapes = (rows, width), (rows, hidden_size), (rows,), (rows,)
            for kind, shape in zip(_KINDS, shapes, strict=True):
                is_present = bias or kind.startswith("weight")
                parameter = init.uniform(shape, -bound, bound, generator=generator) if is_present else None
                setattr(self, f"{kind}_{end}", parameter)

    def _run(self, x: Tensor, initial: State | None) -> tuple[Tensor, State]:
        """All layers: the outputs of the last one, and the last states of all passes."""
        size = self.input_size
        layout = f"(B, T, {size})" if self.batch_first else f"(T, B, {size})"
        expected = f"{layout} or (T, {size}), with T of at least 1"
        axis = 1 if self.batch_first and len(getattr(x, "shape", ())) == 3 else 0
        check_input(self, x, lambda s: len(s) in (2, 3) and s[-1] == size and s[axis] > 0, expected)
        is_batch = x.ndim == 3
        if not is_batch:
            x = x.expand_dims(1)
        elif self.batch_first:
            x = x.swapaxes(0, 1)
        states, directions = self._initial_states(x, initial, is_batch), len(self._passes) // self.num_layers
        last: list[State] = []
        for layer in range(self.num_layers):
            if layer:  # the batch is the first axis of dropout's random numbers
                x = self.dropout(x.swapaxes(0, 1)).swapaxes(0, 1)
            outputs = []
            for i in range(layer * directions, (layer + 1) * directions):
                output, state = self._pass(self._passes[i], x, tuple(s[i] for s in states))
                outputs.append(output)
                last.append(state)
            x = Tensor.concatenate(outputs, -1) if self.bidirectional else outputs[0]  # (T, B, D H)
        final = tuple(Tensor.stack(of_passes) for of_passes in zip(*last, strict=True))
        if not is_batch:
            return x[:, 0], tuple(s[:, 0] for s in final)
        return x.swapaxes(0, 1) if self.batch_first else x, final

    def _pass(self, end: str, x: Tensor, state: State) -> tuple[Tensor, State]:
        """One layer in one direction: (T, B, width) -> (T, B, H), and the state after the last step."""
        weight_ih, weight_hh, bias_ih, bias_hh = (getattr(self, f"{kind}_{end}") for kind in _KINDS)
        steps = _steps(linear(x, weight_ih.T, bias_ih))  # one product for all steps
        order = -1 if end.endswith("_reverse") else 1
        weight, outputs = weight_hh.T, []
        for of_x in steps[::order]:
            state = self._cell(of_x, linear(state[0], weight, bias_hh), state)
            outputs.append(state[0])
        return Tensor.stack(outputs[::order]), state

    def _cell(self, of_x: Tensor, of_h: Tensor, state: State) -> State:
        """The next state, from the products of the input and of h with their weights, (B, gates H)."""
        raise NotImplementedError

    def _initial_states(self, x: Tensor, initial: State | None, is_batch: bool) -> State:
        """The states (L D, B, H), zeros by default. Raises ValueError for other shapes."""
        shape = (len(self._passes), x.shape[1], self.hidden_size)
        if initial is None:
            return (zeros(shape, x.dtype, requires_grad=False, backend=x.backend.root),) * len(self.states)
        expected = shape if is_batch else (shape[0], shape[2])
        for name, state in zip(self.states, initial, strict=True):
            if not isinstance(state, Tensor) or state.shape != expected:
                found = f"shape {state.shape}" if isinstance(state, Tensor) else f"type {type(state).__name__}"
                raise ValueError(f"{type(self).__name__}: {name} has {found}, expected a Tensor {expected}")
        return initial if is_batch else tuple(state.expand_dims(1) for state in initial)


def _steps(x: Tensor) -> list[Tensor]:
    """[x[0], x[1], ...], by halves: the gradient of x[i] is an array of the size of x, one for each of T steps."""
    if len(x) == 1:
        return [x[0]]
    half = len(x) // 2
    return _steps(x[:half]) + _steps(x[half:])


class GRU(_Recurrent):
    """Gated recurrent units, as `torch.nn.GRU`. Cho et al., arXiv:1406.1078.

        r, z = sigmoid(W_r x + U_r h), sigmoid(W_z x + U_z h)
        n = tanh(W_n x + r * (U_n h))
        h = (1 - z) * n + z * h

    Biases are added to each product. (The paper has U_n (r * h); PyTorch and this layer have r * (U_n h).) The
    parameters are initially uniform on [-1 / sqrt(H), 1 / sqrt(H)).

        output, h = GRU(10, 20)(zeros((5, 3, 10)))  # (5, 3, 20), (1, 3, 20)

    Args:
        input_size: I, the length of the input's last axis.
        hidden_size: H, the length of a state.
        num_layers: L, the number of stacked layers. Each takes the output of the one before.
        bias: whether to add biases.
        batch_first: whether input and output are (B, T, ...) instead of (T, B, ...). The state is (L D, B, H)
            in both cases.
        dropout: the probability of dropout between layers; needs num_layers > 1.
        bidirectional: whether each layer also reads the sequence from its end. The outputs are concatenated.
        generator: the generator of the initial parameters; by default `random.default_generator()`.

    Attributes:
        weight_ih_l0, weight_hh_l0, bias_ih_l0, bias_hh_l0: (3 H, I), (3 H, H), (3 H,) and (3 H,), for r, z and n. A
            further layer has weight_ih_l1 (3 H, D H) and so on; the other direction has weight_ih_l0_reverse.
        dropout: the `Dropout` layer.

    Raises:
        ValueError: a size is not positive, or dropout is given for one layer. TypeError: an argument has a wrong type.
    """

    gates, states = 3, ("hx",)

    def forward(self, x: Tensor, hx: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(T, B, I), initial state (L D, B, H) or None for zeros -> output (T, B, D H), last state (L D, B, H).

        With batch_first, x is (B, T, I) and the output (B, T, D H). An unbatched x (T, I) gives (T, D H), with states
        (L D, H). Raises ValueError for other shapes.
        """
        output, (h,) = self._run(x, None if hx is None else (hx,))
        return output, h

    def _cell(self, of_x: Tensor, of_h: Tensor, state: State) -> State:
        (h,) = state
        size = 2 * self.hidden_size
        r, z = (of_x[:, :size] + of_h[:, :size]).sigmoid().split(self.hidden_size, -1)
        n = (of_x[:, size:] + r * of_h[:, size:]).tanh()
        return (n + z * (h - n),)


class LSTM(_Recurrent):
    """Long short-term memory, as `torch.nn.LSTM`. Hochreiter & Schmidhuber, Neural Computation 9 (1997).

        i, f, o = sigmoid(W_i x + U_i h), sigmoid(W_f x + U_f h), sigmoid(W_o x + U_o h)
        c = f * c + i * tanh(W_g x + U_g h)
        h = o * tanh(c)

    Biases are added to each product. Arguments, attributes and errors are those of `GRU`; the parameters have 4 H rows,
    for i, f, g and o.

        output, (h, c) = LSTM(10, 20)(zeros((5, 3, 10)))  # (5, 3, 20), (1, 3, 20) twice
    """

    gates, states = 4, ("hx[0]", "hx[1]")

    def forward(self, x: Tensor, hx: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """As `GRU.forward`, with a state of two Tensors, (h, c), of shape (L D, B, H) each. Raises as it does."""
        if hx is not None and not (isinstance(hx, (tuple, list)) and len(hx) == 2):
            raise ValueError(f"LSTM: hx must be a tuple of two Tensors, (h, c), got a {type(hx).__name__}")
        output, (h, c) = self._run(x, None if hx is None else tuple(hx))
        return output, (h, c)

    def _cell(self, of_x: Tensor, of_h: Tensor, state: State) -> State:
        i, f, g, o = (of_x + of_h).split(self.hidden_size, -1)
        c = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c
