"""The libraries that are compared, each in an environment of its own if needed."""

import argparse
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Peer:
    """A library.

    Args:
        module: its programs, benchmarks/peers/<module>.py, or its training step, benchmarks/candidates/<module>.py.
        check: code that fails unless the library is installed and works.
        install: how to install it.
        packages: the packages whose versions are reported.
        environment: variables of its process.
        arguments: of its training step, after the size.
    """

    module: str
    check: str
    install: str
    packages: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    arguments: tuple[str, ...] = ()


def environment(peer: Peer, python: str, folder: str) -> dict[str, str]:
    """Variables of a library's process. The folder is for compiled kernels."""
    path = os.pathsep.join([str(Path(python).parent), os.environ.get("PATH", "")])  # as in an activated environment
    return {"PATH": path, "CACHEDB": str(Path(folder) / "tinygrad.db"), **peer.environment}


def installed_versions(peer: Peer, python: str, variables: Mapping[str, str]) -> tuple[bool, str]:
    """Whether the library is installed and works; the versions of Python and of its packages, or else the error."""
    code = f"""
{peer.check}
import platform
from importlib.metadata import version
print(", ".join(["Python " + platform.python_version(), *(name + " " + version(name) for name in {peer.packages})]))
"""
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, env={**os.environ, **variables})
    works = done.returncode == 0
    return works, (done.stdout if works else done.stderr).strip().rpartition("\n")[2]


def usable(
    peers: Mapping[str, Peer], python: Mapping[str, str], folder: str
) -> tuple[dict[str, tuple[str, dict[str, str]]], list[str]]:
    """The interpreter and the variables of each library that works, and a note for each library.

    The interpreter is `python[name]`, or this one. The folder is for compiled kernels.
    """
    found, notes = {}, []
    for name, peer in peers.items():
        interpreter = os.path.abspath(python.get(name, sys.executable))  # workers run in the repository's root
        variables = environment(peer, interpreter, folder)
        works, text = installed_versions(peer, interpreter, variables)
        if works:
            found[name] = interpreter, variables
        notes.append(f"{name}: {text}." if works else f"Not measured: {name} ({text}). Install: {peer.install}.")
        print(notes[-1], flush=True)
    return found, notes


def add_python(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--python", action="append", default=[], metavar="LIBRARY=PATH", help="a library's interpreter")


def interpreters(
    parser: argparse.ArgumentParser, arguments: Sequence[str], peers: Mapping[str, Peer]
) -> dict[str, str]:
    """The interpreters given with --python. Exits with an error for an unknown library or a path without a file."""
    python = {}
    for argument in arguments:
        library, _, python[library] = argument.partition("=")
        if library not in peers or not Path(python[library]).is_file():
            parser.error(f"--python {argument}: needs a library ({', '.join(peers)}) and the path of an interpreter")
    return python
