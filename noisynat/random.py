"""Where the library's random numbers come from.

A network owns two streams, one for training noise and one for evaluation, so that looking at a prediction
never changes a training run. Streams travel with the network's state, and the global generator is read
once, to derive a seed, and never advanced.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

Kind = Literal["normal", "signs", "uniform"]

_REMEMBERED = 2**20  # numbers of one call, at most, that a block remembers for its mirror image


class Call(NamedTuple):
    """A demand for random numbers."""

    kind: Kind
    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    mirrored: bool
    """Whether in an antithetic block."""


@dataclass
class _Drawn:
    """What one call gave, and where the generator stood before it."""

    position: Tensor
    call: Call
    numbers: Tensor | None


class RandomStream:
    """Standard normal numbers and random signs from one seeded generator, made on the device that asks.

    Args:
        seed: of the generator, 0 <= seed < 2**63.
        generator: draw from this generator instead (its own device rules apply).
    """

    def __init__(self, seed: int, generator: torch.Generator | None = None) -> None:
        self.seed = seed
        self._generator = generator
        self._sign = 1.0
        self._pair: tuple[Tensor, Tensor] | None = None  # positions before and after the pass to be mirrored
        self._memory: list[_Drawn] = []  # of that pass, so that its numbers need not be made twice
        self._remembers = self._recalls = False
        self._end = torch.empty(0)  # where the generator stood after that pass
        self._mirrors = False  # whether an antithetic block is on
        self._calls: list[Call] | None = None  # that are being recorded
        self._given: list[Tensor] | None = None  # numbers for the next calls

    @classmethod
    def wrap(cls, generator: torch.Generator) -> RandomStream:
        """A stream that draws from the caller's generator."""
        return cls(generator.initial_seed(), generator)

    def generator(self, device: torch.device) -> torch.Generator:
        """The generator on ``device``, made from the seed when the stream is first used there."""
        if self._generator is None or self._generator.device.type != device.type:
            self._generator = torch.Generator(device).manual_seed(self.seed)
        return self._generator

    def normal(self, shape: Sequence[int], like: Tensor) -> Tensor:
        """Independent N(0, 1) numbers of ``shape``, of ``like``'s dtype and device."""
        return self._numbers("normal", shape, like)

    def signs(self, shape: Sequence[int], like: Tensor) -> Tensor:
        """Independent random signs, +1 or -1, of ``shape``, of ``like``'s dtype and device."""
        return self._numbers("signs", shape, like)

    def uniform(self, shape: Sequence[int], like: Tensor) -> Tensor:
        """Independent numbers from [0, 1) of ``shape``, of ``like``'s dtype and device."""
        return self._numbers("uniform", shape, like)

    def _numbers(self, kind: Kind, shape: Sequence[int], like: Tensor) -> Tensor:
        if self._given is not None:
            return self._given.pop(0)
        call = Call(kind, tuple(shape), like.dtype, like.device, self._mirrors)
        if self._calls is not None:
            self._calls.append(call)
        return self._signed(call)

    def _signed(self, call: Call) -> Tensor:
        numbers = self._draw(call)
        return -numbers if call.kind == "normal" and self._sign < 0 else numbers

    def _draw(self, call: Call) -> Tensor:
        generator = self.generator(call.device)
        if self._recalls:
            drawn = self._memory.pop(0) if self._memory else None
            if drawn is not None and drawn.call == call and drawn.numbers is not None:
                return drawn.numbers
            generator.set_state(self._end if drawn is None else drawn.position)
            if drawn is None or drawn.call != call:  # another pass from here on
                self._recalls = False
        position = generator.get_state() if self._remembers else None
        numbers = _MAKERS[call.kind](call.shape, generator=generator, dtype=call.dtype, device=call.device)
        if position is not None:
            kept = numbers.clone() if numbers.numel() <= _REMEMBERED else None
            self._memory.append(_Drawn(position, call, kept))
        return numbers

    # --- numbers made ahead, for compiled functions, which cannot make them from a generator -------------

    @contextmanager
    def recorded(self) -> Iterator[list[Call]]:
        """Note the calls inside the block."""
        self._calls = []
        try:
            yield self._calls
        finally:
            self._calls = None

    def repeat(self, calls: Sequence[Call]) -> list[Tensor]:
        """The numbers that the same calls give now: first those of an antithetic block, then the others."""
        mirrored = [call for call in calls if call.mirrored]
        numbers = []
        if mirrored:
            with self.antithetic(mirrored[0].device):
                numbers = [self._signed(call) for call in mirrored]
        return numbers + [self._signed(call) for call in calls if not call.mirrored]

    @contextmanager
    def given(self, numbers: Sequence[Tensor]) -> Iterator[None]:
        """Give these numbers, in order, to the calls inside the block."""
        self._given = list(numbers)
        try:
            yield
        finally:
            self._given = None

    # --- antithetic variates ------------------------------------------------------------------------

    @contextmanager
    def antithetic(self, device: torch.device) -> Iterator[None]:
        """Make every second block of this kind draw the normal numbers of the block before it, with opposite sign.

        Each block's numbers are independent N(0, 1); what a gradient's noise has of them to first order cancels over
        two consecutive steps (antithetic variates, Hammersley and Morton 1956).
        """
        if self._given is not None:  # as they were made
            yield
            return
        generator = self.generator(device)
        self._mirrors = True
        if self._pair is None:
            start = generator.get_state()
            self._memory.clear()
            self._remembers = device.type == "cpu"  # elsewhere numbers are made faster than they are remembered
            try:
                yield
            finally:
                self._remembers = self._mirrors = False
            self._pair = start, generator.get_state()
            return
        (start, end), self._pair = self._pair, None
        generator.set_state(start)
        self._sign, self._recalls, self._end = -1.0, bool(self._memory), end
        try:
            yield
        finally:
            self._sign, self._recalls, self._mirrors = 1.0, False, False
            self._memory.clear()
            generator.set_state(end)

    def state(self) -> dict[str, Any]:
        """Seed and position, as plain numbers and tensors."""
        position = None if self._generator is None else self._generator.get_state()
        device = "cpu" if self._generator is None else self._generator.device.type
        return {"seed": self.seed, "device": device, "position": position, "pair": list(self._pair or ())}

    def load_state(self, state: dict[str, Any]) -> None:
        """Return to a position that :meth:`state` gave."""
        self.seed = int(state["seed"])
        self._generator, self._sign, self._pair = None, 1.0, None
        self._memory, self._remembers, self._recalls, self._mirrors = [], False, False, False
        self._calls, self._given = None, None
        if state["position"] is not None and (state["device"] != "cuda" or torch.cuda.is_available()):
            self._generator = torch.Generator(state["device"])
            self._generator.set_state(state["position"].cpu())
            if state["pair"]:
                start, end = state["pair"]
                self._pair = start.cpu(), end.cpu()

    def __deepcopy__(self, memo: dict[int, Any]) -> RandomStream:
        copy = RandomStream(self.seed)
        copy.load_state(self.state())
        return copy

    def __getstate__(self) -> dict[str, Any]:
        return self.state()

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.load_state(state)


def _signs(shape: tuple[int, ...], *, generator: torch.Generator, dtype: torch.dtype, device: torch.device) -> Tensor:
    bits = torch.randint(0, 2, shape, generator=generator, device=device, dtype=dtype)
    return bits.mul_(2).sub_(1)


_MAKERS: dict[Kind, Callable[..., Tensor]] = {"normal": torch.randn, "signs": _signs, "uniform": torch.rand}


def derived_seed(purpose: str) -> int:
    """A seed for ``purpose`` that follows ``torch.manual_seed`` without advancing the global generator."""
    digest = hashlib.sha256(torch.get_rng_state().numpy().tobytes() + purpose.encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
