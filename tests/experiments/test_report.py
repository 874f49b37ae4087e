"""The report of a folder: all that is in it, escaped, and with nothing outside; in a browser, that it works."""

from __future__ import annotations

import base64
import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.image import imread, imsave
from typer.testing import CliRunner

from experiments import records, report, report_contents

HOSTILE = '<img src=x onerror="document.title=1"> & </script>.csv'.replace("/", "_")
HOSTILE_CELL = '</td><script>document.title = "run"</script>'
MARKDOWN = f"""# One title

Text with **bold**, [a link](https://example.com/page), ![a picture](http://example.com/picture.png) and {HOSTILE_CELL}.

| method | RMSE |
| --- | ---: |
| second | 10.5±0.2 |
| first | 9.25±0.1 |
| none | – |
"""
TABLE = "method,rmse,note\nb,10.5,\na,9.25,x\nc,-inf,\nd,,y\ne,1e2,z\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Results as experiments write them, with what a careless or hostile hand might add."""
    place = tmp_path / "some results"
    (place / "boston" / "kron").mkdir(parents=True)
    (place / "boston" / "half").mkdir()
    imsave(place / "uci_elbo.png", np.zeros((20, 30, 3)))
    imsave(place / "wide_figure.png", np.linspace(0, 1, 50 * 3000).reshape(50, 3000))
    (place / "results.md").write_text(MARKDOWN, encoding="utf-8")
    (place / "summary.csv").write_text(TABLE, encoding="utf-8")
    (place / HOSTILE).write_text(f"{HOSTILE_CELL},b\n1,<b>2</b>\n", encoding="utf-8")
    rows = [{"epoch": epoch, "elbo": 0.5 * epoch} for epoch in range(250)]
    records.write_table(place / "boston" / "kron" / "history.csv", pd.DataFrame(rows))
    settings = {"lr": 0.02, "seed": 7, "options": {"refresh_every": 10}}
    provenance = {
        "command": "python -m experiments.some <boston>",
        "python": "3.11.7",
        "packages": {"noisynat": "0.1.0", "torch": "2.13.0"},
        "machine": "Linux x86_64, 2 cores",
        "threads": 1,
    }
    records.write_json(place / "boston" / "kron" / "run.json", {"settings": settings, **provenance})
    records.write_json(place / "boston" / "kron" / "started.json", {"only in": "started.json"})
    records.write_json(place / "boston" / "half" / "started.json", settings)
    (place / "boston" / "kron" / "pointwise.npz").write_bytes(b"\0" * 2500)
    (place / "boston" / "half" / "broken.json").write_text("{", encoding="utf-8")
    (place / "boston" / "half" / "empty.csv").touch()
    (place / "boston" / "half" / "no_picture.png").write_text("text", encoding="utf-8")
    (place / "summary.csv.partial").write_text("half,written", encoding="utf-8")
    (place / ".hidden.csv").write_text("a\n1\n", encoding="utf-8")
    return place


