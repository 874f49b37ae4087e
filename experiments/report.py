"""One page of everything that an experiment wrote: figures, tables, settings, and which command made them.

    python -m experiments.report results/uci

The page is one HTML file without any reference outside: it can be sent, archived and read offline. Figures are
inside, tables are sorted by a click on a column's name. Needs the extra ``noisynat[experiments]``.
"""

from __future__ import annotations

import base64
import hashlib
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated

import typer
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from experiments import records
from experiments.report_contents import Contents, read

_NAME = "report.html"


def page(contents: Contents, title: str, date: str = "") -> str:
    """The HTML of a report.

    Args:
        contents: of the folder.
        title: of the page.
        date: of the results, a line below the title.
    """
    # Every value is escaped, and the browser is told to run this one script and to load nothing.
    templates = Environment(
        loader=PackageLoader("experiments"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters["size"] = _size
    script, style = (_source(templates, name) for name in ("report.js", "report.css"))
    anchors = {
        path: f"{kind}-{number}"
        for kind, paths in _paths(contents).items()
        for number, path in enumerate(paths, start=1)
    }
    html = templates.get_template(_NAME).render(
        title=title,
        date=date,
        results=[section for section in contents.sections if section.is_result],
        runs=[section for section in contents.sections if not section.is_result],
        commands=contents.commands,
        anchors=anchors,
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        style=Markup(style),
    )
    return html.encode("utf-8", "backslashreplace").decode()  # names of files need not be Unicode


def _source(templates: Environment, name: str) -> str:
    assert templates.loader is not None
    return templates.loader.get_source(templates, name)[0].strip()


def _paths(contents: Contents) -> dict[str, list[str]]:
    """What gets an anchor, by kind."""
    return {
        "folder": [section.path for section in contents.sections],
        "text": [path for section in contents.sections for path in section.texts],
        "figure": [figure.path for section in contents.sections for figure in section.figures],
        "table": [table.path for section in contents.sections for table in section.tables],
    }


def _size(count: int) -> str:
    """Bytes for a reader."""
    value, unit = float(count), "bytes"
    for larger in ("kB", "MB", "GB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:.0f} {unit}" if unit == "bytes" else f"{value:.1f} {unit}"


def newest(folder: Path, leave_out: Path) -> str:
    """When the newest file of ``folder`` was written, in universal time; empty if there is none."""
    times = [path.stat().st_mtime for path in folder.rglob("*") if path.is_file() and path != leave_out]
    return datetime.fromtimestamp(max(times), timezone.utc).strftime("%Y-%m-%d %H:%M UTC") if times else ""


def main(
    folder: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="Results of an experiment.")],
    output: Annotated[Path | None, typer.Option(help=f"The page; default: {_NAME} in the folder.")] = None,
    rows: Annotated[int, typer.Option(min=1, help="Shown of every table, at most.")] = 100,
    title: Annotated[str | None, typer.Option(help="Of the page; default: the folder's name.")] = None,
) -> None:
    """Write one HTML page of all figures, tables and settings in FOLDER."""
    folder = folder.resolve()
    target = (output or folder / _NAME).resolve()
    contents = read(folder, rows, leave_out=target)
    if not contents.sections:
        raise typer.BadParameter(f"there are no files in {folder}", param_hint="FOLDER")
    records.write_text(target, page(contents, title or folder.name, newest(folder, target)))
    figures, tables = (len(_paths(contents)[kind]) for kind in ("figure", "table"))
    print(f"written: {target} ({_size(target.stat().st_size)}; figures: {figures}, tables: {tables})")


if __name__ == "__main__":
    typer.run(main)
