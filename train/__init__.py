"""Training of the transformer, reports, and generated text. This folder is the package `russellgrad.train`.

In the root of a checkout it can be imported as `train`, too: `train.config` is then the same module object as
`russellgrad.train.config`. An installed package has `russellgrad.train` alone.
"""

if __name__ == "train":
    import sys
    from importlib import import_module
    from pkgutil import iter_modules

    package = import_module("russellgrad.train")
    for module in iter_modules(package.__path__):
        sys.modules[f"train.{module.name}"] = import_module(f"russellgrad.train.{module.name}")
    sys.modules["train"] = package
