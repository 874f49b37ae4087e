"""Rules that the repository keeps as a whole: what may import what, and what its text may name."""

import ast
import configparser
import fnmatch
import importlib.metadata
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = ROOT / "noisynat"
MODULES = sorted(LIBRARY.rglob("*.py"))


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


# ---------------------------------------------------------------------------------------------------------
# Text: the project names no place outside itself
# ---------------------------------------------------------------------------------------------------------

CI_SCRIPT = ".ci/run"

# Put together from parts, so that this file does not name them either.
NEIGHBOUR = "../" + "shared"
FORBIDDEN_TEXT = {
    "a folder of one machine": re.compile(r"(?<![\w.])/" + r"work/"),
    "a folder of tools": re.compile(r"(?<!\w)\." + r"library\b"),  # but not an attribute of that name
    "a package registry's host": re.compile(
        r"\b(?:" + "|".join([r"py" + r"pi\.org", r"python" + r"hosted\.org", r"download\.py" + r"torch\.org"]) + ")"
    ),
}


def forbidden_text(name: str, text: str) -> list[str]:
    """The lines of `text`, the content of the file `name`, that name something they must not."""
    found = []
    for number, line in enumerate(text.splitlines(), start=1):
        if NEIGHBOUR in line and name != CI_SCRIPT:
            found.append(f"{name}:{number} names {NEIGHBOUR}: {line.strip()}")
        for what, pattern in FORBIDDEN_TEXT.items():
            if pattern.search(line):
                found.append(f"{name}:{number} names {what}: {line.strip()}")
    return found


def tracked_text_files() -> Iterator[tuple[str, str]]:
    """Names and contents of the text files that git tracks, or would track after `git add`."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listing = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"not in a git checkout: {error}")
    for name in sorted(set(listing.decode().split("\0")) - {""}):
        path = ROOT / name
        if not path.is_file():
            continue  # deleted, but not committed yet
        content = path.read_bytes()
        if b"\0" not in content:
            yield name, content.decode("utf-8", errors="replace")


def test_text_names_no_place_outside_the_project() -> None:
    found = [line for name, text in tracked_text_files() for line in forbidden_text(name, text)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("README.md", f"data lie in {NEIGHBOUR}/uci"),
        ("Makefile", "cp /wo" + "rk/main/x ."),
        (CI_SCRIPT, "PATH=/wo" + "rk/bin"),
        ("docs/index.md", "see ." + "library/env"),
        ("README.md", "https://py" + "pi.org/project/noisynat"),
    ],
)
def test_forbidden_text_is_found(name: str, text: str) -> None:
    assert len(forbidden_text(name, "fine\n" + text)) == 1


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (CI_SCRIPT, f"uci={NEIGHBOUR}/uci"),
        ("noisynat/x.py", "torch." + "library.custom_op"),
        ("README.md", "the library. See docs/results/ and https://example.org/wo" + "rk/ too"),
    ],
)
def test_allowed_text_is_not_found(name: str, text: str) -> None:
    assert forbidden_text(name, text) == []


# ---------------------------------------------------------------------------------------------------------
# Imports: noisynat stands on torch and numpy alone
# ---------------------------------------------------------------------------------------------------------


def imported_modules(tree: ast.AST) -> set[str]:
    """The dotted names of all modules that `tree` imports absolutely, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module)
    return names


def test_noisynat_imports_neither_experiments_nor_data() -> None:
    assert MODULES, f"no modules under {LIBRARY}"
    for path in MODULES:
        roots = {name.partition(".")[0] for name in imported_modules(ast.parse(path.read_text("utf-8")))}
        wrong = roots & {"experiments", "uci_data"}
        assert not wrong, f"{relative(path)} imports {', '.join(sorted(wrong))}"


def requirements_of(distribution: str, seen: set[str]) -> set[str]:
    """`distribution` and everything it needs (no extras), as normalized names, added to `seen`."""
    name = re.sub(r"[-_.]+", "-", distribution).lower()
    if name in seen:
        return seen
    try:
        requires = importlib.metadata.requires(distribution) or []
    except importlib.metadata.PackageNotFoundError:
        return seen
    seen.add(name)
    for requirement in requires:
        match = re.match(r"[A-Za-z0-9._-]+", requirement)
        if match and "extra ==" not in requirement:
            requirements_of(match.group(), seen)
    return seen


