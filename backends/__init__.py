"""The array backends: each module here offers the same primitives for one array library.

A backend is an ordinary module with the names listed in `russellgrad/backend.py` (the contract). Nothing here
imports anything of `russellgrad`: the arrows point down only.

This folder is the package `russellgrad.backends`. Imported under another name it would give every backend a second
module object, and tensors of "the same" backend would refuse to mix; so that is an error at once.
"""

if __name__ != "russellgrad.backends":
    raise ImportError(f"{__name__}: import this package as russellgrad.backends")
