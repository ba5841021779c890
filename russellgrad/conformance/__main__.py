"""The command line. Exit status: 0 if no case failed, 1 if one did, 2 if the backend cannot be loaded."""

import argparse
import sys

from ..backend import Backend, load_backend
from .report import check


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m russellgrad.conformance",
        description="Check a backend against the contract in russellgrad.backend.",
        epilog="Exit status: 0 if no case failed, 1 if one did, 2 if the backend cannot be loaded.",
    )
    parser.add_argument("backend", metavar="BACKEND", help="a built-in name, an entry point, or a module's dotted path")
    name = parser.parse_args(arguments).backend
    try:
        backend: Backend = load_backend(name)
    except Exception as error:  # any exception that the module raises while it is imported
        print(f"cannot use backend {name!r}: {type(error).__name__}: {error}", file=sys.stderr)
        return 2
    report = check(backend)
    print(report)
    return 0 if report.passed else 1


if __name__ == "__main__":
    sys.exit(main())
