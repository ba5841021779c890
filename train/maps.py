"""Attention maps: the attention weights of each layer and head, rendered as HTML, and as PNG by matplotlib."""

import base64
import html
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .chart import figure_class

Map = npt.NDArray[np.floating[Any]]  # (T, T), query by key

SCALE = (0, 0.01, 0.05, 0.1, 0.25, 0.5, 1)  # weights in the colour scale
COLOUR = (0, 69, 128)  # the colour of weight 1; weight w has opacity sqrt(w), so that small weights are visible
LABEL = 8  # characters of a label
VISIBLE = str.maketrans({" ": "\u2423", "\n": "\u21b5", "\t": "\u21e5"})


def maps_html(maps: Sequence[npt.NDArray[Any]], tokens: Sequence[str]) -> str:
    """One figure for each head, in a row for each layer.

    Args:
        maps: the weights of each layer, (H, T, T): head, query, key.
        tokens: the T characters, or the texts of the T tokens.
    """
    rows, margin = [f"{_letters(tokens)}{_scale()}"], _margin(tokens)
    for layer, heads in enumerate(maps, start=1):
        figures = "".join(_figure(weights, layer, head, margin) for head, weights in enumerate(heads, start=1))
        rows.append(
            f'<section aria-labelledby="layer-{layer}"><h3 id="layer-{layer}">Layer {layer}</h3>\n'
            f'<div class="maps" tabindex="0" role="group" aria-label="Heads of layer {layer}">\n{figures}</div>'
            "</section>\n"
        )
    return "".join(rows)


def visible(token: str) -> str:
    """The label of a token: spaces and newlines are visible, and a long one is cut."""
    shown = token.translate(VISIBLE)
    return shown if len(shown) <= LABEL else f"{shown[: LABEL - 1]}\u2026"


def _margin(tokens: Sequence[str]) -> float:
    """The width of the labels, in cells: those of one character are centred, longer ones run away from the map."""
    longest = max(len(visible(token)) for token in tokens)
    return 1.4 if longest == 1 else 0.6 + 0.58 * longest


def _letters(tokens: Sequence[str]) -> str:
    """The labels of the axes, defined once; each map shows them with <use>."""
    letters = [html.escape(visible(token)) for token in tokens]
    if _margin(tokens) == 1.4:
        across = "".join(f'<text x="{i + 0.5}" y="-0.4">{c}</text>' for i, c in enumerate(letters))
        down = "".join(f'<text x="-0.7" y="{i + 0.8}">{c}</text>' for i, c in enumerate(letters))
    else:
        turned = 'style="text-anchor:start" transform="translate({} -0.4) rotate(-90)"'
        across = "".join(f"<text {turned.format(i + 0.8)}>{c}</text>" for i, c in enumerate(letters))
        down = "".join(
            f'<text style="text-anchor:end" x="-0.4" y="{i + 0.8}">{c}</text>' for i, c in enumerate(letters)
        )
    return f'<svg class="defs" aria-hidden="true"><defs><g id="letters">{across}{down}</g></defs></svg>\n'


def _scale() -> str:
    """The colour scale."""
    cells = "".join(f'<li><i><b style="opacity:{w**0.5:.3f}"></b></i>{w:g}</li>' for w in SCALE)
    return f'<ul class="scale" aria-label="Colour scale of the weights">{cells}</ul>\n'


def _figure(weights: Map, layer: int, head: int, margin: float) -> str:
    size, description = len(weights), describe_map(weights)
    name = f"Layer {layer}, head {head}"
    box = f"{-margin:g} {-margin:g} {size + margin + 0.2:g} {size + margin + 0.2:g}"
    return (
        f'<figure class="map" data-name="{name}"><figcaption>Head {head} <span>{description}</span></figcaption>'
        f'<svg viewBox="{box}" role="img" aria-label="{name}: {description}">'
        f'<use href="#letters"/><rect width="{size}" height="{size}"/>'
        f'<image width="{size}" height="{size}" preserveAspectRatio="none" href="{_data_url(weights)}"/>'
        "</svg></figure>\n"
    )


def describe_map(weights: Map) -> str:
    """The mean weight of a character on itself, on the one before it and on the first, over all but the first."""
    if len(weights) < 2:
        return "one character, which attends to itself"
    places = np.arange(1, len(weights))
    means = [weights[places, places - back].mean() for back in (0, 1)] + [weights[places, 0].mean()]
    itself, previous, first = (f"{100 * mean:.0f}%" for mean in means)
    return f"itself {itself}, previous {previous}, first {first}"


def _data_url(weights: Map) -> str:
    opacity = np.round(255 * np.sqrt(np.clip(np.nan_to_num(weights), 0, 1))).astype(np.uint8)
    return "data:image/png;base64," + base64.b64encode(_png(opacity)).decode()


def _png(opacity: npt.NDArray[np.uint8]) -> bytes:
    """A PNG (ISO/IEC 15948) of one colour with these opacities (height, width), as a palette image."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = opacity.shape
    header = struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)  # 8 bits, palette
    rows = b"".join(b"\0" + row.tobytes() for row in opacity)  # each row starts with its filter type: none
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"PLTE", bytes(COLOUR) * 256)
        + chunk(b"tRNS", bytes(range(256)))
        + chunk(b"IDAT", zlib.compress(rows, 9))
        + chunk(b"IEND", b"")
    )


def write_maps_png(maps: Sequence[npt.NDArray[Any]], tokens: Sequence[str], path: Path) -> None:
    """Write all maps to one PNG file. Raises ImportError without matplotlib, OSError if the file cannot be written."""
    rows, columns = len(maps), len(maps[0])
    figure = figure_class()(figsize=(2.4 * columns + 0.6, 2.6 * rows + 0.4), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    letters, places = [visible(token) for token in tokens], range(len(tokens))
    small = {"fontsize": min(7, 110 / len(tokens)), "parse_math": False}
    turned = {"rotation": 0 if max(map(len, letters)) == 1 else 90}
    for layer, heads in enumerate(maps):
        for head, weights in enumerate(heads):
            axes = grid[layer, head]
            image = axes.imshow(np.sqrt(np.clip(weights, 0, 1)), cmap="Blues", vmin=0, vmax=1)
            axes.set_title(f"layer {layer + 1}, head {head + 1}", fontsize=9)
            axes.set_xticks(places, letters, **small, **turned)
            axes.set_yticks(places, letters, **small)
            axes.tick_params(length=0, pad=1)
    bar = figure.colorbar(image, ax=grid, shrink=0.4, label="attention weight, query (down) by key (across)")
    bar.set_ticks([weight**0.5 for weight in SCALE], labels=[f"{weight:g}" for weight in SCALE])
    figure.savefig(path, dpi=120)
