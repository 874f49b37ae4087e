"""Peak memory of training: in a process of its own on a CPU, by the allocator's count on CUDA."""

from __future__ import annotations

import itertools
import multiprocessing
import warnings
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.networks import Network, digits

OutOfMemory = (MemoryError, torch.OutOfMemoryError)
_STATUS = Path("/proc/self/status")
_TINY = digits("tiny", (2,), batch=4)  # so that all that is loaded or allocated once is there


def peak_bytes(contender: str, network: Network, device: torch.device) -> int | None:
    """The most bytes that building and training took, more than there were before; None where it cannot be told.

    Batches count. On a CPU this is the process's resident memory, more than after the same training of a tiny network,
    which Linux tells.

    Args:
        contender: its name; it trains for one cycle, and one step more.
        network: to be trained.
        device: to train on.

    Raises:
        MemoryError: if the process was ended, which is what systems do that run out of memory.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        _train(contender, network, device)
        return torch.cuda.max_memory_allocated(device) - before
    if not _STATUS.exists():
        return None
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.contenders"])
    try:
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            return pool.submit(_peak_here, contender, network, torch.get_num_threads()).result()
    except BrokenProcessPool as error:
        raise MemoryError("a process of its own was ended while it trained") from error


def _peak_here(contender: str, network: Network, threads: int) -> int:
    torch.set_num_threads(threads)
    _train(contender, replace(_TINY, task=network.task, replicas=network.replicas and 1), torch.device("cpu"))
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    before = _kilobytes("VmRSS")
    _train(contender, network, torch.device("cpu"))
    return 1024 * (_kilobytes("VmHWM") - before)


def _train(name: str, network: Network, device: torch.device) -> None:
    from benchmarks.contenders import CONTENDERS

    contender = CONTENDERS[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = contender.build(network, device)
        replicas = network.replicas if contender.kind == "noisynat" else None
        for batch in itertools.islice(itertools.cycle(network.batches(device, replicas)), trainer.cycle + 1):
            trainer.step(*batch)


def _kilobytes(field: str) -> int:
    lines = _STATUS.read_text(encoding="utf-8").splitlines()
    return int(next(line for line in lines if line.startswith(f"{field}:")).split()[1])