class Page(HTMLParser):
    """Tables as rows of cells by the anchor around them, images, links, anchors, and all text and attributes."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}
        self.images: list[dict[str, str | None]] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.tags: list[str] = []
        self.resources: list[str] = []
        self.text = ""
        self._anchor = ""
        self._cell = False
        self.feed(html)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = dict(attributes)
        self.tags.append(tag)
        self.resources += [str(values[key]) for key in ("src", "href", "srcset", "action", "data") if key in values]
        if "id" in values:
            self.ids.append(str(values["id"]))
            self._anchor = str(values["id"])
        if tag == "img":
            self.images.append(values)
        if tag == "a":
            self.links.append(str(values["href"]))
        if tag == "tr":
            self.tables.setdefault(self._anchor, []).append([])
        if tag in ("td", "th"):
            self.tables[self._anchor][-1].append("")
            self._cell = True

    def handle_endtag(self, tag: str) -> None:
        self.text += " " * (tag == "dt")
        if tag in ("td", "th"):
            self._cell = False

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._cell:
            self.tables[self._anchor][-1][-1] += data


def written(folder: Path, *options: str) -> tuple[Page, str]:
    outcome = CliRunner().invoke(command(), [str(folder), *options], catch_exceptions=False)
    assert outcome.exit_code == 0, outcome.output
    html = (folder / "report.html").read_text(encoding="utf-8")
    return Page(html), html


def command() -> Any:
    import typer

    application = typer.Typer()
    application.command()(report.main)
    return application


def test_every_figure_and_table_is_there(folder: Path) -> None:
    page, _ = written(folder)
    assert [(image["width"], image["height"], image["alt"]) for image in page.images] == [
        ("30", "20", "UCI ELBO"),
        ("3000", "50", "Wide figure"),
    ]
    for image, name in zip(page.images, ("uci_elbo.png", "wide_figure.png"), strict=True):
        head, data = str(image["src"]).split(",")
        assert head == "data:image/png;base64"
        assert base64.b64decode(data) == (folder / name).read_bytes()
        assert imread(folder / name).shape[:2] == (int(str(image["height"])), int(str(image["width"])))
    rows = [line.split(",") for line in TABLE.splitlines()]
    hostile = [[HOSTILE_CELL, "b"], ["1", "<b>2</b>"]]
    text = [["method", "RMSE"], ["second", "10.5±0.2"], ["first", "9.25±0.1"], ["none", "–"]]
    history = [["epoch", "elbo"], *([f"{epoch}", f"{0.5 * epoch:g}"] for epoch in range(100))]
    assert sorted(page.tables.values()) == sorted([rows, hostile, text, history])
    assert "The first 100 of 250 rows" in page.text


def test_a_table_is_shortened_as_told_and_not_without_need(folder: Path) -> None:
    assert "The first 3 of 250 rows" in written(folder, "--rows", "3")[0].text
    page, _ = written(folder, "--rows", "250")
    assert "The first" not in page.text
    assert max(map(len, page.tables.values())) == 251


def test_nothing_outside_is_referred_to(folder: Path) -> None:
    page, html = written(folder)
    assert not re.search(r"https?:|//\w+\.\w+", html)
    assert page.resources
    assert all(resource.startswith(("data:", "#")) for resource in page.resources)
    assert {"script", "style"} <= set(page.tags)
    assert not {"iframe", "object", "embed", "base", "form"} & set(page.tags)
    assert "@import" not in html
    assert "url(" not in html


def test_what_is_hostile_is_text(folder: Path) -> None:
    page, html = written(folder)
    assert page.tags.count("script") == 1
    assert page.tags.count("img") == 2
    assert HOSTILE in page.text
    assert HOSTILE_CELL in page.text
    assert "python -m experiments.some <boston>" in page.text
    script = re.search(r"<script>(.*?)</script>", html, flags=re.DOTALL)
    assert script is not None
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in html
    assert "'unsafe-inline'; script-src" in html


def test_contents_lead_everywhere_and_anchors_are_unique(folder: Path) -> None:
    page, _ = written(folder)
    assert len(set(page.ids)) == len(page.ids)
    assert sorted(link.removeprefix("#") for link in page.links if "table-3" not in link) == sorted(
        anchor for anchor in page.ids if anchor not in ("table-3", "table-4")
    )  # tables 3 and 4 are those of single runs, whose folders are listed


def test_settings_and_provenance(folder: Path) -> None:
    page, _ = written(folder)
    text = re.sub(r"\s+", " ", page.text)
    for words in (
        "Command python -m experiments.some <boston>",
        "Seed 7",
        "noisynat 0.1.0, torch 2.13.0, Python 3.11.7",
        "Linux x86_64, 2 cores, threads: 1",
        "Recorded in 1 file",
        "settings.options.refresh_every 10",
        "pointwise.npz (2.5 kB)",
        "no_picture.png (4 bytes)",
        "boston/half (not finished)",
        "This file is empty.",
    ):
        assert words in text
    assert "This file could not be read" in text
    assert "only in" not in text
    assert "half,written" not in text
    assert "hidden" not in text


def test_equal_commands_are_listed_once_with_all_their_seeds(tmp_path: Path) -> None:
    about = {"command": "python -m x", "packages": {"torch": "2"}, "python": "3", "machine": "m", "threads": 2}
    for seed in (3, 1, 3):
        records.write_json(
            tmp_path / f"{len(list(tmp_path.iterdir()))}.json", {"settings": {"a": {"seed": seed}}, **about}
        )
    records.write_json(tmp_path / "other.json", {"seed": 5, **about, "command": "python -m y"})
    first, second = report_contents.read(tmp_path, rows=1).commands
    assert (first.command, first.seeds, first.records) == ("python -m x", "1, 3", 3)
    assert (second.command, second.seeds, second.records) == ("python -m y", "5", 1)


def test_a_second_report_does_not_report_the_first(folder: Path) -> None:
    _, first = written(folder)
    _, second = written(folder)
    assert first == second
    assert not list(folder.glob("*.partial.partial"))
    assert not (folder / "report.html.partial").exists()


def test_a_report_that_fails_leaves_the_old_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, first = written(folder)
    monkeypatch.setattr(records.os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        report.main(folder)
    assert (folder / "report.html").read_text(encoding="utf-8") == first


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    outcome = CliRunner().invoke(command(), [str(tmp_path)])
    assert outcome.exit_code == 2
    assert "no files" in outcome.output


@pytest.mark.parametrize(
    ("stem", "words"),
    [("uci_log_likelihood", "UCI log likelihood"), ("elbo_curves", "ELBO curves"), ("a-b_c", "A-b c")],
)
def test_captions(stem: str, words: str) -> None:
    assert report_contents.caption(stem) == words


def test_uneven_rows_make_an_even_table(tmp_path: Path) -> None:
    path = tmp_path / "uneven.csv"
    path.write_bytes(b'a,b\n1\n2,3,4\n\n"5\n6",7\n\xff,8\n')
    table = report_contents.read_table(path, "uneven.csv", rows=10)
    assert table.header == ["a", "b", ""]
    assert table.rows == [["1", "", ""], ["2", "3", "4"], ["5\n6", "7", ""], ["\ufffd", "8", ""]]
    assert table.numeric == [False, True, True]
    assert table.total == 4


def test_what_is_no_unicode_is_written_out(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"\xff.csv")).write_text("a\n1\n", encoding="utf-8")
    (tmp_path / "run.json").write_text('{"a": "\\ud800"}', encoding="utf-8")
    page, _ = written(tmp_path)
    assert "\\udcff.csv" in page.text
    assert "\\ud800" in page.text
    assert list(page.tables.values()) == [[["a"], ["1"]]]


# --- in a browser -----------------------------------------------------------------------------------

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "msedge")


@pytest.fixture
def browser() -> Iterator[Any]:
    """A browser without a window."""
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"no browser is installed: none of {', '.join(BROWSERS)} is on the path")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield started
        started.close()


def column(page: Any, anchor: str, number: int) -> list[str]:
    cells = page.locator(f"#{anchor} tbody td:nth-child({number})").all_inner_texts()
    return [cell.strip() for cell in cells]


@pytest.mark.slow
@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1280, "light")])
def test_in_a_browser(folder: Path, browser: Any, width: int, scheme: str) -> None:
    written(folder)
    page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: complaints.extend([request.url] * request.url.startswith("http")))
    page.goto((folder / "report.html").as_uri())
    assert page.title() == "some results"  # what hostile content would have changed
    widths = page.evaluate("[...document.images].map(image => image.complete ? image.naturalWidth : 0)")
    assert widths == [30, 3000]
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    shown = page.evaluate("getComputedStyle(document.body).backgroundColor")
    red = int(re.findall(r"\d+", shown)[0])
    assert red < 50 if scheme == "dark" else red > 200

    table = next(
        anchor for anchor in ("table-1", "table-2") if page.locator(f"#{anchor} h4").inner_text() == "summary.csv"
    )
    head = page.locator(f"#{table} th").nth(1)
    head.get_by_role("button").click()
    assert column(page, table, 2) == ["-inf", "9.25", "10.5", "1e2", ""]
    assert column(page, table, 1) == ["c", "a", "b", "e", "d"]
    assert head.get_attribute("aria-sort") == "ascending"
    head.get_by_role("button").click()
    assert column(page, table, 2) == ["1e2", "10.5", "9.25", "-inf", ""]
    page.locator(f"#{table} th").nth(0).get_by_role("button").press("Enter")
    assert column(page, table, 1) == ["a", "b", "c", "d", "e"]
    assert head.get_attribute("aria-sort") is None
    page.locator("article th").nth(1).get_by_role("button").click()
    assert column(page, "text-1", 2) == ["9.25±0.1", "10.5±0.2", "–"]

    run = page.locator("details.run", has_text="history.csv")
    assert not run.locator("table").is_visible()
    page.locator("nav summary").click()
    page.locator("nav a", has_text="boston/kron").click()
    run.locator("table").wait_for(state="visible")
    page.evaluate("document.querySelectorAll('details').forEach(details => { details.open = true })")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert complaints == []
