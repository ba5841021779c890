"""Time of convolution and pooling, forward and backward, against PyTorch: `python -m benchmarks.convolution`."""

from benchmarks.candidates.conv_cases import CASES
from benchmarks.measure import OURS, Table, check_close, run_alone, take_turns
from benchmarks.train_step import TORCH

MODES = {"both": "forward and backward", "forward": "forward"}
ROUNDS, SECONDS, BURST = 9, 20.0, 0.03


def table(mode: str, cases: list[str], rounds: int, burst: float) -> Table:
    notes = [
        f"{MODES[mode].capitalize()}, of one operation. All operands require gradients; forward alone is in `no_grad`. "
        '"32 of 3" is 32 outputs with kernels of 3 x 3. The norms of outputs and gradients agree within 1e-3.'
    ]
    result = Table(f"convolution {mode}", f"Convolution and pooling, {MODES[mode]}", "op", "milliseconds", notes)
    for case in cases:
        everyone = {OURS: ("conv_ours", "op", case, mode), TORCH: ("conv_torch", "op", case, mode)}
        result.add(case, take_turns(everyone, rounds, seconds=SECONDS, burst=burst, check=check_close(case, 1e-3)))
    return result


def tables(quick: bool = False) -> list[Table]:
    if quick:
        return [table(mode, [next(iter(CASES))], 1, 0.0) for mode in MODES]
    return [table(mode, list(CASES), ROUNDS, BURST) for mode in MODES]


if __name__ == "__main__":
    run_alone(tables, "convolution", "Time convolution and pooling against PyTorch.")
