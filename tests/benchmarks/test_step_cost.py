"""The command, its sections and its report."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import noisynat
from benchmarks import boston, figures, report, step_cost
from benchmarks.networks import digits
from benchmarks.prediction import compare, looped
from benchmarks.rounds import Clock, Pace
from benchmarks.step_cost import SECTIONS

ONCE = Pace(rounds=1, turn_seconds=0.0, patience=60.0)
SMALL = digits("small", (8,), batch=16)
PROVENANCE = {
    "command": "c", "packages": {"torch": "2"}, "python": "3", "machine": "m", "threads": 1, "denormals": "kept",
    "source": "abc",
}  # fmt: skip


def row(contender: str, seconds: float, **changes: Any) -> dict[str, Any]:
    """Of a section, in a world where Adam takes 2 ms and SGD 1 ms, always."""
    spread = [seconds, seconds, seconds]
    made = {
        "network": "mlp", "network_title": "a network", "contender": contender, "title": contender, "kind": "noisynat",
        "networks": 1, "cycle": 1, "rounds": [seconds], "seconds": spread, "to_adam": [s / 2e-3 for s in spread],
        "to_sgd": [s / 1e-3 for s in spread], "floor": 1e-3, "size": None, "peak_bytes": None, "steps_per_round": 1,
    }  # fmt: skip
    return made | changes


def section(
    rows: list[dict[str, Any]], skipped: tuple[dict[str, str], ...] = (), source: str = "abc"
) -> dict[str, Any]:
    rates = {"flops": 5e9, "bytes": 2e9, "thin": 1e9, "normals": 1e8}
    return {
        "settings": {"source": source},
        "provenance": PROVENANCE,
        "rates": rates,
        "rows": rows,
        "skipped": list(skipped),
    }


def invoke(output: Path, *arguments: str) -> Any:
    fixed = ["--quick", "--rounds", "1", "--threads", "1", "--output", str(output)]
    return CliRunner().invoke(step_cost.app, [*arguments, *fixed])


def test_the_command_writes_its_files_and_resumes(tmp_path: Path) -> None:
    arguments = ("table", "replicas", "stages", "prediction", "--contenders", "adam,sgd,nng-ffg")
    result = invoke(tmp_path, *arguments)
    assert result.exit_code == 0, result.output
    written = json.loads((tmp_path / "replicas.json").read_text())
    assert [(r["size"], r["contender"]) for r in written["rows"]] == [
        (size, name) for size in (1, 5) for name in ("adam", "sgd", "nng-ffg")
    ]
    assert written["rates"]["flops"] > 0
    assert written["provenance"]["threads"] == 1
    assert written["provenance"]["denormals"] in ("kept", "flushed to zero")
    for figure in ("ratios.png", "growth.png"):
        assert (tmp_path / figure).stat().st_size > 10_000
    text = (tmp_path / "report.md").read_text()
    for heading in ("13-50-1, batch 32, 20 replicas", "Growth with replicas", "Where a step's time goes", "Predicting"):
        assert f"## {heading}" in text
    stamp = (tmp_path / "table.json").stat().st_mtime_ns
    again = invoke(tmp_path, *arguments)
    assert again.exit_code == 0, again.output
    assert again.output.count("done before") == 4
    assert (tmp_path / "table.json").stat().st_mtime_ns == stamp
    other = invoke(tmp_path, "table", "--contenders", "adam,sgd")
    assert "done before" not in other.output
    assert (tmp_path / "table.json").stat().st_mtime_ns > stamp


@pytest.mark.parametrize(
    "arguments",
    [("luck",), ("table", "--contenders", "luck"), ("table", "--device", "tpu")],
    ids=["section", "contender", "device"],
)
def test_unknown_names_are_refused(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    assert invoke(tmp_path, *arguments).exit_code == 2
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_is_refused_where_there_is_none(tmp_path: Path) -> None:
    result = invoke(tmp_path, "table", "--device", "cuda")
    assert result.exit_code == 2
    assert "no CUDA device" in result.output


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_command_on_a_gpu(tmp_path: Path) -> None:
    arguments = ("table", "stages", "prediction", "--contenders", "adam,sgd,nng-kron", "--device", "cuda")
    result = invoke(tmp_path, *arguments)
    assert result.exit_code == 0, result.output
    assert "CUDA" in json.loads((tmp_path / "table.json").read_text())["provenance"]["machine"]


def test_without_data_the_race_on_boston_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*_: Any) -> None:
        raise boston.uci_data.DatasetNotFoundError("boston is nowhere\nlook for it")

    monkeypatch.setattr(boston.uci_data, "load", absent)
    result = invoke(tmp_path, "boston")
    assert result.exit_code == 0, result.output
    assert "left out: nng-kron on boston: boston is nowhere" in result.output
    assert "- nng-kron (boston): boston is nowhere" in (tmp_path / "report.md").read_text()


@pytest.mark.skipif("NOISYNAT_UCI_DIR" not in os.environ, reason="needs the UCI files: set NOISYNAT_UCI_DIR")
def test_the_race_on_boston() -> None:
    rows = boston.compare(1, Pace(rounds=3, turn_seconds=0.0, patience=60.0))
    assert [row["method"] for row in rows] == ["nng-kron", "nng-kron, compiled"]
    for found in rows:
        assert (found["splits"], found["epochs"], found["batch"]) == (20, 1, 32)
        assert found["trainings"][0] > 0


def test_the_loop_gives_samples_of_the_same_predictive() -> None:
    """Mean and standard deviation over samples agree with predict's, and samples differ from each other."""
    bnn = noisynat.VariationalNetwork(SMALL.make(), SMALL.likelihood(), num_data=50, seed=0)
    x = torch.randn(3, 784)
    mine, theirs = looped(bnn, x, 2000), bnn.predict(x, 2000).samples
    assert mine.shape == theirs.shape == (2000, 3, 10)
    error = theirs.std(0) * (2 / 2000) ** 0.5
    assert ((mine.mean(0) - theirs.mean(0)).abs() < 5 * error).all()
    torch.testing.assert_close(mine.std(0), theirs.std(0), rtol=0.15, atol=0)


