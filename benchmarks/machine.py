"""What the machine is and what it can do: measured rates, hardware, versions."""

from __future__ import annotations

import hashlib
import platform
import time
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import noisynat
from benchmarks.floor import Rates
from benchmarks.rounds import Clock
from experiments import records

_COLUMNS = 32  # of thin matrices
_REPEATS = 5
_HANDOVERS = 50  # in a row
_FOR_ONE_THREAD = 2**15  # numbers, from which on PyTorch calls in other threads
_SOURCES = (Path(noisynat.__file__).parent, Path(__file__).parent)


def measured_rates(clock: Clock, dtype: torch.dtype = torch.float32, side: int = 2048) -> Rates:
    """The best of a few tries of each kind of work, with the threads that torch has now.

    Args:
        clock: of the device.
        dtype: of all numbers.
        side: of the matrices; the copies are of eight times as many numbers, the thin products half as long.
    """
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(side, side, generator=generator).to(clock.device, dtype) for _ in range(2))
    out = torch.empty_like(a)
    source = torch.ones(8, side, side, dtype=dtype, device=clock.device)
    target = torch.empty_like(source)

    half = side // 2
    long, thin = a[:half, :half].contiguous(), a[:half, :_COLUMNS].contiguous()
    columns, numbers = torch.empty_like(thin), torch.empty_like(long)

    def multiply() -> None:
        torch.mm(a, b, out=out)

    def copy() -> None:
        target.copy_(source)

    def multiply_thin() -> None:
        torch.mm(long, thin, out=columns)

    def draw() -> None:
        numbers.normal_()

    def best(work: Callable[[], None]) -> float:
        clock.seconds(work)
        return min(clock.seconds(work) for _ in range(_REPEATS))

    with torch.random.fork_rng(devices=[clock.device] if clock.device.type == "cuda" else []):
        return Rates(
            flops=2 * side**3 / best(multiply),
            bytes=2 * source.numel() * source.element_size() / best(copy),
            thin=2 * half * thin.numel() / best(multiply_thin),
            normals=numbers.numel() / best(draw),
        )


def handover_seconds() -> float | None:
    """What it takes until a second thread has taken over a part of an operation, None with a single thread.

    On a virtual machine it changes from one minute to the next, as if its cores shared a cache at times only; short
    operations in several threads then take longer, and what one thread does alone hardly does.
    """
    if torch.get_num_threads() == 1:
        return None
    shared = torch.empty(_FOR_ONE_THREAD * torch.get_num_threads())
    alone = torch.empty(_FOR_ONE_THREAD - 1)

    def seconds(numbers: torch.Tensor) -> float:
        started = time.perf_counter()
        for _ in range(_HANDOVERS):
            numbers.fill_(1.0)
        return (time.perf_counter() - started) / _HANDOVERS

    return min(seconds(shared) for _ in range(_REPEATS)) - min(seconds(alone) for _ in range(_REPEATS))


def provenance(module: str, device: torch.device, packages: list[str]) -> dict[str, Any]:
    """As for an experiment, with the processor's or GPU's name, what is done with denormal numbers, versions of
    peers, and the code's digest."""
    found = records.provenance(module)
    found["machine"] = f"{processor()}, {found['machine']}"
    if device.type == "cuda":
        found["machine"] = f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}; {found['machine']}"
    found["source"] = source_digest()
    found["denormals"] = "flushed to zero" if denormals_are_flushed() else "kept"
    found["packages"].update({name: number for name in packages if (number := installed_version(name)) is not None})
    return found


def installed_version(distribution: str) -> str | None:
    """Its version, or None if it is not installed."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def denormals_are_flushed() -> bool:
    """Whether this thread's arithmetic takes numbers that are too small for their format's exponent as zero."""
    return bool(torch.tensor([1e-30]) * torch.tensor([1e-10]) == 0)


def processor() -> str:
    """The processor's name where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def source_digest(roots: Sequence[Path] = _SOURCES) -> str:
    """Of the code in ``roots``, the library's and the benchmarks': figures of other code are not these."""
    digest = hashlib.sha256()
    for path in (path for root in roots for path in sorted(root.rglob("*.py"))):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]
