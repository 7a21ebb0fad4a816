"""From crystal files to shards of token ids: in parallel, resumable, the same bytes for any number of processes."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from tqdm import tqdm

from ..canonical import canonicalize
from ..errors import Mat2SeqError
from ..sequence import SCHEME_VERSION, scheme_fingerprint
from ..vocabulary import BOS, EOS, TOKEN_IDS, tokenize
from .schema import METADATA_KEY, PREPARED, REJECTED, shard_paths

__all__ = ["InputRow", "PrepareReport", "encode_row", "prepare", "read_rows"]

_ID_COLUMNS = ("material_id", "id")
_CRYSTAL_SUFFIXES = (".cif", ".vasp", ".poscar")


@dataclass(frozen=True)
class InputRow:
    """One crystal of the input: ``text`` is CIF or POSCAR; ``source`` is file name and row."""

    id: str
    text: str
    source: str
    properties: str = "{}"


@dataclass(frozen=True)
class PrepareReport:
    """How many crystals came in, were encoded and were set aside: ``encoded + rejected == read``."""

    read: int
    encoded: int
    rejected: int
    tokens: int


def _batches(path: Path) -> Iterator[pa.RecordBatch]:
    try:
        if path.suffix == ".parquet":
            yield from pq.ParquetFile(path).iter_batches(batch_size=1000)
        else:
            parsing = pyarrow.csv.ParseOptions(newlines_in_values=True)
            # an id such as 007 is a name, not a number
            converting = pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(("cif", *_ID_COLUMNS), pa.string()))
            table = pyarrow.csv.read_csv(path, parse_options=parsing, convert_options=converting)
            yield from table.to_batches(max_chunksize=1000)
    except pa.ArrowException as error:
        raise Mat2SeqError(f"{path} cannot be read as a table: {error}") from error


def _table_rows(path: Path) -> Iterator[InputRow]:
    number = 0
    for batch in _batches(path):
        if "cif" not in batch.schema.names:
            raise Mat2SeqError(f"{path.name} has no column 'cif'; its columns are {', '.join(batch.schema.names)}")
        id_column = next((name for name in _ID_COLUMNS if name in batch.schema.names), None)
        for row in batch.to_pylist():
            text = row.pop("cif")
            name = row.pop(id_column) if id_column else number
            properties = {key: value for key, value in sorted(row.items()) if isinstance(value, (str, int, float))}
            yield InputRow(str(name), text or "", f"{path.name}:{number}", json.dumps(properties))
            number += 1


def read_rows(inputs: Sequence[str | Path]) -> Iterator[InputRow]:
    """Crystals of tables (parquet, CSV), CIF and POSCAR files, and folders of them, in the order of names.

    A table has a column ``cif``; ``material_id`` or ``id`` names the rows, other columns become properties.

    Raises:
        Mat2SeqError: a path does not exist, is of no known kind, or a table has no column ``cif``.

    Example:
        >>> rows = list(read_rows(["mp_20/val.parquet", "my_cifs/"]))  # doctest: +SKIP
    """
    for given in map(Path, inputs):
        if not given.exists():
            raise Mat2SeqError(f"{given} does not exist")
        for path in sorted(file for file in given.rglob("*") if file.is_file()) if given.is_dir() else [given]:
            if path.suffix in (".parquet", ".csv"):
                yield from _table_rows(path)
            elif path.suffix.lower() in _CRYSTAL_SUFFIXES or path.name.startswith("POSCAR"):
                text = path.read_text(encoding="utf-8", errors="replace")
                yield InputRow(path.stem, text, path.name)
            elif not given.is_dir():
                raise Mat2SeqError(f"{path.name} is not a parquet, CSV, CIF or POSCAR file")


def encode_row(row: InputRow, symprec: float = 0.01) -> dict[str, object]:
    """Columns of :data:`~.schema.PREPARED` of one crystal, or of :data:`~.schema.REJECTED` if it cannot be encoded."""
    try:
        crystal = canonicalize(row.text, symprec=symprec)
    except Mat2SeqError as error:
        return {"id": row.id, "source": row.source, "reason": f"{type(error).__name__}: {error}"}
    except Exception as error:  # noqa: BLE001 - a parser's surprise must not end a run over millions; it is recorded
        return {"id": row.id, "source": row.source, "reason": f"unexpected {type(error).__name__}: {error}"}
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


def _write(rows: list[dict[str, object]], schema: pa.Schema, metadata: dict[str, object], path: Path) -> None:
    # complete or not there at all: a run killed here leaves a .tmp file that nobody reads
    partial = path.with_suffix(".tmp")
    table = pa.Table.from_pylist(rows, schema=schema.with_metadata({METADATA_KEY: json.dumps(metadata)}))
    pq.write_table(table, partial, compression="zstd")
    partial.replace(path)


def _digest(rows: Sequence[InputRow]) -> str:
    digest = hashlib.sha256()
    for row in rows:
        digest.update(f"{row.id}\0{row.text}\0{row.source}\0{row.properties}\0".encode())
    return digest.hexdigest()[:16]


def _chunk_paths(output: Path, number: int) -> tuple[Path, Path]:
    return output / f"part-{number:05d}.parquet", output / "rejected" / f"part-{number:05d}.parquet"


def _prepare_chunk(number: int, rows: list[InputRow], output: Path, symprec: float) -> int:
    """Write the two files of one chunk unless they are there already; return the number of its rows."""
    good_path, bad_path = _chunk_paths(output, number)
    metadata: dict[str, object] = {
        "scheme": scheme_fingerprint(symprec),
        "scheme_version": SCHEME_VERSION,
        "symprec": symprec,
        "input": _digest(rows),
    }
    if good_path.exists() and bad_path.exists():
        found = (pq.read_schema(good_path).metadata or {}).get(METADATA_KEY)
        if found is not None and json.loads(found) == metadata:
            return len(rows)
    encoded = [encode_row(row, symprec) for row in rows]
    _write([row for row in encoded if "reason" in row], REJECTED, metadata, bad_path)
    _write([row for row in encoded if "reason" not in row], PREPARED, metadata, good_path)
    return len(rows)


def _chunks(rows: Iterator[InputRow], size: int) -> Iterator[list[InputRow]]:
    while chunk := list(islice(rows, size)):
        yield chunk


def _run(chunks: Iterator[list[InputRow]], output: Path, symprec: float, num_proc: int, bar: tqdm[None]) -> int:
    """Prepare all chunks, at most twice ``num_proc`` of them in memory; return their number."""
    count = 0
    if num_proc == 1:
        for number, chunk in enumerate(chunks):
            bar.update(_prepare_chunk(number, chunk, output, symprec))
            count += 1
        return count
    context = multiprocessing.get_context("spawn")  # forking a process that has threads can hang
    with _lost_workers(), ProcessPoolExecutor(num_proc, mp_context=context) as pool:
        waiting = []
        for number, chunk in enumerate(chunks):
            waiting.append(pool.submit(_prepare_chunk, number, chunk, output, symprec))
            count += 1
            if len(waiting) >= 2 * num_proc:
                bar.update(waiting.pop(0).result())
        for future in waiting:
            bar.update(future.result())
    return count


@contextmanager
def _lost_workers() -> Iterator[None]:
    try:
        yield
    except BrokenProcessPool as error:
        raise Mat2SeqError(
            "a worker process was killed, probably for lack of memory; start again with fewer processes (--num-proc): "
            "what is finished is kept"
        ) from error


def _finish(output: Path, count: int) -> PrepareReport:
    """Remove chunks of an earlier, longer input, join what was set aside, and count."""
    wanted = {path for number in range(count) for path in _chunk_paths(output, number)}
    for path in (*shard_paths(output), *shard_paths(output / "rejected")):
        if path not in wanted:
            path.unlink()
    rejected = [pq.read_table(path) for path in shard_paths(output / "rejected")]
    table = pa.concat_tables(rejected) if rejected else REJECTED.empty_table()
    pq.write_table(table.replace_schema_metadata(None), output / "rejected.tmp", compression="zstd")
    (output / "rejected.tmp").replace(output / "rejected.parquet")
    encoded = tokens = 0
    for path in shard_paths(output):
        column = pq.read_table(path, columns=["n_tokens"]).column("n_tokens").to_pylist()
        encoded += len(column)
        tokens += sum(column)
    return PrepareReport(encoded + len(table), encoded, len(table), tokens)


def prepare(
    inputs: Sequence[str | Path],
    output: str | Path,
    *,
    symprec: float = 0.01,
    num_proc: int = 2,
    chunk_size: int = 500,
    progress: bool = True,
) -> PrepareReport:
    """Encode crystals and write ``part-*.parquet`` (columns of :data:`~.schema.PREPARED`) and ``rejected.parquet``.

    Killed and started again it continues: chunks that are there with the same scheme and the same input are kept.

    Args:
        inputs: files and folders, see :func:`read_rows`.
        output: folder, made if it is not there.
        symprec: tolerance of the symmetry search in angstrom.
        num_proc: processes; the output does not depend on it.
        chunk_size: rows of a shard.
        progress: show a progress bar.

    Raises:
        Mat2SeqError: an input cannot be opened, or there is no row at all. Single bad rows are set aside instead.

    Example:
        >>> prepare(["mp_20/val.parquet"], "prepared/mp_20/val")  # doctest: +SKIP
        PrepareReport(read=9047, encoded=9047, rejected=0, tokens=551234)
    """
    if num_proc < 1 or chunk_size < 1:
        raise Mat2SeqError(f"num_proc and chunk_size must be at least 1, not {num_proc} and {chunk_size}")
    if not 1e-5 <= symprec <= 0.2:  # else every single row would be set aside
        raise Mat2SeqError(f"symprec {symprec!r} is outside 1e-5 to 0.2 angstrom")
    folder = Path(output)
    (folder / "rejected").mkdir(parents=True, exist_ok=True)
    with tqdm(unit=" crystals", disable=not progress, desc=folder.name) as bar:
        count = _run(_chunks(read_rows(inputs), chunk_size), folder, symprec, num_proc, bar)
    if count == 0:
        raise Mat2SeqError(f"no crystals in {', '.join(map(str, inputs))}")
    return _finish(folder, count)
