"""The fetch itself, with a stand-in for the network: checksum and progress."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import pytest

from uci_data.download import fetch
from uci_data.entry import DatasetInfo

pooch = pytest.importorskip("pooch")
CONTENT = b"1 2 3\n"


@pytest.fixture(autouse=True)
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """A downloader that writes ``CONTENT`` instead of asking the network."""

    class Downloader:
        def __init__(self, *, timeout: object, **_: Any) -> None:
            assert timeout is not None

        def __call__(self, url: str, output_file: Any, *_: Any, **__: Any) -> None:
            Path(output_file).write_bytes(CONTENT)

    monkeypatch.setattr(pooch, "HTTPDownloader", Downloader)


def test_right_checksum(tiny: DatasetInfo, tmp_path: Path) -> None:
    entry = dataclasses.replace(tiny, download_sha256=hashlib.sha256(CONTENT).hexdigest())
    assert fetch(entry, tmp_path, False).read_bytes() == CONTENT


def test_wrong_checksum(tiny: DatasetInfo, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="hash"):
        fetch(tiny, tmp_path, False)
    assert list(tmp_path.iterdir()) == []


def test_plain_lines_when_piped(tiny: DatasetInfo, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    entry = dataclasses.replace(tiny, download_sha256=None)
    fetch(entry, tmp_path, True)
    assert capsys.readouterr().err.splitlines() == [
        "Downloading tiny from https://example.invalid/tiny.data",
        "Downloaded tiny: 0.0 MB",
    ]


def test_silence(tiny: DatasetInfo, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fetch(dataclasses.replace(tiny, download_sha256=None), tmp_path, False)
    assert capsys.readouterr().err == ""
