"""How exactly float32 is multiplied, under PyTorch's names for it."""

from .backend import set_precision_of_backends

LEVELS = ("highest", "high", "medium")
_level = "highest"


def set_matmul_precision(level: str) -> None:
    """Choose how products of float32 matrices are computed, on every backend that has a choice.

    Sums are in float32 at every level. NumPy computes in float32 whatever the level: only a GPU is faster for less.

    Args:
        level: "highest": float32; "high": the factors rounded to TF32 (10 bits of fraction); "medium": the factors
            rounded to bfloat16 (7 bits).

    Raises:
        ValueError: another level.
    """
    global _level
    if level not in LEVELS:
        raise ValueError(f"set_matmul_precision: the level must be one of {', '.join(LEVELS)}, got {level!r}")
    _level = level
    set_precision_of_backends(level)


def get_matmul_precision() -> str:
    """The level in use: "highest" unless `set_matmul_precision` chose another."""
    return _level
