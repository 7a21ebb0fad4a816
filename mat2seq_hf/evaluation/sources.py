"""Reading what is evaluated: samples of this package or of others, and the crystals they are compared with."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import pyarrow.parquet as pq

from ..cif_reading import without_half_pairs
from ..corpora.archives import archive_files, folder_files, is_archive, open_file, warn_left_out
from ..corpora.csv_reading import csv_records
from ..corpora.formats import crystal_text
from ..corpora.rows import check_columns, chosen, plain_name, stem_of
from ..corpora.sources import read_rows, said
from ..errors import Mat2SeqError

__all__ = ["Reference", "SampleText", "assign_prompts", "read_references", "read_samples"]

_MAX_BYTES = 5_000_000  # of one CIF; larger ones are not crystals of this size
_PROMPT_COLUMNS = ("prompt_id", "material_id", "id")
_NUMBER_AT_END = re.compile(r"(?P<id>.+?)_{1,2}(?P<index>\d+)$")


@dataclass(frozen=True)
class SampleText:
    """One sample as it was given.

    Attributes:
        prompt_id: what it answers; "" where that is not known.
        index: number among the samples of its prompt, from 0; -1 where it has none.
        cif: text, None if there is none.
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

    def __post_init__(self) -> None:
        for name in ("prompt_id", "cif", "reason", "source"):
            # names of files that are no UTF-8 have half surrogate pairs, which fit into no report
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, without_half_pairs(value))


@dataclass(frozen=True)
class Reference:
    """A crystal of a corpus: ``cif`` is its text, of any kind, and ``facts`` are its other columns."""

    id: str
    cif: str
    facts: str = "{}"


def read_samples(inputs: Sequence[str | Path]) -> list[SampleText]:
    """Samples from tables (parquet, CSV), CIF files, folders of CIFs, and archives (zip, tar) of CIFs.

    Files and archives are listed as for a corpus, see :func:`~..corpora.sources.read_rows`: hidden files are left out,
    others are counted in a warning, and ``.gz`` is unpacked. A table has a column ``cif``; ``prompt_id`` (or
    ``material_id`` or ``id``) and ``sample_index`` place a row. The samples.parquet of this package is such a table,
    and of a folder that has one nothing else is read. A CIF file is placed by its name, ``ID__1.cif`` or ``ID_1.cif``,
    or, if that gives no number, by its folder, ``ID/1.cif``. Where no sample of all inputs has the number 0, they
    count from 1. Archives are read in memory, nothing is extracted.

    Raises:
        Mat2SeqError: an input does not exist, is of no known kind, or holds no samples.
    """
    samples: list[SampleText] = []
    for path in map(Path, inputs):
        before = len(samples)
        samples += _read_one(path)
        if len(samples) == before:
            raise Mat2SeqError(f"{path} holds no samples: give a table with a column cif, or CIF files")
    return _from_0(samples)


def _read_one(path: Path) -> Iterator[SampleText]:
    kind = plain_name(path.name).lower()
    if not path.exists():
        raise Mat2SeqError(f"{path} does not exist")
    if path.is_dir():
        yield from _folder(path)
    elif kind.endswith((".parquet", ".csv")):
        yield from _table(path)
    elif is_archive(path.name):
        yield from _archive(path)
    elif kind.endswith(".cif"):
        yield _cif(path.name, partial(open_file, path))
    else:
        raise Mat2SeqError(f"{path.name} is no table (parquet, CSV), CIF, folder or archive (zip, tar)")


def _is_cif(name: str) -> bool:
    return plain_name(name).lower().endswith(".cif")


def _cif(name: str, open_one: Callable[[], BinaryIO]) -> SampleText:
    """A CIF placed by its path."""
    text, reason = _text(open_one)
    stem = stem_of(name)
    folders = PurePosixPath(name).parts[:-1]
    if found := _NUMBER_AT_END.fullmatch(stem):
        prompt, index = found["id"], int(found["index"])
    elif stem.isdecimal() and folders:
        prompt, index = folders[-1], int(stem)
    else:
        prompt, index = stem, -1
    return SampleText(prompt, index if index < 2**31 else -1, text, reason, name)


