"""Array backends. Each backend module offers the same primitives for one array library.

The primitives are listed in `russellgrad/backend.py` (the contract). No module here imports `russellgrad`.

This folder is the package `russellgrad.backends`. Importing it under another name is an error: it would create a second
module object for each backend, and tensors on the two would not mix.
"""

if __name__ != "russellgrad.backends":
    raise ImportError(f"{__name__}: import this package as russellgrad.backends")
