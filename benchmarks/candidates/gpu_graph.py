"""Counts the nodes of a CUDA graph, with `cuGraphGetNodes` and `cuGraphNodeGetType` of CUDA's driver API."""

import ctypes
from collections import Counter
from typing import Any

_KINDS = {0: "kernels", 1: "copies", 2: "fills"}  # values of CUgraphNodeType in cuda.h


def graph_nodes(graph: int, driver: Any = None) -> dict[str, int]:
    """The number of nodes by kind in the graph at an address: "kernels", "copies", "fills", "others".

    Raises:
        OSError: if there is no driver. RuntimeError: if the driver returns an error.
    """
    driver = driver or _driver()

    def call(name: str, *arguments: Any) -> None:
        if status := getattr(driver, name)(*arguments):
            raise RuntimeError(f"{name}: CUDA's driver answers with status {status} (see CUresult in cuda.h)")

    count = ctypes.c_size_t()
    call("cuGraphGetNodes", ctypes.c_void_p(graph), None, ctypes.byref(count))
    nodes = (ctypes.c_void_p * count.value)()
    call("cuGraphGetNodes", ctypes.c_void_p(graph), nodes, ctypes.byref(count))
    kinds: Counter[str] = Counter()
    for node in nodes:
        kind = ctypes.c_int()
        call("cuGraphNodeGetType", ctypes.c_void_p(node), ctypes.byref(kind))
        kinds[_KINDS.get(kind.value, "others")] += 1
    return dict(kinds)


def _driver() -> Any:
    """The driver's library, which every machine with a CUDA device has."""
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError:
        return ctypes.CDLL("nvcuda.dll")
