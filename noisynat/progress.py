"""Progress of training and prediction: a bar on a terminal, plain lines elsewhere, nothing when not wanted."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from types import TracebackType
from typing import Any

_LINES = 10  # plain lines per run


class Progress:
    """Shows how much is done, and some figures.

    Args:
        total: what is to be done, in units.
        done: what was done before (of a resumed run).
        unit: its name.
        enabled: whether to show anything.
    """

    def __init__(self, total: int, done: int = 0, *, unit: str = "epoch", enabled: bool = True) -> None:
        self._total, self._unit, self._enabled = total, unit, enabled
        self._every = max(total // _LINES, 1)
        self._bar: Any = None
        if enabled and sys.stderr.isatty():
            try:
                from tqdm.auto import tqdm
            except ImportError:
                return  # without tqdm the plain lines serve
            self._bar = tqdm(total=total, initial=done, unit=unit)

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def update(self, done: int, figures: Mapping[str, float | list[Any]] | None = None) -> None:
        """Show that ``done`` units are done, with figures by name, of which replicas' means are shown."""
        if not self._enabled:
            return
        shown = {key: f"{_mean(value):.4g}" for key, value in (figures or {}).items()}
        if self._bar is not None:
            self._bar.set_postfix(shown, refresh=False)
            self._bar.update(done - self._bar.n)
        elif done % self._every == 0 or done == self._total:
            words = ": " + ", ".join(f"{key} {value}" for key, value in shown.items()) if shown else ""
            print(f"{self._unit} {done}/{self._total}{words}", file=sys.stderr, flush=True)


def _mean(value: float | list[Any]) -> float:
    """Mean of a number per replica, nested as deep as there are replica dimensions."""
    return sum(_mean(entry) for entry in value) / len(value) if isinstance(value, list) else value
