"""PyTorch on a GPU: the same model, trained in eager mode or with a CUDA graph of the whole step.

In bfloat16, the parameters, activations and gradients are bfloat16, and AdamW updates float32 copies of the parameters
that this code maintains, as RussellGrad does. That is less work for PyTorch than autocast, which rounds the float32
parameters in every step and computes layer norms in float32. The logits are cast to float32 for the cross-entropy;
otherwise the loss would be bfloat16, with two significant digits.
"""

from itertools import cycle, islice

import torch
import torch.nn.functional as F  # noqa: N812 - PyTorch's own abbreviation

from benchmarks.candidates import torch_eager
from benchmarks.candidates.gpu_graph import graph_nodes
from benchmarks.candidates.model import LEARNING_RATE, N_BATCHES, PRECISIONS, WEIGHT_DECAY, Size, batches

_WARM_UP = 3  # steps on a side stream before the capture, as PyTorch's documentation of CUDA graphs requires


class Torch:
    """A model and its optimizer; `step` takes one step on the next batch, which is already on the device.

    Args:
        precision: a key of PRECISIONS, except "fp64".
        captured: whether steps are captured and replayed (`torch.cuda.graph`).
        device: a type of PyTorch's devices; "cpu" for a trial without a GPU.
    """

    def __init__(self, size: Size, precision: str, *, captured: bool = False, device: str = "cuda") -> None:
        self.size, self.precision, self.captured, self.device = size, precision, captured, device

    def prepare(self) -> None:
        dtype, level = PRECISIONS[self.precision]
        torch.set_float32_matmul_precision(level)
        self.parameters, self._forward = torch_eager.model(self.size, getattr(torch, dtype), self.device)
        self._half = dtype == "bfloat16"
        self._masters = [p.detach().float() for p in self.parameters] if self._half else self.parameters
        self._master_grads = [torch.empty_like(master) for master in self._masters] if self._half else []
        for master, grad in zip(
            self._masters, self._master_grads, strict=False
        ):  # empty in float32, where masters are the parameters
            master.grad = grad
        self._optimizer = torch.optim.AdamW(
            self._masters, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True, capturable=self.captured
        )
        ids = [[torch.from_numpy(a).to(self.device) for a in pair] for pair in islice(batches(self.size), N_BATCHES)]
        self._data = cycle(ids)
        self._inputs, self._targets = (tensor.clone() for tensor in ids[0])  # inputs of the captured graph
        self._taken = 0
        self._graph: torch.cuda.CUDAGraph | None = None

    def step(self) -> torch.Tensor:
        inputs, targets = next(self._data)
        if not self.captured:
            return self._work(inputs, targets)
        self._inputs.copy_(inputs)
        self._targets.copy_(targets)
        self._taken += 1
        if self._taken <= _WARM_UP:
            return self._on_side_stream()
        if self._graph is None:
            self._graph = torch.cuda.CUDAGraph(keep_graph=True)  # for `launches`
            with torch.cuda.graph(self._graph):
                self._loss = self._work(self._inputs, self._targets)
        self._graph.replay()
        return self._loss

    def _on_side_stream(self) -> torch.Tensor:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            loss = self._work(self._inputs, self._targets)
        torch.cuda.current_stream().wait_stream(side)
        return loss

    def _work(self, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        for parameter in self.parameters:
            parameter.grad = None
        logits = self._forward(inputs).float()
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        loss.backward()
        if self._half:
            torch._foreach_copy_(self._master_grads, [p.grad for p in self.parameters if p.grad is not None])
        self._optimizer.step()
        if self._half:
            with torch.no_grad():
                torch._foreach_copy_(self.parameters, self._masters)
        return loss.detach()

    def read(self, loss: torch.Tensor) -> float:
        return float(loss)

    def gradients(self) -> list[float]:
        """The norm of each parameter's gradient in the last step."""
        # On the host: MPS has no float64.
        return [float(p.grad.cpu().double().norm()) for p in self.parameters if p.grad is not None]

    def synchronize(self) -> None:
        synchronize(self.device)

    def peak_memory(self) -> dict[str, int]:
        return peak_memory(self.device)

    def launches(self) -> dict[str, int]:
        """The nodes of the captured step's CUDA graph, by kind; empty if it is not captured, and on ROCm."""
        return {} if self._graph is None or torch.version.hip else graph_nodes(self._graph.raw_cuda_graph())


def synchronize(device: str) -> None:
    if device != "cpu":
        torch.accelerator.synchronize()


def peak_memory(device: str) -> dict[str, int]:
    """Peak bytes that PyTorch's allocator reserved, and the peak of the bytes in use, where PyTorch counts them.

    MPS counts no peaks: the bytes reserved now.
    """
    functions = {
        "max_memory_reserved": "reserved", "driver_allocated_memory": "reserved", "max_memory_allocated": "allocated"
    }  # fmt: skip
    module = torch.get_device_module(device)
    return {what: getattr(module, name)() for name, what in functions.items() if hasattr(module, name)}


def build(size: str, precision: str, mode: str, device: str = "cuda") -> Torch:
    """Build the candidate from strings; `mode` is "captured" or "uncaptured"."""
    captured = {"captured": True, "uncaptured": False}[mode]
    return Torch(Size.parse(size), precision, captured=captured, device=device)
