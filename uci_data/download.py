"""Download of a donor's file: checked against its checksum, parsed, verified."""

from __future__ import annotations

import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

from .entry import Array, DatasetInfo
from .errors import MissingExtraError, SourceUnavailableError, corrupted_data
from .extras import require
from .integrity import verify

CONNECT_AND_READ_SECONDS = (5, 30)


def download(info: DatasetInfo, progress: bool) -> tuple[Array, Array]:
    """Fetch the donor's file into a temporary folder and read X (N, D) and y (N,) from it.

    Raises:
        SourceUnavailableError: an optional package is missing, the network failed, or what came is not the
            donor's file (its checksum differs).
        CorruptedDataError: the right file came, but did not give the registry's arrays.
    """
    with tempfile.TemporaryDirectory(prefix="noisynat-") as folder:
        try:
            for module in info.needs:
                require(module)
            path = fetch(info, Path(folder), progress)
        except (MissingExtraError, OSError, ValueError) as error:
            raise SourceUnavailableError(f"{type(error).__name__}: {error}") from error
        X, y = _parsed(info, path)
    verify(info, X, y, info.url)
    return X, y


def fetch(info: DatasetInfo, folder: Path, progress: bool) -> Path:
    """Download the donor's file into ``folder`` and check its SHA-256, where that is known.

    Progress goes to standard error: a bar on a terminal, plain lines otherwise.
    """
    pooch = require("pooch")
    bar = progress and sys.stderr.isatty() and find_spec("tqdm") is not None
    _say(progress and not bar, f"Downloading {info.name} from {info.url}")
    downloader = pooch.HTTPDownloader(progressbar=bar, timeout=CONNECT_AND_READ_SECONDS, chunk_size=1 << 16)
    logger = pooch.get_logger()
    level = logger.level
    logger.setLevel("WARNING")
    try:
        path = Path(
            pooch.retrieve(
                info.url,
                known_hash=info.download_sha256,
                fname=f"{info.name}.download",
                path=folder,
                downloader=downloader,
            )
        )
    finally:
        logger.setLevel(level)
    _say(progress and not bar, f"Downloaded {info.name}: {path.stat().st_size / 1e6:.1f} MB")
    return path


def _parsed(info: DatasetInfo, path: Path) -> tuple[Array, Array]:
    try:
        return info.parse(path)
    except Exception as error:  # whatever a reader of text, Excel or zip files raises
        raise corrupted_data(
            info.name,
            info.url,
            expected="the donor's file format",
            found=f"not readable ({type(error).__name__}: {error})",
        ) from error


def _say(wanted: bool, line: str) -> None:
    if wanted:
        print(line, file=sys.stderr, flush=True)
