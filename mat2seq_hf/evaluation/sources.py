"""Reading what is evaluated: samples of this package or of others, and the crystals they are compared with."""

from __future__ import annotations

import re
import tarfile
import zipfile
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..corpora.prepare import read_rows
from ..errors import Mat2SeqError

__all__ = ["Reference", "SampleText", "assign_prompts", "read_references", "read_samples"]

_MAX_BYTES = 5_000_000  # of one CIF; larger ones are not crystals of this size
_ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
_NUMBER_AT_END = re.compile(r"(?P<id>.+?)_{1,2}(?P<index>\d+)$")


@dataclass(frozen=True)
class SampleText:
    """One sample as it was given.

    Attributes:
        prompt_id: what it answers; "" where that is not known.
        index: number among the samples of its prompt.
        cif: CIF text, None if there is none.
        reason: why there is none.
        source: file and row or member.
        facts: other columns of a table, such as ``seconds``.
    """

    prompt_id: str
    index: int
    cif: str | None
    reason: str | None
    source: str
    facts: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True)
class Reference:
    """A crystal of a corpus: ``facts`` are its other columns."""

    id: str
    cif: str
    facts: str = "{}"


def read_samples(inputs: Sequence[str | Path]) -> list[SampleText]:
    """Samples from tables (parquet, CSV), CIF files, folders of CIFs, and archives (zip, tar) of CIFs.

    A table has a column ``cif``; ``prompt_id`` (or ``material_id`` or ``id``) and ``sample_index`` place a row. The
    samples.parquet of this package is such a table. A CIF file is placed by its name, ``ID__1.cif`` or ``ID_1.cif``,
    or, if that gives no number, by its folder, ``ID/1.cif``. Archives are read in memory, nothing is extracted.

    Raises:
        Mat2SeqError: an input does not exist, is of no known kind, or holds no samples.
    """
    samples: list[SampleText] = []
    for path in map(Path, inputs):
        before = len(samples)
        samples += _read_one(path)
        if len(samples) == before:
            raise Mat2SeqError(f"{path} holds no samples: give a table with a column cif, or CIF files")
    return samples


def _read_one(path: Path) -> Iterator[SampleText]:
    if not path.exists():
        raise Mat2SeqError(f"{path} does not exist")
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
        tables = [file for file in files if file.suffix == ".parquet"]
        for file in tables:
            yield from _table(file)
        for file in files:
            if file.suffix.lower() == ".cif":
                text, reason = (
                    _text(file.read_bytes()) if file.stat().st_size <= _MAX_BYTES else (None, "larger than 5 MB")
                )
                yield _named(file.relative_to(path).as_posix(), text, reason)
    elif path.suffix in {".parquet", ".csv"}:
        yield from _table(path)
    elif path.name.lower().endswith(_ARCHIVES):
        yield from _archive(path)
    elif path.suffix.lower() == ".cif":
        yield _named(path.name, *_text(path.read_bytes()))
    else:
        raise Mat2SeqError(f"{path.name} is no table (parquet, CSV), CIF, folder or archive (zip, tar)")


def _text(content: bytes) -> tuple[str | None, str | None]:
    """Text of a file, or why it has none."""
    try:
        return content.decode("utf-8-sig"), None
    except UnicodeDecodeError:
        return None, "not a text file (UTF-8)"


def _named(name: str, text: str | None, reason: str | None) -> SampleText:
    """A CIF placed by its path."""
    parts = name.removesuffix(".cif").removesuffix(".CIF").split("/")
    stem = parts[-1]
    if found := _NUMBER_AT_END.fullmatch(stem):
        prompt, index = found["id"], int(found["index"])
    elif stem.isdecimal() and len(parts) > 1:
        prompt, index = parts[-2], int(stem)
    else:
        prompt, index = stem, 0
    return SampleText(prompt, index if index < 2**31 else 0, text, reason, name)


def _archive(path: Path) -> Iterator[SampleText]:
    for name, size, content in sorted(_members(path), key=lambda member: member[0]):
        text, reason = _text(content) if size <= _MAX_BYTES else (None, "larger than 5 MB")
        yield _named(name, text, reason)


