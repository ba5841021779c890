"""RussellGrad on a GPU: a model trained with the CuPy or torch backend, optionally captured as a CUDA graph."""

from itertools import cycle, islice
from typing import Any

import numpy as np

from benchmarks.candidates.gpu_graph import graph_nodes
from benchmarks.candidates.model import (
    LEARNING_RATE,
    N_BATCHES,
    PRECISIONS,
    WEIGHT_DECAY,
    Size,
    batches,
    build_model,
)
from russellgrad import Tensor, compile_step, set_matmul_precision, use_backend
from russellgrad.loss import cross_entropy_loss
from russellgrad.optimizer import AdamWOptimizer
from russellgrad.tokenizer import TokenIds


class Ours:
    """A model and its optimizer; `step` takes one step on the next batch, which is already on the device.

    Args:
        precision: a key of PRECISIONS.
        captured: whether steps are captured and replayed (`compile_step`).
        backend: "cupy", "torch:cuda", "torch:mps" ..., or "numpy" for the reference on the host.
        clip: the largest norm of the gradients; 0 for no clipping.
    """

    def __init__(
        self, size: Size, precision: str, *, captured: bool = False, backend: str = "cupy", clip: float = 0.0
    ) -> None:
        self.size, self.precision, self.captured, self.backend, self.clip = size, precision, captured, backend, clip
        self._torch_device = backend.removeprefix("torch:") if backend.startswith("torch:") else ""
        self._peak: dict[str, int] = {"pool": 0, "recorded": 0}

    def prepare(self) -> None:
        dtype, level = PRECISIONS[self.precision]
        set_matmul_precision(level)
        with use_backend("numpy"):  # NumPy has no bfloat16: load_state_dict rounds the weights to it
            weights = build_model(self.size, "float64" if dtype == "float64" else "float32").state_dict()
        with use_backend(self.backend):
            self.model = build_model(self.size, dtype)
        self.model.load_state_dict(weights)
        self.optimizer = AdamWOptimizer(self.model.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY, flat=True)
        ids = self.model.tokenizer.ids
        self._data = cycle([(ids(x), ids(y)) for x, y in islice(batches(self.size), N_BATCHES)])
        self._take = compile_step(self._step) if self.captured else self._step

    def _step(self, inputs: TokenIds, targets: TokenIds) -> Tensor:
        self.optimizer.zero_grad()
        loss = cross_entropy_loss(self.model(inputs), targets, self.model.tokenizer.pad_token_id)
        loss.backward()
        self.optimizer.step(max_norm=self.clip or None)
        return loss.detach()

    def step(self) -> Tensor:
        return self._take(*next(self._data))

    def read(self, loss: Tensor) -> float:
        self._peak = max(self._peak, self._memory(), key=lambda memory: sum(memory.values()))
        return float(loss.item())

    def gradients(self) -> list[float]:
        """The norm of each parameter's gradient in the last step."""
        return [float(np.linalg.norm(_host_array(p))) for p in self.model.parameters()]

    def synchronize(self) -> None:
        if self.backend == "cupy":
            import cupy

            cupy.cuda.Device().synchronize()
        elif self._torch_device:
            from benchmarks.candidates.gpu_torch import synchronize

            synchronize(self._torch_device)

    def peak_memory(self) -> dict[str, int]:
        """Most bytes of CuPy's memory pool and the pools of captured steps, after one of the steps that were read.

        With the torch backend, those of PyTorch's allocator.
        """
        if self._torch_device:
            from benchmarks.candidates.gpu_torch import peak_memory

            return peak_memory(self._torch_device)
        return self._peak

    def _memory(self) -> dict[str, int]:
        if self.backend != "cupy":
            return self._peak
        import cupy

        return {
            "pool": cupy.get_default_memory_pool().total_bytes(),
            "recorded": sum(recording.pool.total_bytes() for recording in self._recordings()),
        }

    def launches(self) -> dict[str, int]:
        """The nodes of the captured step's CUDA graph, by kind; empty if it is not captured, and with PyTorch.

        PyTorch keeps the nodes on request only, which the backend does not make.
        """
        return graph_nodes(self._recordings()[0].graph.graph) if self.captured and self.backend == "cupy" else {}

    def _recordings(self) -> list[Any]:
        """The `Replay` of the CuPy backend for each capture of `compile_step`."""
        steps = vars(self._take)["captured"].values() if self.captured else ()
        return [step.replay for step in steps if step.replay]

    def save(self, path: str) -> None:
        """Write the parameters to an .npz file."""
        np.savez(path, **self.model.state_dict())


def _host_array(parameter: Tensor) -> Any:
    return Tensor(parameter.grad, requires_grad=False, backend=parameter.backend).numpy().astype(np.float64)


def build(size: str, precision: str, mode: str, backend: str = "cupy", clip: str = "0") -> Ours:
    """Build the candidate from strings; `mode` is "captured" or "uncaptured"."""
    captured = {"captured": True, "uncaptured": False}[mode]
    return Ours(Size.parse(size), precision, captured=captured, backend=backend, clip=float(clip))
