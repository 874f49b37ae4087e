"""How often an optimizer takes statistics and factorizes.

Both become rare as the curvature's average settles, and each batch then counts for all the steps that it stands for.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from noisynat.network import VariationalNetwork

_SMALL = (10, 100)  # steps between statistics and between factorizations
_WIDE = (10, 20)  # whose truncated factors are refreshed by a few products
_SETTLING = 5  # an interval that grows is, at most, this fraction of the steps so far


@dataclass(frozen=True)
class Interval:
    """Every so many steps.

    Args:
        steps: in the long run.
        grows: whether it begins with every step, and grows in proportion to the steps so far.
    """

    steps: int
    grows: bool = False

    @cached_property
    def _early(self) -> list[int]:
        """The steps at which something is due, up to the first that is followed by an interval of the long run."""
        due = [0]
        while self.grows and (gap := max(1, due[-1] // _SETTLING)) < self.steps:
            due.append(due[-1] + gap)
        return due

    @property
    def settles_at(self) -> int:
        """The step (from 0) from which on the interval is that of the long run."""
        return self._early[-1]

    def is_due(self, step: int) -> bool:
        """Whether something is to be done at a step (from 0)."""
        if step < self.settles_at:
            return step in self._early
        return (step - self.settles_at) % self.steps == 0

    def passed(self, step: int) -> int:
        """Steps since it was last due, at a step (from 0) at which it is due; 1 at the first."""
        if step > self.settles_at:
            return self.steps
        number = self._early.index(step)
        return step - self._early[number - 1] if number else 1


def chosen(
    network: VariationalNetwork, stats_every: int | None, refresh_every: int | None
) -> tuple[Interval, Interval]:
    """Intervals of statistics and of factorizations: those given, or, for None, growing ones that suit the network."""
    statistics, refresh = (
        Interval(default, grows=True) if given is None else Interval(given)
        for given, default in zip((stats_every, refresh_every), _WIDE if network.is_wide else _SMALL, strict=True)
    )
    return statistics, refresh
