"""Downloads that go on where they were cut off, and that are what they should be."""

from __future__ import annotations

import hashlib
import http.client
import time
import urllib.error
import urllib.request
from pathlib import Path

from filelock import FileLock
from tqdm import tqdm

from ..errors import Mat2SeqError

__all__ = ["download", "git_blob_hash"]

_BLOCK = 2**20
_TIMEOUT = 30.0
_LOST = (urllib.error.URLError, TimeoutError, ConnectionError, http.client.HTTPException)


def git_blob_hash(path: Path) -> str:
    """SHA-1 of a file as git computes it for a blob (after its length), in hexadecimal."""
    # not for secrecy: the published list of the repository is in these hashes
    digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _receive(url: str, partial: Path) -> None:
    """Append what is missing of a file; whatever arrives is kept."""
    have = partial.stat().st_size if partial.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})  # noqa: S310 - https
    with urllib.request.urlopen(request, timeout=_TIMEOUT) as answer:  # noqa: S310 - the scheme is checked by download
        resumed = answer.status == http.client.PARTIAL_CONTENT
        length = answer.headers.get("Content-Length")
        start = have if resumed else 0
        with (
            partial.open("ab" if resumed else "wb") as file,
            tqdm(total=start + int(length) if length else None, initial=start, unit="B", unit_scale=True,
                 desc=partial.stem, leave=False) as bar,
        ):  # fmt: skip
            while block := answer.read(_BLOCK):
                file.write(block)
                bar.update(len(block))
        if length is not None and partial.stat().st_size < start + int(length):
            raise http.client.IncompleteRead(b"", start + int(length) - partial.stat().st_size)


def download(url: str, path: Path, checksum: str, *, tries: int = 5, pause: float = 1.0) -> None:
    """Fetch a file unless it is there; go on with a part that is there, and check the whole. One process at a time.

    Args:
        url: http or https.
        path: where the file goes; ``<path>.part`` until it is complete.
        checksum: see :func:`git_blob_hash`.
        tries: attempts before giving up; what has arrived is kept for the next run.
        pause: seconds before the second attempt, doubled before each further one.

    Raises:
        Mat2SeqError: no connection, an error of the server, or another checksum.
    """
    if path.exists() and git_blob_hash(path) == checksum:
        return
    if not url.startswith(("https://", "http://")):
        raise Mat2SeqError(f"{url} is neither http nor https")
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock")):
        if not (path.exists() and git_blob_hash(path) == checksum):  # else another process has fetched it
            _fetch(url, path, checksum, tries, pause)


def _fetch(url: str, path: Path, checksum: str, tries: int, pause: float) -> None:
    partial = path.with_name(f"{path.name}.part")
    for attempt in range(tries):
        try:
            _receive(url, partial)
            break
        except urllib.error.HTTPError as error:
            if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:  # all of it is there, or it is another file
                if git_blob_hash(partial) == checksum:
                    break
                partial.unlink()
            elif error.code < 500 and error.code != http.client.TOO_MANY_REQUESTS:
                raise Mat2SeqError(f"{url}: the server answers {error.code} {error.reason}") from error
            reason: Exception = error
        except _LOST as error:
            reason = error
        if attempt + 1 == tries:
            raise Mat2SeqError(
                f"{url} cannot be downloaded ({reason}); check the network and start again, which goes on where "
                "it was cut off, or give data_dir with a copy"
            ) from reason
        time.sleep(pause * 2**attempt)
    if (found := git_blob_hash(partial)) != checksum:
        partial.unlink()
        raise Mat2SeqError(f"{url} is not the published file: checksum {found}, expected {checksum}; try again")
    partial.replace(path)
