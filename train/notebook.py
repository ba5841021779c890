"""The progress of a run in a Jupyter notebook: one output with a bar, the curve of the losses and the last sample.

It is updated in place. As in a terminal (progress.py), no output is worth a training run: after an error of the display
or of the page that it shows, the run goes on with plain lines.
"""

import html
import sys
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from .chart import chart_html, step_axis
from .metrics import History, read_metrics
from .page import read_asset
from .progress import Progress, escape_controls, format_duration
from .report import describe, loss_chart

UPDATE_SECONDS = 0.3  # between two updates
DRAWING = 0.02  # of the time at most: the curve of a long run is drawn less often
ABOVE = "russellgrad-run"  # the class that all rules of the style are within, because a notebook is one page


def kernel_display() -> Callable[..., Any] | None:
    """IPython's function `display` in the kernel of a notebook; None elsewhere, as in a terminal with IPython.

    IPython is never imported first: a program that runs in a kernel has it.
    """
    if "IPython" not in sys.modules:
        return None
    try:
        shell = sys.modules["IPython"].get_ipython()
        found: Callable[..., Any] | None = import_module("IPython.display").display
        return None if getattr(shell, "kernel", None) is None else found
    except Exception:
        return None


class NotebookProgress(Progress):
    """`with NotebookProgress(kernel_display(), folder, n_steps) as progress:` shows what `Progress` shows.

    Args:
        display: as IPython's `display`.
        folder: the run's folder, with the metrics of the steps before `first_step` in a resumed run.
        n_steps, first_step: as for `Progress`.
    """

    def __init__(self, display: Callable[..., Any], folder: Path, n_steps: int, *, first_step: int = 0) -> None:
        super().__init__(n_steps, first_step=first_step, terminal=False)
        self._display: Callable[..., Any] | None = display
        self._update: Callable[..., Any] | None = None  # of the output
        self._folder = folder
        self._history = History()
        self._step, self._line = first_step, "no step yet"
        self._shown = 0.0  # the time of the last update
        self._figures, self._drawn, self._draw_seconds = "", 0.0, 0.0  # chart and sample; when drawn, and how long
        self._key = f"loss-{time.time_ns()}"  # ids of elements are unique in a notebook

    def __enter__(self) -> Self:
        if self._step:
            try:
                self._history = read_metrics(self._folder)
            except Exception:
                self._history = History()  # the curve starts at the next step
        self._show(now=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        seconds = format_duration(time.perf_counter() - self._start_time)
        last = "".join(f", validation loss {loss:.4f}" for step, loss, _ in self._history.validations[-1:])
        ended = "" if kind is None else f", ended by {kind.__name__}"
        self._line = f"{self._step:,} of {self.n_steps:,} steps in {seconds}{last}{ended}"
        self._draw_seconds = 0.0
        self._show(now=True)

    def update(self, step: int, losses: Sequence[float], tokens_per_second: float) -> None:
        self._history.steps += range(step - len(losses) + 1, step + 1)
        self._history.losses += losses
        self._step = step
        self._facts = self._describe(step, losses[-1], tokens_per_second)
        self._line = f"step {step:,} of {self.n_steps:,}  {self._facts}"
        if not self._show():
            super().update(step, losses, tokens_per_second)

    def validating(self, blocks: int, n_blocks: int) -> None:
        self._line = f"step {self._step:,} of {self.n_steps:,}  validation: {blocks:,} of {n_blocks:,} blocks"
        if not self._show():
            super().validating(blocks, n_blocks)

    def validation(self, step: int, loss: float, n_blocks: int, bits_per_byte: float) -> None:
        self._history.validations.append((step, loss, n_blocks))
        if not self._show():
            super().validation(step, loss, n_blocks, bits_per_byte)

    def sample(self, step: int, text: str) -> None:
        self._history.samples.append((step, text))
        if not self._show():
            super().sample(step, text)

    def _show(self, now: bool = False) -> bool:
        """Update the output, unless the last update was just before. Return False if there is no output any more."""
        if self._display is None:
            return False
        if now or time.perf_counter() - self._shown > UPDATE_SECONDS:
            try:
                page = {"text/plain": self._line, "text/html": self._html()}
                if self._update is None:
                    self._update = self._display(page, raw=True, display_id=True).update
                else:
                    self._update(page, raw=True)
            except Exception:
                self._display = None
                return False
            self._shown = time.perf_counter()
        return True

    def _html(self) -> str:
        start = time.perf_counter()
        if start - self._drawn >= self._draw_seconds / DRAWING:
            self._figures = self._chart() + self._sample()
            self._drawn = time.perf_counter()
            self._draw_seconds = self._drawn - start
        style = read_asset("chart.css") + read_asset("notebook.css")
        return (
            f'<div class="{ABOVE}"><style>.{ABOVE} {{\n{style}}}</style>\n'
            f'<progress aria-label="Steps" max="{self.n_steps}" value="{self._step}"></progress>\n'
            f'<p class="facts">{html.escape(self._line)}</p>\n{self._figures}</div>'
        )

    def _chart(self) -> str:
        if not self._history.steps:
            return ""
        chart = loss_chart(self._key, self._history)
        return chart_html(chart, step_axis([chart]), describe(chart))

    def _sample(self) -> str:
        if not self._history.samples:
            return ""
        step, text = self._history.samples[-1]
        shown = html.escape(escape_controls(text.strip("\n")))
        return f"<figure><figcaption>Sample after step {step:,}</figcaption><pre>{shown}</pre></figure>\n"
