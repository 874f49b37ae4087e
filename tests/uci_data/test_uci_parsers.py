"""Each parser on a small file in its donor's format, with the traps that the format holds."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest

import uci_data
from uci_data import parsers
from uci_data.entry import Array
from uci_data.parsers import round_half_up

Rows = Iterable[Sequence[float]]


def made_up(columns: int, rows: int = 6) -> Array:
    """A table of numbers with two decimals, all different."""
    return np.round(np.random.default_rng(columns).permutation(rows * columns) * 0.37, 2).reshape(rows, columns)


def check(columns: tuple[Array, Array], X: Array, y: Array) -> None:
    """What was parsed is X and y, to the last bit."""
    np.testing.assert_array_equal(columns[0], X)
    np.testing.assert_array_equal(columns[1], y)
    assert columns[0].dtype == columns[1].dtype == np.float64


def test_boston(tmp_path: Path) -> None:
    path = tmp_path / "housing.data"
    table = made_up(14)
    path.write_text("".join(" " + "  ".join(f"{value:8.4f}" for value in row) + "\n" for row in table))
    check(parsers.boston(path), table[:, :13], table[:, 13])


# Rows of the donor's workbook, and the same rows of the benchmark: features to one decimal and the target
# to two, ties up. Rounding ties to even, or by their binary value, would change 16 or more of such values.
CONCRETE = [
    ((190.34, 0.0, 125.18, 161.85, 9.88, 1088.1, 802.59, 28, 28.46846404),
     (190.3, 0.0, 125.2, 161.9, 9.9, 1088.1, 802.6, 28, 28.47)),
    ((167.95, 42.08, 163.83, 121.75, 5.72, 1058.7, 780.11, 28, 24.24197616),
     (168.0, 42.1, 163.8, 121.8, 5.7, 1058.7, 780.1, 28, 24.24)),
    ((168.88, 42.22, 124.25, 158.33, 10.83, 1080.8, 796.15, 28, 31.11605188),
     (168.9, 42.2, 124.3, 158.3, 10.8, 1080.8, 796.2, 28, 31.12)),
    ((252.31, 0.0, 98.75, 146.25, 14.17, 987.76, 889.01, 28, 50.60064364),
     (252.3, 0.0, 98.8, 146.3, 14.2, 987.8, 889.0, 28, 50.6)),
    ((540.0, 0.0, 0.0, 162.0, 2.5, 1055.0, 676.0, 28, 61.887365759999994),
     (540.0, 0.0, 0.0, 162.0, 2.5, 1055.0, 676.0, 28, 61.89)),
]  # fmt: skip


def test_concrete_is_rounded_as_in_the_benchmark(tmp_path: Path) -> None:
    pytest.importorskip("xlrd")
    path = tmp_path / "Concrete_Data.xls"
    header = [f"Component {number}(kg in a m^3 mixture)" for number in range(9)]
    write_xls(path, header, [raw for raw, _ in CONCRETE])
    expected = np.array([rounded for _, rounded in CONCRETE])
    check(parsers.concrete(path), expected[:, :8], expected[:, 8])


def test_concrete_rows_are_those_of_the_real_set(real_sets: Path) -> None:
    data = uci_data.load("concrete", root=real_sets)
    real = {(*row, target) for row, target in zip(data.X.tolist(), data.y.tolist(), strict=True)}
    assert all(rounded in real for _, rounded in CONCRETE)


def test_round_half_up_leaves_rounded_values_alone() -> None:
    values = np.arange(0, 120_000) / 100
    np.testing.assert_array_equal(round_half_up(values, decimals=2), values)
    ties = np.array([0.05, 0.15, 0.25, 0.35, 1.45, 188.45, 1003.85])
    np.testing.assert_array_equal(round_half_up(ties, 1), [0.1, 0.2, 0.3, 0.4, 1.5, 188.5, 1003.9])
    np.testing.assert_array_equal(round_half_up(np.array([1.005, 8.165]), 2), [1.01, 8.17])


def test_energy_takes_the_heating_load_and_drops_blank_cells(tmp_path: Path) -> None:
    path = tmp_path / "ENB2012_data.xlsx"
    table = made_up(10)
    header = [*(f"X{number}" for number in range(1, 9)), "Y1", "Y2"]
    write_xlsx(path, [[header, *table.tolist()]])
    check(parsers.energy(path), table[:, :8], table[:, 8])


def test_kin8nm(tmp_path: Path) -> None:
    path = tmp_path / "kin8nm.csv"
    table = made_up(9)
    header = ",".join(f'"theta{number}"' for number in range(1, 9)) + ',"y"\n'
    path.write_text(header + as_text(table, ","))
    check(parsers.kin8nm(path), table[:, :8], table[:, 8])


def test_naval_takes_the_compressors_decay(tmp_path: Path) -> None:
    path = tmp_path / "UCI CBM Dataset.zip"
    table = made_up(18)
    lines = "".join("   " + "   ".join(f"{value:.7e}" for value in row) + " \n" for row in table)
    write_zip(path, "UCI CBM Dataset/data.txt", lines.encode())
    check(parsers.naval(path), table[:, :16], table[:, 16])


def test_power_takes_the_fifth_sheet(tmp_path: Path) -> None:
    tables = [made_up(5, rows=rows) for rows in (3, 4, 5, 6, 7)]
    sheets = [[["AT", "V", "AP", "RH", "PE"], *table.tolist()] for table in tables]
    write_xlsx(tmp_path / "book.xlsx", sheets)
    path = tmp_path / "CCPP.zip"
    write_zip(path, "CCPP/Folds5x2_pp.xlsx", (tmp_path / "book.xlsx").read_bytes())
    check(parsers.power(path), tables[4][:, :4], tables[4][:, 4])


def test_protein_has_its_target_first(tmp_path: Path) -> None:
    path = tmp_path / "CASP.csv"
    table = made_up(10)
    path.write_text("RMSD,F1,F2,F3,F4,F5,F6,F7,F8,F9\n" + as_text(table, ","))
    check(parsers.protein(path), table[:, 1:], table[:, 0])


def test_wine(tmp_path: Path) -> None:
    path = tmp_path / "winequality-red.csv"
    table = made_up(12)
    header = ";".join(f'"{name}"' for name in [*uci_data.info("wine").feature_names, "quality"]) + "\n"
    path.write_text(header + as_text(table, ";"))
    check(parsers.wine(path), table[:, :11], table[:, 11])


def test_yacht_has_uneven_spaces_and_a_blank_last_line(tmp_path: Path) -> None:
    path = tmp_path / "yacht_hydrodynamics.data"
    table = made_up(7)
    text = as_text(table, " ", ending=" \n").replace(" ", "  ", 3)
    path.write_text(text + "\n")
    check(parsers.yacht(path), table[:, :6], table[:, 6])


def test_year_has_its_target_first_and_no_header(tmp_path: Path) -> None:
    path = tmp_path / "YearPredictionMSD.txt.zip"
    table = made_up(91)
    table[:, 0] = [2001, 1922, 2011, 1999, 2007, 1985]
    content = as_text(table, ",").encode()
    write_zip(path, "YearPredictionMSD.txt", content)
    check(parsers.year(path), table[:, 1:], table[:, 0])


def test_archive_without_the_file_says_what_it_holds(tmp_path: Path) -> None:
    path = tmp_path / "archive.zip"
    write_zip(path, "other.txt", b"1")
    with pytest.raises(ValueError, match=r"no file data\.txt; it holds"):
        parsers.naval(path)


REAL_TEXT_FORMATS = {
    "boston": ("  ", "", False),
    "kin8nm": (",", "a,b\n", False),
    "protein": (",", "RMSD,F1\n", True),
    "wine": (";", '"a";"b"\n', False),
    "yacht": (" ", "", False),
}


@pytest.mark.parametrize("name", REAL_TEXT_FORMATS)
def test_real_rows_survive_the_donors_text_format(name: str, real_sets: Path, tmp_path: Path) -> None:
    data = uci_data.load(name, root=real_sets)
    separator, header, target_first = REAL_TEXT_FORMATS[name]
    X, y = data.X[:50], data.y[:50]
    table = np.column_stack([y, X] if target_first else [X, y])
    path = tmp_path / "raw"
    path.write_text(header + as_text(table, separator))
    check(data.info.parse(path), X, y)


# Writers of small files in the donors' formats.


def write_xls(path: Path, header: Sequence[str], rows: Rows) -> None:
    """An Excel 2 workbook (the oldest binary format): one sheet, a header of text, then numbers."""
    records = [_record(0x0009, struct.pack("<HH", 2, 0x0010))]
    for column, text in enumerate(header):
        label = struct.pack("<HH3sB", 0, column, b"\0\0\0", len(text)) + text.encode("ascii")
        records.append(_record(0x0004, label))
    for number, row in enumerate(rows, start=1):
        for column, value in enumerate(row):
            records.append(_record(0x0003, struct.pack("<HH3sd", number, column, b"\0\0\0", value)))
    records.append(_record(0x000A, b""))
    path.write_bytes(b"".join(records))


def _record(kind: int, content: bytes) -> bytes:
    return struct.pack("<HH", kind, len(content)) + content


def write_xlsx(path: Path, sheets: Sequence[Sequence[Sequence[object]]]) -> None:
    """A workbook with the given cells on each sheet, then two blank columns and three blank rows."""
    workbook = pytest.importorskip("openpyxl").Workbook()
    workbook.remove(workbook.active)
    for cells in sheets:
        sheet = workbook.create_sheet()
        for row in cells:
            sheet.append(list(row))
        sheet.cell(sheet.max_row + 3, sheet.max_column + 2).number_format = "0.00"
    workbook.save(path)


def write_zip(path: Path, member: str, content: bytes) -> None:
    """An archive with some other file and ``member``."""
    with ZipFile(path, "w") as archive:
        archive.writestr("Readme.txt", "about the data")
        archive.writestr(member, content)


def as_text(rows: Rows, separator: str, ending: str = "\n") -> str:
    """Numbers in the fewest digits that give them back."""
    return "".join(separator.join(repr(float(value)) for value in row) + ending for row in rows)
