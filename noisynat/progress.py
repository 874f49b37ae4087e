"""Progress of a training run: a bar on a terminal, plain lines elsewhere, nothing when not wanted."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Any

_LINES = 10  # plain lines per run


class Progress:
    """Shows epochs, loss and running ELBO per datum.

    Args:
        total: epochs of the run.
        done: epochs done before (a resumed run).
        enabled: whether to show anything.
    """

    def __init__(self, total: int, done: int = 0, *, enabled: bool = True) -> None:
        self._total, self._enabled = total, enabled
        self._every = max(total // _LINES, 1)
        self._bar: Any = None
        if enabled and sys.stderr.isatty():
            try:
                from tqdm.auto import tqdm
            except ImportError:
                return  # without tqdm the plain lines serve
            self._bar = tqdm(total=total, initial=done, unit="epoch")

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def update(self, epoch: int, history: dict[str, list[Any]]) -> None:
        """Show that ``epoch`` epochs are done."""
        if not self._enabled:
            return
        shown = {key: f"{_mean(history[key][-1]):.4g}" for key in ("loss", "elbo")}
        if self._bar is not None:
            self._bar.set_postfix(shown, refresh=False)
            self._bar.update(epoch - self._bar.n)
        elif epoch % self._every == 0 or epoch == self._total:
            figures = ", ".join(f"{key} {value}" for key, value in shown.items())
            print(f"epoch {epoch}/{self._total}: {figures}", file=sys.stderr, flush=True)


def _mean(value: float | list[Any]) -> float:
    """Mean of a number per replica, nested as deep as there are replica dimensions."""
    return sum(_mean(entry) for entry in value) / len(value) if isinstance(value, list) else value
