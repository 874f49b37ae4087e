"""How often an optimizer takes statistics and factorizes.

Both become rare as the curvature's average settles, and each batch then counts for all the steps that it stands for.
"""

from __future__ import annotations

from dataclasses import dataclass

_SMALL = (5, 50)  # steps between statistics and between factorizations
_WIDE = (10, 20)  # whose truncated factors are refreshed by a few products
_SETTLING = 5  # the interval is k at step 5 k, so that something is due then


@dataclass(frozen=True)
class Interval:
    """Every so many steps.

    Args:
        steps: in the long run.
        grows: whether it begins with every step and grows; until it has settled, something is due at least every five
            steps.
    """

    steps: int
    grows: bool = False

    @property
    def settles_at(self) -> int:
        """The step (from 0) from which on the interval is that of the long run."""
        return self.steps * _SETTLING if self.grows else 0

    def at(self, step: int) -> int:
        """The interval at a step (from 0)."""
        return min(self.steps, max(1, step // _SETTLING)) if self.grows else self.steps

    def is_due(self, step: int) -> bool:
        """Whether something is to be done at a step (from 0)."""
        return step % self.at(step) == 0


def chosen(is_wide: bool, stats_every: int | None, refresh_every: int | None) -> tuple[Interval, Interval]:
    """Intervals of statistics and of factorizations: those given, or, for None, growing ones that suit the network."""
    statistics, refresh = (
        Interval(default, grows=True) if given is None else Interval(given)
        for given, default in zip((stats_every, refresh_every), _WIDE if is_wide else _SMALL, strict=True)
    )
    return statistics, refresh
