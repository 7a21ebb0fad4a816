"""One crystal to one row, and one chunk of rows to its two files: what runs in every worker, here and in a cluster."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from ..canonical import CanonicalCrystal, canonicalize, check_symprec
from ..errors import CrystalError, Mat2SeqError
from ..sequence import SCHEME_VERSION, scheme_fingerprint
from ..vocabulary import BOS, EOS, TOKEN_IDS, tokenize
from .rows import InputRow, cut
from .schema import METADATA_KEY, PREPARED, REJECTED, read_shard
from .texts import ON_DISORDER, crystal_of, is_disordered, ordered

__all__ = [
    "Counts",
    "DisorderError",
    "EncodeSettings",
    "encode_chunk",
    "encode_row",
    "write_csv",
    "write_table",
    "write_tables",
]


class DisorderError(Mat2SeqError):
    """A crystal has partial occupancy, and the corpus must not have any."""


@dataclass(frozen=True)
class EncodeSettings:
    """What the rows of a prepared corpus depend on.

    Attributes:
        symprec: tolerance of the symmetry search in angstrom.
        on_disorder: ``"set_aside"`` a crystal with partial occupancy, ``"order"`` it with pymatgen, or stop with an
            ``"error"``.
    """

    symprec: float = 0.01
    on_disorder: str = "set_aside"

    def __post_init__(self) -> None:
        check_symprec(self.symprec)  # else every single row would be set aside
        if self.on_disorder not in ON_DISORDER:
            raise Mat2SeqError(f"on_disorder is one of {', '.join(ON_DISORDER)}, not {self.on_disorder!r}")

    def metadata(self) -> dict[str, object]:
        """What is written into every file, so that sequences of another scheme are never taken for these."""
        return {"scheme": scheme_fingerprint(self.symprec), "scheme_version": SCHEME_VERSION, **asdict(self)}


@dataclass(frozen=True)
class Counts:
    """Crystals that came in, were encoded and were set aside (``encoded + rejected == read``), and tokens."""

    read: int = 0
    encoded: int = 0
    rejected: int = 0
    tokens: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            *(
                self.read + other.read,
                self.encoded + other.encoded,
                self.rejected + other.rejected,
                self.tokens + other.tokens,
            )
        )


def _canonical(row: InputRow, settings: EncodeSettings) -> CanonicalCrystal:
    if row.problem:
        raise CrystalError(row.problem)
    try:
        return canonicalize(crystal_of(row.text), symprec=settings.symprec)
    except CrystalError as error:
        if settings.on_disorder == "set_aside" or not is_disordered(row.text):
            raise
        if settings.on_disorder == "error":
            raise DisorderError(
                f"{row.source} ({row.id}): {error}; or set on_disorder to set_aside or order"
            ) from error
        return canonicalize(ordered(row.text), symprec=settings.symprec)


def encode_row(row: InputRow, settings: EncodeSettings = EncodeSettings()) -> dict[str, object]:
    """Columns of :data:`~.schema.PREPARED` of one crystal, or of :data:`~.schema.REJECTED` if it cannot be encoded.

    Raises:
        DisorderError: the crystal is disordered and ``on_disorder`` is ``"error"``.
    """
    try:
        crystal = _canonical(row, settings)
    except DisorderError:
        raise
    except Mat2SeqError as error:
        return {"id": row.id, "source": row.source, "reason": cut(f"{type(error).__name__}: {error}")}
    except Exception as error:  # noqa: BLE001 - a parser's surprise must not end a run over millions; it is recorded
        return {"id": row.id, "source": row.source, "reason": cut(f"unexpected {type(error).__name__}: {error}")}
    ids = [TOKEN_IDS[BOS], *tokenize(crystal.text), TOKEN_IDS[EOS]]
    return {
        "id": row.id,
        "text": crystal.text,
        "input_ids": ids,
        "prompt_length": 1 + len(tokenize(crystal.formula)),
        "n_tokens": len(ids),
        "properties": row.properties,
        "source": row.source,
    }


def write_table(table: pa.Table, path: Path, ready: Callable[[], None] | None = None) -> None:
    """Write a parquet file that is complete or not there at all: a run killed here leaves a file nobody reads.

    Args:
        table: the rows.
        path: where they go.
        ready: called before the file gets its name, which it does not if this raises.
    """
    write_tables([table], table.schema, path, ready)


def write_tables(
    tables: Iterable[pa.Table], schema: pa.Schema, path: Path, ready: Callable[[], None] | None = None
) -> None:
    """:func:`write_table` of rows that come one table after the other."""
    # of its own: a process left over from a killed run may write, too
    unfinished = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        with pq.ParquetWriter(unfinished, schema, compression="zstd", write_page_checksum=True) as writer:
            for table in tables:
                if len(table):  # datasets cannot open a file with an empty row group; it can open one without any
                    writer.write_table(table)
        if ready is not None:
            ready()
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def write_csv(table: pa.Table, path: Path) -> None:
    """Write a CSV file that is complete or not there at all."""
    partial = path.with_name(f"{path.name}.tmp")
    pyarrow.csv.write_csv(table, partial)
    partial.replace(path)


def _table(rows: Iterable[Mapping[str, object]], schema: pa.Schema, metadata: Mapping[str, object]) -> pa.Table:
    return pa.Table.from_pylist(list(rows), schema=schema.with_metadata({METADATA_KEY: json.dumps(metadata)}))


def _digest(rows: Sequence[InputRow]) -> str:
    digest = hashlib.sha256()
    for row in rows:
        digest.update(f"{row.id}\0{row.text}\0{row.source}\0{row.properties}\0{row.problem}\0".encode())
    return digest.hexdigest()[:16]


def _finished(good: Path, bad: Path, metadata: Mapping[str, object], rows: int) -> Counts | None:
    """Counts of a chunk whose two files are there with the same scheme, settings and input, and all rows; else None."""
    if not (good.exists() and bad.exists()):
        return None
    try:
        for path in (good, bad):
            if json.loads((pq.read_schema(path).metadata or {}).get(METADATA_KEY, b"{}")) != metadata:
                return None
        # all columns, and with their checksums: a page can be damaged beside others that are not
        tokens = read_shard(good, PREPARED.names).column("n_tokens").to_pylist()
        rejected = len(read_shard(bad, REJECTED.names))
    except (OSError, ValueError, pa.ArrowException):  # damaged by something else: made again
        return None
    if len(tokens) + rejected != rows:
        return None
    return Counts(rows, len(tokens), rejected, sum(tokens))


def encode_chunk(
    rows: Sequence[InputRow],
    good: str,
    bad: str,
    settings: EncodeSettings,
    doomed: Mapping[int, str],
    begin: Callable[[int], None],
) -> Counts:
    """Write a chunk's crystals to ``good`` and what was set aside to ``bad``, unless that has been done before.

    Args:
        rows: the chunk.
        good: path of the file with the columns of :data:`~.schema.PREPARED`.
        bad: path of the file with the columns of :data:`~.schema.REJECTED`.
        settings: how crystals are encoded.
        doomed: reasons by index of rows that must not be touched again.
        begin: called with the index of each row, and with -1 before each file, which is not written if it raises.

    Raises:
        DisorderError: a crystal is disordered and that is an error.
        ConnectionError: from ``begin``, where the run that wanted the chunk has ended.
    """
    paths = Path(good), Path(bad)
    metadata: dict[str, Any] = {**settings.metadata(), "input": _digest(rows)}
    if (counts := _finished(*paths, metadata, len(rows))) is not None:
        return counts
    encoded: list[dict[str, object]] = []
    for index, row in enumerate(rows):
        if index in doomed:
            encoded.append({"id": row.id, "source": row.source, "reason": f"ResourceError: it {doomed[index]}"})
        else:
            begin(index)
            encoded.append(encode_row(row, settings))
    rejected = [row for row in encoded if "reason" in row]
    prepared = [row for row in encoded if "reason" not in row]
    # the folder may belong to another run by now
    write_table(_table(rejected, REJECTED, metadata), paths[1], partial(begin, -1))
    write_table(_table(prepared, PREPARED, metadata), paths[0], partial(begin, -1))
    return Counts(len(rows), len(prepared), len(rejected), sum(int(str(row["n_tokens"])) for row in prepared))
