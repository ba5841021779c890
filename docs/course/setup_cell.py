# This cell prepares the pictures and the checks of the exercises. You need not read it.
import matplotlib.pyplot as plt
import numpy as np
from matplotlib_inline.backend_inline import set_matplotlib_formats

set_matplotlib_formats("svg")
GREY, BLUE, ORANGE, GREEN, PURPLE = "#7a7a7a", "#3b82d6", "#e07b39", "#3aa06b", "#b565c9"
plt.rcParams.update({"figure.figsize": (5, 2.8), "figure.facecolor": "none", "axes.facecolor": "none"})
plt.rcParams["font.size"] = 11
plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False})
plt.rcParams["axes.prop_cycle"] = plt.cycler(color=[BLUE, ORANGE, GREEN, PURPLE])
for name in ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color", "legend.labelcolor"):
    plt.rcParams[name] = GREY


def expect(what, got, wanted, tolerance=1e-6):
    """Raise AssertionError if `got`, a number or an array, is not `wanted`."""
    if got is Ellipsis:
        raise AssertionError(f"{what} is still `...`")
    if got is None:
        raise AssertionError(f"{what} is None; perhaps a `return` is missing")
    found, right = np.asarray(got, dtype=float), np.asarray(wanted, dtype=float)
    if found.shape != right.shape:
        raise AssertionError(f"{what} has shape {found.shape}, and should have shape {right.shape}")
    if not np.allclose(found, right, rtol=tolerance, atol=tolerance):
        raise AssertionError(f"{what} is {found}, and should be {right}")


def check(test, answer):
    """Run the test of an exercise on an answer, print the result, and return whether the answer is right."""
    try:
        test(answer)
    except AssertionError as error:
        print("Not yet:", error)
        return False
    except Exception as error:
        has_gap = isinstance(error, TypeError) and "ellipsis" in str(error)
        print("Not yet:", "a `...` is still to be replaced" if has_gap else f"{type(error).__name__}: {error}")
        return False
    print("Correct.")
    return True
