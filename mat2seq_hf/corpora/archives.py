"""The files in folders and archives: each of them once, in an order that never changes, and nothing left out unsaid."""

from __future__ import annotations

import gzip
import logging
import os
import stat
import tarfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from operator import itemgetter
from pathlib import Path, PurePosixPath
from typing import BinaryIO, cast

from ..errors import Mat2SeqError

__all__ = ["archive_files", "folder_files", "is_archive", "is_visible", "open_file", "warn_left_out", "warn_unread"]

logger = logging.getLogger(__name__)

_ARCHIVES = (".zip", ".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz")
_NAMED = 5  # in a warning


def is_archive(name: str) -> bool:
    """Whether a name is that of a zip or tar archive."""
    return name.lower().endswith(_ARCHIVES)


def is_visible(name: str) -> bool:
    """Whether a file is one that its owner knows of; others are hidden ones and what a Mac or Windows adds."""
    parts = [part for part in PurePosixPath(name).parts if part != ".."]  # nothing is unpacked, so it leads nowhere
    return not any(part.startswith((".", "__MACOSX")) or part.lower() == "thumbs.db" for part in parts)


def warn_left_out(names: Sequence[str], place: str = "") -> None:
    """Say how many files of which kinds were left out."""
    if names:
        skipped = Counter(PurePosixPath(name).suffix or PurePosixPath(name).name for name in names)
        kinds = ", ".join(f"{count} {kind}" for kind, count in skipped.most_common(_NAMED))
        logger.warning("left out %d files that hold no crystals%s: %s", len(names), place and f" in {place}", kinds)


def warn_unread(names: Sequence[str], what: str, place: str) -> None:
    """Say how many files were not read, which are the first, and what they are."""
    if names:
        listed = ", ".join(names[:_NAMED]) + (" ..." if len(names) > _NAMED else "")
        logger.warning("left out %d %s in %s: %s", len(names), what, place, listed)


def folder_files(path: Path) -> list[Path]:
    """The files of a folder and of all folders in it, but hidden ones, in the order of names.

    Links to folders are not followed; these, links to nothing, and what may not be read are named in a warning.
    """
    files: list[Path] = []
    links: list[str] = []
    closed: list[str] = []
    for place, folders, names in os.walk(path, onerror=lambda error: closed.append(str(error.filename))):
        folders[:] = filter(is_visible, folders)
        links += [str(Path(place, name)) for name in folders if Path(place, name).is_symlink()]
        for entry in (Path(place, name) for name in names if is_visible(name)):
            try:
                if entry.is_file():
                    files.append(entry)
                elif entry.is_symlink():
                    links.append(str(entry))
            except OSError:  # a folder may be listed, but not entered
                closed.append(str(entry))
    warn_unread(sorted(links), "links to folders or to nothing", str(path))
    warn_unread(sorted(closed), "files and folders that cannot be read", str(path))
    return sorted(files)


def open_file(path: Path) -> BinaryIO:
    """The file, open for reading bytes, unpacked where its name ends in ``.gz``."""
    return cast("BinaryIO", gzip.open(path) if path.name.lower().endswith(".gz") else path.open("rb"))


def _unpacked(name: str, stream: BinaryIO) -> BinaryIO:
    return cast("BinaryIO", gzip.GzipFile(fileobj=stream)) if name.lower().endswith(".gz") else stream


def archive_files(path: Path) -> Iterator[tuple[str, Callable[[], BinaryIO]]]:
    """Name of each file of an archive but hidden ones, and a function that opens it; nothing is unpacked to disk.

    A zip archive in the order of names; a tar archive in its own, because a compressed one can only be read from the
    front: each file has to be read before the next is asked for. Symbolic links are left out and named in a warning.

    Raises:
        OSError, ValueError, tarfile.TarError, zipfile.BadZipFile and others: the archive is broken; also after the
            last file that could be found, where the archive does not end there.
    """
    links: list[str] = []
    yield from (_zip_files if path.name.lower().endswith(".zip") else _tar_files)(path, links)
    warn_unread(links, "symbolic links", path.name)


def _zip_files(path: Path, links: list[str]) -> Iterator[tuple[str, Callable[[], BinaryIO]]]:
    with zipfile.ZipFile(path) as archive:
        # some programs on Windows write backslashes between folders
        entries = [(entry.filename.replace("\\", "/"), entry) for entry in archive.infolist()]
        for name, entry in sorted(entries, key=itemgetter(0)):
            if name.endswith("/") or not is_visible(name):
                continue
            if stat.S_ISLNK(entry.external_attr >> 16):
                links.append(name)
            else:
                yield name, partial(_zip_member, archive, entry)


def _zip_member(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> BinaryIO:
    return _unpacked(entry.filename, cast("BinaryIO", archive.open(entry)))


def _tar_files(path: Path, links: list[str]) -> Iterator[tuple[str, Callable[[], BinaryIO]]]:
    with tarfile.open(path, "r:*") as tar:
        for member in tar:
            if not is_visible(member.name):
                continue
            if member.issym():
                links.append(member.name)
            elif member.isfile() or member.islnk():
                yield member.name, partial(_tar_member, tar, member)
        # tarfile takes a header that it cannot read, or that is not there, for the end
        assert tar.fileobj is not None  # it is open
        tar.fileobj.seek(tar.offset)
        end = tar.fileobj.read(tarfile.BLOCKSIZE)
        if end.strip(b"\0"):
            raise tarfile.ReadError(f"the archive is damaged at byte {tar.offset}")
        if len(end) < tarfile.BLOCKSIZE:
            raise tarfile.ReadError(f"the archive is cut off at byte {tar.offset}: it has no zeros at its end")


def _tar_member(tar: tarfile.TarFile, member: tarfile.TarInfo) -> BinaryIO:
    stream = tar.extractfile(member)  # of a hard link: the file of the archive that it names
    if stream is None:
        raise Mat2SeqError(f"{member.name} is a link to what is no file")
    return _unpacked(member.name, cast("BinaryIO", stream))
