"""What a folder of results holds, read for its report: figures, tables, texts, settings and provenance."""

from __future__ import annotations

import base64
import csv
import itertools
import json
import os
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.token import Token
from markupsafe import Markup

_PNG = b"\x89PNG\r\n\x1a\n"
_NAMES = {name.lower(): name for name in ("ELBO", "HMC", "KL", "NUTS", "RMSE", "UCI")}
_STARTED, _FINISHED = "started.json", "run.json"


@dataclass(frozen=True)
class Figure:
    """A PNG: its bytes as a data URI, and its size in pixels."""

    path: str
    caption: str
    uri: str
    width: int
    height: int


@dataclass(frozen=True)
class Table:
    """The first rows of a CSV file, as text.

    Attributes:
        path: relative to the report's folder.
        header: names of the columns.
        rows: those shown, all as long as the header.
        numeric: per column, whether every filled cell that is shown is a number.
        total: rows of the whole file.
        problem: why the file could not be read to its end, or empty.
    """

    path: str
    header: list[str]
    rows: list[list[str]]
    numeric: list[bool]
    total: int
    problem: str = ""


@dataclass(frozen=True)
class Settings:
    """A JSON file, nested keys joined by dots."""

    path: str
    entries: list[tuple[str, str]]
    problem: str = ""


@dataclass
class Section:
    """The files that lie directly in one folder.

    Attributes:
        path: of the folder, relative to the report's; "." for that itself.
        texts: Markdown files by path, as HTML.
        unfinished: whether a run was started here that left no result.
        others: names and sizes of the files that are not shown.
    """

    path: str
    texts: dict[str, Markup] = field(default_factory=dict)
    figures: list[Figure] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    settings: list[Settings] = field(default_factory=list)
    unfinished: bool = False
    others: list[tuple[str, int]] = field(default_factory=list)

    @property
    def is_result(self) -> bool:
        """Whether somebody made this folder to be read: it has a text or a figure, not tables of a single run alone."""
        return bool(self.texts or self.figures)


@dataclass(frozen=True)
class Command:
    """A command that wrote some of the results, as they record it."""

    command: str
    seeds: str
    versions: str
    machine: str
    records: int


@dataclass(frozen=True)
class Contents:
    """All of a folder: a section for each of its folders that has files, and the commands, most records first."""

    sections: list[Section]
    commands: list[Command]


def read(folder: Path, rows: int, leave_out: Path | None = None) -> Contents:
    """Read ``folder`` and the folders below it; hidden files and half-written ones are passed over.

    Args:
        folder: of results.
        rows: shown of a table, at most.
        leave_out: a file that is none of the results.
    """
    sections: list[Section] = []
    recorded: list[dict[str, Any]] = []
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        paths = [Path(place) / name for name in sorted(names) if not name.startswith(".")]
        paths = [path for path in paths if path.is_file() and path.suffix != ".partial" and path != leave_out]
        if not paths:
            continue
        section = Section(Path(place).relative_to(folder).as_posix())
        sections.append(section)
        for path in paths:
            _add(section, path, folder, rows, recorded)
    return Contents(sections, _commands(recorded))


def _add(section: Section, path: Path, folder: Path, rows: int, recorded: list[dict[str, Any]]) -> None:
    """Put a file where it belongs in its section; what a JSON file of objects holds also to ``recorded``."""
    name = path.relative_to(folder).as_posix()
    figure = read_figure(path, name) if path.suffix == ".png" else None
    if figure is not None:
        section.figures.append(figure)
    elif path.suffix == ".csv":
        section.tables.append(read_table(path, name, rows))
    elif path.suffix == ".md":
        section.texts[name] = to_html(path.read_text(encoding="utf-8", errors="replace"))
    elif path.suffix == ".json":
        finished = path.with_name(_FINISHED).exists()
        if path.name == _STARTED and finished:
            return  # the settings of run.json once more
        section.unfinished |= path.name == _STARTED
        settings, value = read_settings(path, name)
        section.settings.append(settings)
        if isinstance(value, dict):
            recorded.append(value)
    else:
        section.others.append((path.name, path.stat().st_size))