def test_import_noisynat_loads_only_torch_and_numpy() -> None:
    """Measured against what torch and numpy load by themselves, or need and may load later."""
    code = (
        "import json, sys, torch, numpy\n"
        "before = set(sys.modules)\n"
        "import noisynat\n"
        "print(json.dumps(sorted({name.partition('.')[0] for name in set(sys.modules) - before})))\n"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    loaded = set(json.loads(run.stdout.splitlines()[-1]))
    assert "noisynat" in loaded

    allowed = requirements_of("numpy", requirements_of("torch", set()))
    owners = importlib.metadata.packages_distributions()
    third_party = {
        name
        for name in loaded - set(sys.stdlib_module_names) - {"noisynat"}
        if not {re.sub(r"[-_.]+", "-", owner).lower() for owner in owners.get(name, [name])} & allowed
    }
    assert not third_party, f"import noisynat also loads {', '.join(sorted(third_party))}"


# ---------------------------------------------------------------------------------------------------------
# Factorizations: one file answers for their failures
# ---------------------------------------------------------------------------------------------------------


def prefixed(prefix: str, names: str) -> set[str]:
    return {f"{prefix}.{name}" for name in names.split()}


_EVERYWHERE = "cholesky det inv lu pinv qr slogdet solve svd lstsq"
_LINALG = f"{_EVERYWHERE} cond eig eigh eigvals eigvalsh matrix_rank tensorinv tensorsolve"
_TORCH_LINALG = f"""{_LINALG} cholesky_ex inv_ex ldl_factor ldl_factor_ex ldl_solve lu_factor lu_factor_ex
    lu_solve solve_ex solve_triangular svdvals"""
_TORCH = f"""{_EVERYWHERE} cholesky_inverse cholesky_solve inverse lobpcg logdet lu_solve lu_unpack
    pca_lowrank pinverse svd_lowrank triangular_solve"""
FACTORIZATIONS = (
    prefixed("numpy.linalg", _LINALG)
    | prefixed("torch.linalg", _TORCH_LINALG)
    | prefixed("torch", _TORCH)
    | prefixed("torch.Tensor", _TORCH)
)
# Methods that only tensors have; not the names that a curvature may well use itself (solve, logdet, inverse).
TENSOR_METHODS = {"cholesky", "cholesky_inverse", "cholesky_solve", "pinverse", "qr", "svd"}


def factorizations(source: str) -> list[tuple[int, str]]:
    """Line and name of every use of a factorization or a matrix solve of torch or numpy in `source`.

    Imports are followed, so that aliases are found and functions of the same name from elsewhere are not.
    """
    tree = ast.parse(source)
    origin: dict[str, str] = {}  # local name -> dotted name of what it stands for
    found: list[tuple[int, str]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                top = alias.name.partition(".")[0]
                origin[alias.asname or top] = alias.name if alias.asname else top
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            for alias in node.names:
                origin[alias.asname or alias.name] = f"{module}.{alias.name}"
                if f"{module}.{alias.name}" in FACTORIZATIONS:
                    found.append((node.lineno, f"{module}.{alias.name}"))

    def dotted(node: ast.expr) -> str | None:
        if isinstance(node, ast.Name):
            return origin.get(node.id)
        if isinstance(node, ast.Attribute):
            base = dotted(node.value)
            return None if base is None else f"{base}.{node.attr}"
        return None

    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute):
            continue
        name = dotted(node)
        if name in FACTORIZATIONS:
            found.append((node.lineno, str(name)))
        elif name is None and node.attr in TENSOR_METHODS:
            found.append((node.lineno, f".{node.attr}"))
    return found


def test_factorizations_are_in_linalg_only() -> None:
    found = [
        f"{relative(path)}:{line} uses {name}"
        for path in MODULES
        if path != LIBRARY / "linalg.py"
        for line, name in factorizations(path.read_text("utf-8"))
    ]
    assert not found, "\n".join([*found, "use noisynat.linalg, which handles their failures"])


@pytest.mark.parametrize(
    "source",
    [
        "import torch\ntorch.linalg.cholesky(a)",
        "import torch as t\nt.linalg.solve_triangular(a, b, upper=False)",
        "import torch.linalg\ntorch.linalg.eigh(a)",
        "import torch.linalg as tl\ntl.qr(a)",
        "from torch import linalg\nlinalg.inv(a)",
        "from torch.linalg import svd",
        "import torch\ntorch.cholesky_solve(b, a)",
        "import torch\nf = torch.inverse",
        "import numpy as np\nnp.linalg.inv(a)",
        "def f(a):\n    return (a + 1).cholesky()",
    ],
)
def test_factorizations_are_found(source: str) -> None:
    assert len(factorizations(source)) == 1


@pytest.mark.parametrize(
    "source",
    [
        "import torch\ntorch.linalg.vector_norm(a)",
        "from noisynat import linalg\nlinalg.cholesky(a)",
        "from .. import linalg\nlinalg.eigh(a)",
        "from noisynat.linalg import cholesky\ncholesky(a)",
        "curvature.solve(v)\ncurvature.logdet()",
    ],
)
def test_other_calls_are_not_taken_for_factorizations(source: str) -> None:
    assert factorizations(source) == []


# ---------------------------------------------------------------------------------------------------------
# The package: docstrings, public names, requirements
# ---------------------------------------------------------------------------------------------------------


def test_every_module_has_a_docstring() -> None:
    missing = [relative(path) for path in MODULES if not ast.get_docstring(ast.parse(path.read_text("utf-8")))]
    assert not missing, f"no docstring in {', '.join(missing)}"


def test_public_names_exist() -> None:
    import noisynat

    assert noisynat.__all__, "noisynat.__all__ is empty"
    assert len(noisynat.__all__) == len(set(noisynat.__all__)), "a name is listed twice"
    missing = [name for name in noisynat.__all__ if not hasattr(noisynat, name)]
    assert not missing, f"noisynat.__all__ lists {', '.join(missing)}, which noisynat does not have"


def setup_cfg() -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


def requirement_names(text: str) -> list[str]:
    """The normalized names of the requirements in `text`, one a line, without version ranges and extras."""
    names = []
    for line in text.splitlines():
        match = re.match(r"\s*([A-Za-z0-9._-]+)", line)
        if match:
            names.append(re.sub(r"[-_.]+", "-", match.group(1)).lower())
    return names


def test_noisynat_requires_torch_and_numpy_only() -> None:
    assert sorted(requirement_names(setup_cfg()["options"]["install_requires"])) == ["numpy", "torch"]


def test_constraints_pin_every_requirement_exactly() -> None:
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    for pin in pins:
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][0-9a-z.]*", pin), f"not an exact version: {pin}"
    config = setup_cfg()
    wanted = set(requirement_names(config["options"]["install_requires"]))
    for extra in config["options.extras_require"].values():
        wanted.update(requirement_names(extra))
    missing = wanted - {"noisynat"} - set(requirement_names("\n".join(pins)))
    assert not missing, f"constraints.txt pins no version of {', '.join(sorted(missing))}"


def test_every_file_beside_the_modules_is_packaged() -> None:
    patterns = setup_cfg()["options.package_data"]["*"].split()
    packages = [ROOT / name for name in ("noisynat", "uci_data", "experiments")]
    files = [
        Path(name) for name, _ in tracked_text_files() if any(package in (ROOT / name).parents for package in packages)
    ]
    found = []
    for path in files:
        package = next(folder for folder in path.parents if (ROOT / folder / "__init__.py").exists())
        inside = path.relative_to(package).as_posix()
        if path.suffix != ".py" and not any(fnmatch.fnmatchcase(inside, pattern) for pattern in patterns):
            found.append(path.as_posix())
    assert any(path.suffix == ".html" for path in files)
    assert not found, f"no pattern of package_data covers {', '.join(found)}"
