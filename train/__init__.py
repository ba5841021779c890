"""Training of the transformer, reports, and generated text. This folder is the package `russellgrad.train`.

In the root of a checkout it can be imported as `train`, too: `train.config` is then the same module object as
`russellgrad.train.config`. An installed package has `russellgrad.train` alone.
"""

if __name__ == "train":
    import sys
    from importlib import import_module
    from pkgutil import iter_modules

    package = import_module("russellgrad.train")
    # `python -m train.report` looks for the module with this name itself; until then, sys.argv[0] is "-m".
    run = sys.orig_argv[-len(sys.argv)].removeprefix("-m") if sys.argv[:1] == ["-m"] else None
    for module in iter_modules(package.__path__):
        if f"train.{module.name}" != run:
            sys.modules[f"train.{module.name}"] = import_module(f"russellgrad.train.{module.name}")
    sys.modules["train"] = package