def _text(open_one: Callable[[], BinaryIO]) -> tuple[str | None, str | None]:
    """Text of a file, or why it has none."""
    try:
        with open_one() as stream:
            content = stream.read(_MAX_BYTES + 1)
        if len(content) > _MAX_BYTES:
            return None, "larger than 5 MB"
        return content.decode("utf-8-sig", errors="replace"), None  # as corpora are read: comments are in any code
    except Exception as error:  # noqa: BLE001 - what is read raises nearly every type; the sample says which
        return None, f"cannot be read: {said(error)}"


def _from_0(samples: list[SampleText]) -> list[SampleText]:
    """Samples with numbers from 0; where none has the number 0, they count from 1, whatever they were read from."""
    if 0 in {sample.index for sample in samples}:
        return samples
    return [replace(sample, index=sample.index - 1) if sample.index > 0 else sample for sample in samples]


def _folder(path: Path) -> Iterator[SampleText]:
    """The samples.parquet of a folder; otherwise its parquet tables or its CIFs."""
    if (path / "samples.parquet").is_file():  # parts and CIFs beside it are the same samples
        yield from _table(path / "samples.parquet")
        return
    files = folder_files(path)
    tables = [file for file in files if file.suffix.lower() == ".parquet"]
    cifs = [file for file in files if _is_cif(file.name)]
    if tables and cifs:
        raise Mat2SeqError(
            f"{path} holds tables ({tables[0].name}) and CIFs ({cifs[0].name}), which may be the same samples: name "
            "those that are meant"
        )
    for file in tables:
        yield from _table(file)
    for file in cifs:
        yield _cif(file.relative_to(path).as_posix(), partial(open_file, file))
    warn_left_out([file.name for file in files if file not in {*tables, *cifs}])


def _archive(path: Path) -> Iterator[SampleText]:
    samples: list[SampleText] = []
    skipped = []
    try:
        for name, open_member in archive_files(path):
            if _is_cif(name):
                samples.append(_cif(name, open_member))
            else:
                skipped.append(name)
    except Exception as error:
        raise Mat2SeqError(f"{path.name} cannot be read as an archive: {said(error)}") from error
    warn_left_out(skipped, path.name)
    yield from sorted(samples, key=lambda sample: sample.source)


def _records(path: Path) -> tuple[list[str], Iterator[dict[str, Any] | str]]:
    """Columns and rows of a table; in place of a row what is wrong with it."""
    try:
        if plain_name(path.name).lower().endswith(".csv"):
            with open_file(path) as stream:
                names, rows = csv_records(stream, ("cif", *_PROMPT_COLUMNS))
                return names, iter(list(rows))
        with path.open("rb") as stream:  # arrow itself opens only names in UTF-8
            table = pq.read_table(stream)
            check_columns(table.column_names)
    except Exception as error:
        raise Mat2SeqError(f"{path} cannot be read as a table: {error}") from error
    return table.column_names, iter(table.to_pylist())


def _index(given: Any, source: str) -> int:
    """Number of a sample, -1 where there is none."""
    if given is None or given != given:  # noqa: PLR0124 - a missing number is nan where a column has gaps
        return -1
    if isinstance(given, (int, float)) and float(given).is_integer() and 0 <= given < 2**31:
        return int(given)
    raise Mat2SeqError(f"{source}: the sample_index {given!r} is no whole number from 0 on")


