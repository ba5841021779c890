"""The kernels of a training step on a GPU and the time of each, measured by PyTorch's profiler.

    python -m benchmarks.gpu_profile 6/6/384/256/64 bf16
    python -m benchmarks.gpu_profile 6/6/384/256/64 bf16 torch
    python -m benchmarks.gpu_profile 6/6/384/256/64 bf16 --backend torch:cuda

The profiler sees all kernels of the process, those of CuPy and cuBLAS too. The step is not captured. It works on CUDA,
ROCm and XPU; PyTorch's profiler does not see the kernels of MPS.
"""

import argparse
from collections import defaultdict
from collections.abc import Iterable

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.candidates import gpu_ours, gpu_torch
from benchmarks.candidates.model import PRECISIONS
from benchmarks.gpu_process import REQUESTS
from benchmarks.train_step import SIZE_HEAD

WARM_UP, STEPS, MOST_LINES = 5, 10, 40


def table(events: Iterable[tuple[str, float]], steps: int) -> list[str]:
    """One line for each kernel, with its time and number of launches per step, the longest first.

    Args:
        events: the name of each kernel launched and its microseconds.
    """
    times: defaultdict[str, list[float]] = defaultdict(list)
    for name, microseconds in events:
        times[name].append(microseconds)
    ordered = sorted(times.items(), key=lambda item: -sum(item[1]))
    lines = [
        f"{sum(each) / steps / 1000:8.3f} ms {len(each) / steps:6.1f} x {sum(each) / len(each):8.1f} us  {name[:110]}"
        for name, each in ordered[:MOST_LINES]
    ]
    launches, total = sum(map(len, times.values())), sum(map(sum, times.values()))
    return [f"{total / steps / 1000:8.3f} ms {launches / steps:6.1f} launches in all", *lines]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_profile", description=__doc__)
    parser.add_argument("size", help=SIZE_HEAD)
    parser.add_argument("precision", choices=PRECISIONS)
    parser.add_argument("library", nargs="?", choices=("russellgrad", "torch"), default="russellgrad")
    parser.add_argument("--backend", choices=("cupy", "torch:cuda", "torch:xpu"), default="cupy", help="and its device")
    given = parser.parse_args()
    device = given.backend.partition(":")[2] or "cuda"
    torch.zeros(1, device=device)  # the profiler needs PyTorch's context of the device
    build, where = (gpu_ours.build, given.backend) if given.library == "russellgrad" else (gpu_torch.build, device)
    candidate = build(given.size, given.precision, "uncaptured", where)
    candidate.prepare()
    seconds = REQUESTS["seconds"](candidate, WARM_UP, STEPS)
    with profile(activities=[getattr(ProfilerActivity, device.upper())], acc_events=True) as profiler:
        for _ in range(STEPS):
            candidate.step()
        candidate.synchronize()
    on_device = [event for event in profiler.events() if event.device_type.name == device.upper()]
    print(f"{given.library}, {given.size}, {given.precision}: {1000 * seconds:.3f} ms a step without the profiler")
    print("\n".join(table([(event.name, event.device_time_total) for event in on_device], STEPS)))


if __name__ == "__main__":
    main()
