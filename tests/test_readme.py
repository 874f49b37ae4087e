"""What README and documentation promise: examples that run and are short, files that exist."""

from __future__ import annotations

import difflib
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"


def test_example_runs_as_written(tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(blocks) == 1
    assert len([line for line in blocks[0].splitlines() if line and not line.startswith(("import", "from"))]) <= 15
    script = tmp_path / "example.py"
    script.write_text("import torch; torch.set_num_threads(1); torch.manual_seed(0)\n" + blocks[0], encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-W", "error", str(script)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "ELBO" in done.stdout


def test_the_three_ways_in_are_as_short_as_promised() -> None:
    """Under ten lines for a table, three changed lines of a loop, five for a trained network (doctest runs them)."""
    page = (ROOT / "docs/howto/three_ways_in.md").read_text(encoding="utf-8")
    table, loop, trained = (
        re.findall(r"```\{(testcode|code-block)\}[^\n]*\n(.*?)```", part, flags=re.DOTALL)
        for part in page.split("\n## ")[1:]
    )
    assert len(code_lines(table[0][1])) < 10
    before, imported, after = (code_lines(block.replace(":class: before", "")) for _, block in loop[:3])
    assert imported == ["import noisynat"]
    changed = [line for line in difflib.ndiff(before, after) if line.startswith("+ ")]
    assert len(changed) == 3
    assert len(code_lines(trained[0][1])) <= 5


def code_lines(block: str) -> list[str]:
    """Lines of a program, a call that is broken into several counted as the one it was."""
    text = re.sub(r"\(\n\s+(.*)\n\)", r"(\1)", block)
    return [line for line in text.splitlines() if line.strip()]


@pytest.mark.parametrize(
    "document", ["README.md", *sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("docs/**/*.md"))]
)
def test_local_links_lead_somewhere(document: str) -> None:
    path = ROOT / document
    links = re.findall(r"\]\((?!https?:)([^)#]+)", path.read_text(encoding="utf-8"))
    missing = [link for link in links if not (path.parent / link).exists()]
    assert not missing


def test_make_targets_named_in_the_readme_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    named = set(re.findall(r"make (demo|test|lint|docs|clean)\b", README.read_text(encoding="utf-8")))
    assert {"demo", "test"} <= named <= targets