def test_prediction_is_compared_for_every_posterior() -> None:
    rows = compare(SMALL, 5, 3, ONCE, Clock())
    assert [(r["structure"], r["way"]) for r in rows] == [
        (structure, way) for structure in ("diagonal", "kronecker") for way in ("predict", "predict, bfloat16")
    ]
    for r in rows:
        assert r["faster"][0] == pytest.approx(r["loop"][0] / r["predict"][0])


def test_the_table_of_a_network() -> None:
    rows = [
        row("adam", 2e-3, floor=5e-4, peak_bytes=3_000_000),
        row("many", 3e-3, networks=10),
        row("peer-x", 9e-3, floor=None),
    ]
    skip = {"network": "mlp", "contender": "peer-y", "reason": "it is not there"}
    text = report.markdown({"mlp": section(rows, (skip,))})
    assert "| adam: adam | 2 (2 to 2) | 1 (1 to 1) | 2 (2 to 2) | 2 (2 to 2) | 1 (1 to 1) | 0.5 | 4.0 | 3.0 |" in text
    assert (
        "| many: many | 3 (3 to 3) | 1.5 (1.5 to 1.5) | 3 (3 to 3) | 0.3 (0.3 to 0.3) | 0.15 (0.15 to 0.15) |" in text
    )
    assert text.count("| – | – | – |") == 1  # the peer has neither floor nor memory
    assert "- peer-y (mlp): it is not there" in text
    assert "5 GFLOP/s in matrix products, 1 in thin ones, 2 GB/s in copies, 0.1 billion random numbers a second" in text
    assert "; denormal numbers kept; code abc" in text


def test_the_table_of_a_sweep_and_its_powers() -> None:
    """Time grows as width^2 between the two largest widths, and the floor as width^3."""
    rows = [
        row("a", seconds, size=size, floor=floor)
        for size, seconds, floor in ((10, 1e-3, 1e-6), (20, 2e-3, 8e-6), (40, 8e-3, 64e-6))
    ]
    rows.append(row("b", 1e-3, size=20, to_adam=None))
    text = report.markdown({"width": section(rows)})
    assert "| width | 10 | 20 | 40 | power (law) |" in text
    assert "| a | 1 (0.50) | 2 (1.00) | 8 (4.00) | 2.00 (3.00) |" in text
    assert "| b | – | 1 | – | – |" in text


def test_stages_from_a_twentieth_on_are_bold() -> None:
    stages = [
        {"stage": "noise", "seconds": 9.6e-3, "share": 0.96, "floor": 2.4e-3},
        {"stage": "refresh", "seconds": 4e-4, "share": 0.04, "floor": 0.0},
    ]
    profile = {
        "network_title": "a network", "contender": "a", "title": "A", "seconds": 9e-3, "watched_seconds": 1e-2,
        "stages": stages, "operators": [{"operator": "aten::mm", "share": 0.4}],
    }  # fmt: skip
    text = report.markdown({"stages": section([profile])})
    assert "| noise | 9.6 | **96%** | 2.4 | 4.0 |" in text
    assert "| refresh | 0.4 | 4% | – | – |" in text
    assert "`aten::mm` 40%" in text


def test_the_table_of_what_is_learned_by_heart() -> None:
    found = {
        "network_title": "a network", "contender": "a", "title": "A", "steps": 3000, "fresh": [1e-3] * 3,
        "learned": [4e-3] * 3, "slower": [4.0, 3.0, 5.0],
    }  # fmt: skip
    text = report.markdown({"memorized": section([found])})
    assert "|  | ms a step, not learned | ms a step after 3,000 steps | times slower |" in text
    assert "| a: A | 1 (1 to 1) | 4 (4 to 4) | 4 (3 to 5) |" in text


def test_provenance_is_told_once_where_it_is_the_same(tmp_path: Path) -> None:
    other = section([row("adam", 2e-3)])
    other["rates"] = {"flops": 7e9, "bytes": 2e9, "thin": 1e9, "normals": 1e8}
    parts = {"mlp": section([row("adam", 2e-3)]), "mlp-512": section([row("adam", 2e-3)]), "table": other}
    text = report.markdown(parts)
    assert "Sections: mlp, mlp-512  " in text
    assert "Sections: table  " in text
    assert [path.name for path in figures.draw(parts, tmp_path)] == ["ratios.png"]


def test_sections_that_have_nothing_are_no_figure(tmp_path: Path) -> None:
    parts = {"mlp": section([row("a", 1e-3, to_adam=None)]), "width": section([])}
    assert figures.draw(parts, tmp_path) == []
    assert "# What a step costs" in report.markdown(parts)


def test_collected_sections_keep_their_order_and_are_of_one_code(tmp_path: Path) -> None:
    for name, source in (("width", "abc"), ("table", "abc"), ("mlp", "old")):
        (tmp_path / f"{name}.json").write_text(json.dumps(section([], source=source)))
    assert list(report.collect(tmp_path, list(SECTIONS), "abc")) == ["table", "width"]
