"""The precision of float32 matrix products, as `torch.set_float32_matmul_precision` sets it."""

from .backend import set_precision_of_backends

LEVELS = ("highest", "high", "medium")
_level = "highest"


def set_matmul_precision(level: str) -> None:
    """Set the precision of float32 matrix products, on all backends.

    At every level products are accumulated in float32. NumPy's and Numba's are always computed in float32. PyTorch's
    level is set for the whole process; on "torch:cpu", "medium" rounds on a processor with bfloat16 instructions.

    Args:
        level: "highest" computes in float32, "high" rounds the factors to TF32 (10 fraction bits), "medium" rounds
            them to bfloat16 (7 fraction bits). The products within `attention` are rounded to TF32 at both.

    Raises:
        ValueError: any other level.
    """
    global _level
    if level not in LEVELS:
        raise ValueError(f"set_matmul_precision: the level must be one of {', '.join(LEVELS)}, got {level!r}")
    _level = level
    set_precision_of_backends(level)


def get_matmul_precision() -> str:
    """The precision of float32 matrix products: "highest" by default. See `set_matmul_precision`."""
    return _level