def read_figure(path: Path, name: str) -> Figure | None:
    """The PNG at ``path``, or None if it is none."""
    content = path.read_bytes()
    if not content.startswith(_PNG) or len(content) < 24:
        return None
    width, height = struct.unpack(">II", content[16:24])  # PNG specification, 11.2.2: IHDR comes first
    uri = "data:image/png;base64," + base64.b64encode(content).decode()
    return Figure(name, caption(path.stem), uri, width, height)


def caption(stem: str) -> str:
    """A file's name as words: ``uci_elbo`` is "UCI ELBO", ``active_learning`` "Active learning"."""
    words = " ".join(_NAMES.get(word, word) for word in stem.replace("_", " ").split())
    return words[:1].upper() + words[1:]


def read_table(path: Path, name: str, rows: int) -> Table:
    """The first ``rows`` rows of a CSV file with a header; short rows are filled up, long ones widen the table."""
    header: list[str] = []
    shown: list[list[str]] = []
    total, problem = 0, ""
    try:
        with path.open(encoding="utf-8", errors="replace", newline="") as file:
            reader = (row for row in csv.reader(file) if row)
            header = next(reader, [])
            for row in reader:
                total += 1
                if total <= rows:
                    shown.append(row)
    except csv.Error as error:
        problem = f"This file could not be read further: {error}."
    if not header:
        problem = problem or "This file is empty."
    width = max(map(len, [header, *shown]))
    header, *shown = ([*row, *[""] * (width - len(row))] for row in [header, *shown])
    numeric = [_is_numeric(column) for column in zip(*shown, strict=True)] or [False] * width
    return Table(name, header, shown, numeric, total, problem)


def _is_numeric(cells: tuple[str, ...]) -> bool:
    filled = [cell for cell in cells if cell.strip()]
    try:
        for cell in filled:
            float(cell)
    except ValueError:
        return False
    return bool(filled)


def read_settings(path: Path, name: str) -> tuple[Settings, Any]:
    """A JSON file as settings, and as it is; None in place of what cannot be read."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        return Settings(name, list(_flat("", value))), value
    except (ValueError, RecursionError) as error:
        return Settings(name, [], f"This file could not be read: {error}."), None


def _flat(key: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from _flat(f"{key}.{name}" if key else name, inner)
    else:
        yield key, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _commands(recorded: list[dict[str, Any]]) -> list[Command]:
    """Those that :func:`experiments.records.provenance` recorded, equal ones once."""
    seeds: dict[tuple[str, str, str], list[str]] = {}
    for value in recorded:
        packages = value.get("packages")
        if not isinstance(value.get("command"), str) or not isinstance(packages, Mapping):
            continue
        versions = ", ".join(f"{name} {number}" for name, number in packages.items())
        key = (
            value["command"],
            f"{versions}, Python {value.get('python', 'unknown')}",
            f"{value.get('machine', 'unknown')}, threads: {value.get('threads', 'unknown')}",
        )
        seeds.setdefault(key, []).append(_seed(value))
    found = [
        Command(command, ", ".join(sorted({seed for seed in of if seed})) or "not recorded", versions, machine, len(of))
        for (command, versions, machine), of in seeds.items()
    ]
    return sorted(found, key=lambda one: -one.records)


def _seed(value: Mapping[str, Any]) -> str:
    """The seed that a record names, at its top or anywhere in its settings; empty if none."""
    for key, text in itertools.chain(_flat("", value.get("settings", {})), _flat("", value)):
        if key.rpartition(".")[2] == "seed":
            return text
    return ""


# --- Markdown ---------------------------------------------------------------------------------------


def to_html(text: str) -> Markup:
    """Markdown as HTML. HTML in it is shown as text; links and pictures, which would lead outside, are their words."""
    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = parser.parse(text)
    for token in tokens:
        if token.children:
            token.children = [inner for child in token.children for inner in _inside(child)]
        if token.tag in ("h1", "h2", "h3", "h4"):
            token.tag = f"h{int(token.tag[1]) + 2}"  # below the headings of page and folder
    return Markup(parser.renderer.render(tokens, parser.options, {}))


def _inside(token: Token) -> list[Token]:
    if token.type in ("link_open", "link_close"):
        return []
    if token.type == "image":
        return token.children or []
    return [token]