def _table(path: Path) -> Iterator[SampleText]:
    names, rows = _records(path)
    if "cif" not in names:
        raise Mat2SeqError(f"{path.name} has no column 'cif'; its columns are {', '.join(names)}")
    key = next((name for name in _PROMPT_COLUMNS if name in names), "")
    for number, row in enumerate(rows):
        source = f"{path.name}:{number}"
        if isinstance(row, str):
            yield SampleText("", -1, None, row, source)
            continue
        crystal = row.pop("cif", None)
        prompt = row.pop(key, None)
        given = row.pop("sample_index", None)
        try:  # gaps are nan in a column without any text
            cif = None if crystal != crystal else crystal_text(crystal) or None  # noqa: PLR0124
            reason = None if cif else str(row.get("reason") or "no CIF")
        except (TypeError, ValueError) as error:
            cif, reason = None, str(error)
        facts = tuple((name, value) for name, value in row.items() if isinstance(value, (str, int, float, bool)))
        yield SampleText("" if prompt is None else str(prompt), _index(given, source), cif, reason, source, facts)


def assign_prompts(samples: Sequence[SampleText], known: Collection[str]) -> list[SampleText]:
    """Samples of known prompts with the numbers they have, so that what is missing stays missing.

    Samples without a number, or with one that another sample of the prompt has, get the numbers after the largest.
    A file named ``mp-12_3.cif`` is sample 3 of ``mp-12`` unless ``mp-12_3`` is itself a known prompt.

    Raises:
        Mat2SeqError: no sample belongs to a known prompt, or none says to which it belongs.
    """
    known = set(known)
    placed: list[SampleText] = []
    for sample in samples:
        stem = stem_of(sample.source) if _is_cif(sample.source) else ""
        if stem in known and (sample.prompt_id not in known or _NUMBER_AT_END.fullmatch(stem)):
            placed.append(replace(sample, prompt_id=stem, index=-1))
        elif sample.prompt_id in known:
            placed.append(sample)
    if not placed and not any(sample.prompt_id for sample in samples):
        others = ", ".join(name for name, _ in samples[0].facts) if samples else ""
        raise Mat2SeqError(
            f"no sample says which crystal it answers: give a table with a column {' or '.join(_PROMPT_COLUMNS)}"
            + (f"; beside cif there are {others}" if others else "")
        )
    if not placed:
        asked = ", ".join(sorted({sample.prompt_id for sample in samples})[:3])
        raise Mat2SeqError(
            f"no sample answers a crystal of the reference: samples are for {asked} ..., "
            f"the reference has {', '.join(sorted(known)[:3])} ..."
        )
    numbered: dict[tuple[str, int], SampleText] = {}
    without = []
    for sample in placed:
        if sample.index < 0 or (sample.prompt_id, sample.index) in numbered:
            without.append(sample)
        else:
            numbered[sample.prompt_id, sample.index] = sample
    following: dict[str, int] = {}
    for prompt, index in numbered:
        following[prompt] = max(following.get(prompt, 0), index + 1)
    for sample in without:
        index = following.get(sample.prompt_id, 0)
        following[sample.prompt_id] = index + 1
        numbered[sample.prompt_id, index] = replace(sample, index=index)
    return [numbered[place] for place in sorted(numbered)]


def read_references(path: str | Path, ids: str | Path | None = None) -> list[Reference]:
    """Crystals of a corpus: a table or a folder, see :func:`~..corpora.sources.read_rows`.

    Args:
        path: table with ``cif`` and ``material_id``, folder of crystals, or anything else that is read there.
        ids: text file with one id a line; only these crystals are taken.

    Raises:
        Mat2SeqError: the corpus cannot be read, has an id twice, or lacks one that the file names.
    """
    found = list(read_rows([path]))
    if not found:
        raise Mat2SeqError(f"no crystals in {path}")
    if all(row.problem for row in found):
        raise Mat2SeqError(f"none of the {len(found)} crystals in {path} can be read; the first: {found[0].problem}")
    rows = [Reference(row.id, row.text, row.properties) for row in found]
    by_id = {row.id: row for row in rows}
    if len(by_id) < len(rows):
        twice = next(row.id for row in rows if by_id[row.id] is not row)
        raise Mat2SeqError(f"{path} has the id {twice!r} more than once")
    return rows if ids is None else chosen(by_id, ids, path)