def _members(path: Path) -> Iterator[tuple[str, int, bytes]]:
    """Name, size and content of the CIFs of an archive; content is empty if it is too large."""
    try:
        if path.suffix == ".zip":
            with zipfile.ZipFile(path) as archive:
                for info in archive.infolist():
                    if info.filename.lower().endswith(".cif"):
                        content = archive.read(info) if info.file_size <= _MAX_BYTES else b""
                        yield info.filename, info.file_size, content
            return
        with tarfile.open(path) as tar:
            for member in tar:
                if member.isfile() and member.name.lower().endswith(".cif"):
                    handle = tar.extractfile(member) if member.size <= _MAX_BYTES else None
                    yield member.name, member.size, handle.read() if handle else b""
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, RuntimeError) as error:
        raise Mat2SeqError(f"{path.name} cannot be read as an archive: {error}") from error


def _table(path: Path) -> Iterator[SampleText]:
    if path.suffix == ".csv":
        for number, row in enumerate(read_rows([path])):
            yield SampleText(row.id, 0, row.text or None, None if row.text else "no CIF", f"{path.name}:{number}")
        return
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise Mat2SeqError(f"{path} cannot be read as a table: {error}") from error
    names = table.column_names
    if "cif" not in names:
        raise Mat2SeqError(f"{path.name} has no column 'cif'; its columns are {', '.join(names)}")
    key = next((name for name in ("prompt_id", "material_id", "id") if name in names), None)
    for number, row in enumerate(table.to_pylist()):
        cif = row.pop("cif") or None
        prompt = str(row.pop(key)) if key else ""
        given = row.pop("sample_index", None)
        reason = None if cif else str(row.get("reason") or "no CIF")
        facts = tuple((name, value) for name, value in row.items() if isinstance(value, (str, int, float, bool)))
        yield SampleText(prompt, -1 if given is None else int(given), cif, reason, f"{path.name}:{number}", facts)


def assign_prompts(samples: Sequence[SampleText], known: Collection[str]) -> list[SampleText]:
    """Samples of known prompts, numbered from 0 in the order given.

    A file named ``mp-12_3.cif`` is sample 3 of ``mp-12`` unless ``mp-12_3`` is itself a known prompt.

    Raises:
        Mat2SeqError: no sample belongs to a known prompt.
    """
    known = set(known)
    placed: list[SampleText] = []
    for sample in samples:
        stem = Path(sample.source).stem
        if sample.prompt_id in known:
            placed.append(sample)
        elif stem in known:
            placed.append(replace(sample, prompt_id=stem, index=0))
    if not placed:
        asked = ", ".join(sorted({sample.prompt_id for sample in samples})[:3])
        raise Mat2SeqError(
            f"no sample answers a crystal of the reference: samples are for {asked} ..., "
            f"the reference has {', '.join(sorted(known)[:3])} ..."
        )
    placed.sort(key=lambda sample: (sample.prompt_id, sample.index))
    counts: dict[str, int] = {}
    numbered = []
    for sample in placed:
        index = counts.get(sample.prompt_id, 0)
        counts[sample.prompt_id] = index + 1
        numbered.append(replace(sample, index=index))
    return numbered


def read_references(path: str | Path, ids: str | Path | None = None) -> list[Reference]:
    """Crystals of a corpus: a table or a folder, see :func:`~..corpora.prepare.read_rows`.

    Args:
        path: table with ``cif`` and ``material_id``, or folder of CIFs.
        ids: text file with one id a line; only these crystals are taken.

    Raises:
        Mat2SeqError: the corpus cannot be read, has an id twice, or lacks one that the file names.
    """
    rows = [Reference(row.id, row.text, row.properties) for row in read_rows([path])]
    if not rows:
        raise Mat2SeqError(f"no crystals in {path}")
    by_id = {row.id: row for row in rows}
    if len(by_id) < len(rows):
        twice = next(row.id for row in rows if by_id[row.id] is not row)
        raise Mat2SeqError(f"{path} has the id {twice!r} more than once")
    if ids is None:
        return rows
    try:
        lines = Path(ids).read_text(encoding="utf-8-sig").split()
    except UnicodeDecodeError as error:
        raise Mat2SeqError(f"{ids} is not a text file (UTF-8)") from error
    wanted = list(dict.fromkeys(lines))
    if missing := [name for name in wanted if name not in by_id]:
        raise Mat2SeqError(f"{len(missing)} ids of {ids} are not in {path}, such as {missing[0]!r}")
    if not wanted:
        raise Mat2SeqError(f"{ids} names no ids")
    return [by_id[name] for name in wanted]
