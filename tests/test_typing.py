"""Types of the public interface: all there, right for users under mypy --strict, and a guard against wrong calls."""

from __future__ import annotations

import functools
import importlib
import inspect
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent

# --- no annotation is missing -----------------------------------------------------------------

MODULES = [
    "noisynat",
    "noisynat.acquisition",
    "noisynat.calibration",
    "noisynat.curvature",
    "noisynat.metrics",
    "noisynat.plotting",
    "noisynat.sklearn",
    "noisynat.interop.lightning",
    "noisynat.interop.pyro",
    "noisynat.interop.safetensors",
    "noisynat.interop.skorch",
    "noisynat.interop.tensorboard",
]


def functions_of(kind: type) -> Iterator[tuple[str, Any]]:
    """Public methods, properties and operators that ``kind`` has from this library, but for a dataclass's own."""
    for owner in kind.__mro__:
        if not owner.__module__.startswith(("noisynat", __name__)):
            continue
        for name, member in vars(owner).items():
            if isinstance(member, property):
                member = member.fget
            elif isinstance(member, functools.cached_property):
                member = member.func
            elif isinstance(member, (staticmethod, classmethod)):
                member = member.__func__
            if inspect.isfunction(member) and (not name.startswith("_") or name.startswith("__")):
                member = inspect.unwrap(member)
                if Path(member.__code__.co_filename).is_file():
                    yield f"{kind.__name__}.{name}", member


def missing_annotations(name: str, public: Any) -> list[str]:
    """Parameters and returns without an annotation, of a function or of all that a class offers."""
    members = list(functions_of(public)) if isinstance(public, type) else [(name, public)]
    found = []
    for full_name, member in members:
        signature = inspect.signature(member)
        for i, parameter in enumerate(signature.parameters.values()):
            is_self = i == 0 and parameter.name in ("self", "cls") and "." in full_name
            if parameter.annotation is inspect.Parameter.empty and not is_self:
                found.append(f"{full_name}: {parameter.name}")
        if signature.return_annotation is inspect.Signature.empty:
            found.append(f"{full_name}: return")
    return found


@pytest.mark.parametrize("module", MODULES)
def test_every_public_name_is_annotated(module: str) -> None:
    home = importlib.import_module(module)
    public = {name: getattr(home, name) for name in home.__all__}
    checked = {name: one for name, one in public.items() if callable(one)}
    assert checked
    assert [line for name, one in checked.items() for line in missing_annotations(name, one)] == []


class Careless:
    """What must be found."""

    def __init__(self, x):  # type: ignore[no-untyped-def]
        self.x = x

    @property
    def size(self):  # type: ignore[no-untyped-def]
        return 1

    @staticmethod
    def add(a: int, b) -> int:  # type: ignore[no-untyped-def]
        return a + b


def test_missing_annotations_are_found() -> None:
    found = missing_annotations("Careless", Careless)
    assert found == ["Careless.__init__: x", "Careless.__init__: return", "Careless.size: return", "Careless.add: b"]
    assert missing_annotations("f", lambda x: x) == ["f: x", "f: return"]


# --- mypy --strict, as in a project that has installed noisynat -------------------------------

PREPARED = """
import torch
from torch import Tensor, nn
import noisynat
from noisynat.interop.tensorboard import TensorBoardCallback
def prepared(bnn: noisynat.VariationalNetwork, x: Tensor, optimizer: noisynat.NoisyKFAC) -> None:
"""
WRONG_CALLS = {
    'noisynat.VariationalNetwork(nn.Linear(1, 1), noisynat.PoissonLikelihood(), posterior="kroneker")': "arg-type",
    "noisynat.VariationalNetwork(nn.Linear(1, 1), nn.MSELoss(), num_data=3)": "arg-type",
    "noisynat.GaussianLikelihood(noise=None)": "arg-type",
    "noisynat.HeteroscedasticGaussianLikelihood(max_ration=3.0)": "call-arg",
    "noisynat.NoisyAdam(nn.Linear(1, 1))": "arg-type",
    "noisynat.NoisyKFAC(bnn, learning_rate=0.1)": "call-arg",
    "noisynat.fit(bnn, optimizer, 3, epochs=1)": "arg-type",
    "noisynat.fit(bnn, optimizer, [(x, x)], epochs=1, scheduler=0.1)": "arg-type",
    "bnn.predict(x).men": "attr-defined",
    "bnn.predict(x).mean()": "operator",
    'bnn.predict(x, predictive="laplace")': "arg-type",
    "bnn.sample_functions(2)[0].mean": "attr-defined",
    'bnn.with_posterior("diagonal")': "arg-type",
    "optimizer.step(x)": "call-overload",
    "TensorBoardCallback(print)": "arg-type",
}
# What torch keeps to itself takes most of the time, and its public interface does without.
SETTINGS = """
[mypy]
strict = true
[mypy-torch._dynamo.*,torch._inductor.*,torch.ao.*,torch.distributed.*,torch.fx.*,torch.onnx.*,sympy.*,tensorboard.*]
follow_imports = skip
"""


@pytest.fixture(scope="module")
def complaints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[int, str]]:
    """By file and line, the code of mypy's error.

    PYTHONPATH is where mypy finds installed packages: their annotations count only with a py.typed, and they are not
    checked themselves.
    """
    folder = tmp_path_factory.mktemp("project")
    (readme,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), flags=re.DOTALL)
    (folder / "readme.py").write_text(readme, "utf-8")
    (folder / "user.py").write_text((ROOT / "tests" / "user_code.py").read_text("utf-8"), "utf-8")
    (folder / "wrong.py").write_text(PREPARED + "".join(f"    {call}\n" for call in WRONG_CALLS), "utf-8")
    (folder / "mypy.ini").write_text(SETTINGS, "utf-8")
    files = ["readme.py", "user.py", "wrong.py"]
    command = [sys.executable, "-m", "mypy", "--cache-dir", os.devnull, "--show-error-codes", *files]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 1, run.stdout + run.stderr
    found: dict[str, dict[int, str]] = {file: {} for file in files}
    for file, line, message in re.findall(r"^([\w./]+):(\d+): error: (.*)$", run.stdout, flags=re.MULTILINE):
        found.setdefault(file, {})[int(line)] = message
    return found


def test_user_code_is_accepted(complaints: dict[str, dict[int, str]]) -> None:
    assert {file: errors for file, errors in complaints.items() if errors and file != "wrong.py"} == {}


@pytest.mark.parametrize(("number", "call"), list(enumerate(WRONG_CALLS, PREPARED.count("\n") + 1)))
def test_wrong_calls_are_rejected(number: int, call: str, complaints: dict[str, dict[int, str]]) -> None:
    assert complaints["wrong.py"].get(number, "accepted").endswith(f"[{WRONG_CALLS[call]}]")
