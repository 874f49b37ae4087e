"""What all tests share: one thread, fixed seeds, and the folder of UCI data."""

import os
import random
from pathlib import Path

os.environ.setdefault("MPLBACKEND", "Agg")  # before anything imports matplotlib

import numpy as np
import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)  # the test processes share the cores already

# Time limits on single examples only make tests flaky; on a CI machine the examples are the same every time.
settings.register_profile("noisynat", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("noisynat")


@pytest.fixture(autouse=True)
def fixed_seeds() -> None:
    """Every test starts from the same state of the global random number generators."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - code under test may use the global generator
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def uci_dir() -> Path:
    """The folder with the UCI sets, named by the environment variable NOISYNAT_UCI_DIR."""
    value = os.environ.get("NOISYNAT_UCI_DIR")
    if not value:
        pytest.skip("NOISYNAT_UCI_DIR is not set: no UCI data to test with")
    folder = Path(value)
    if not folder.is_dir():
        pytest.skip(f"NOISYNAT_UCI_DIR is {value}, which is not a folder")
    return folder
