"""From crystal files to shards of token ids: in parallel, resumable, the same bytes for any number of processes."""

from __future__ import annotations

import json
import math
import queue
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import chain, islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from tqdm import tqdm

from ..errors import Mat2SeqError
from .duplicates import first_of_each, read_columns, text_digests
from .encode import Counts, EncodeSettings, encode_chunk, write_csv, write_table
from .rows import InputRow, chunks
from .schema import DUPLICATES, METADATA_KEY, REJECTED, refuse_foreign_files, shard_paths
from .sources import read_rows
from .workers import Worker

__all__ = [
    "DUPLICATE_CHOICES",
    "PrepareReport",
    "check_settings",
    "finish",
    "input_rows",
    "prepare",
    "prepare_rows",
    "writing",
]

#: What to do with crystals whose sequence is there already: list them, or list and leave them out.
DUPLICATE_CHOICES = ("report", "remove")

_UNFINISHED = re.compile(r"(part-\d+(-\d+)?|rejected|duplicates)\.\d+\.tmp|(rejected\.csv|report\.json)\.tmp")


@dataclass(frozen=True)
class PrepareReport:
    """What became of the crystals.

    Attributes:
        read: rows of the input; ``encoded + rejected + removed == read``.
        encoded: rows of the prepared corpus.
        rejected: rows set aside with a reason.
        tokens: of the prepared corpus.
        duplicates: rows whose sequence an earlier row has.
        removed: those of them that were left out.
    """

    read: int
    encoded: int
    rejected: int
    tokens: int
    duplicates: int = 0
    removed: int = 0


def _parts(folder: Path, number: int) -> tuple[Path, Path]:
    return folder / f"part-{number:05d}.parquet", folder / "rejected" / f"part-{number:05d}.parquet"


def _run(
    chunks: Iterator[list[InputRow]],
    folder: Path,
    settings: EncodeSettings,
    seconds: float,
    num_proc: int,
    bar: tqdm[None],
) -> int:
    """Prepare all chunks, at most twice ``num_proc`` of them in memory; return their number."""
    workers: queue.SimpleQueue[Worker] = queue.SimpleQueue()
    every = [Worker(encode_chunk, seconds) for _ in range(num_proc)]
    for worker in every:
        workers.put(worker)

    def work(number: int, rows: list[InputRow]) -> Counts:
        begun = 0

        def on_row() -> None:
            nonlocal begun
            begun += 1
            bar.update()

        worker = workers.get()
        try:
            good, bad = map(str, _parts(folder, number))
            counts: Counts = worker.run(rows, good, bad, settings, on_row=on_row)
        finally:
            workers.put(worker)
        bar.update(counts.read - begun)  # rows that were there already never began
        return counts

    count, total = 0, Counts()
    waiting: list[Future[Counts]] = []

    def collect() -> None:
        nonlocal total
        total += waiting.pop(0).result()
        bar.set_postfix(set_aside=total.rejected)

    with ThreadPoolExecutor(num_proc) as threads:
        try:
            for number, rows in enumerate(chunks):
                waiting.append(threads.submit(work, number, rows))
                count += 1
                if len(waiting) >= 2 * num_proc:
                    collect()
            while waiting:
                collect()
        finally:  # the pool waits for its threads, and these for their workers: an error or Ctrl-C must end both
            for future in waiting:
                future.cancel()
            for worker in every:
                worker.stop()
    return count


def _clean(folder: Path, output: Path, wanted: set[Path]) -> None:
    """Remove chunks of an earlier, longer input, and what killed runs left half written."""
    for path in (*shard_paths(folder), *shard_paths(folder / "rejected")):
        if path not in wanted:
            path.unlink()
    for path in (*folder.glob("*.tmp"), *(folder / "rejected").glob("*.tmp"), *output.glob("*.tmp")):
        if _UNFINISHED.fullmatch(path.name):
            path.unlink(missing_ok=True)


def _join_rejected(folder: Path, output: Path) -> int:
    tables = [pq.read_table(path) for path in shard_paths(folder / "rejected")]
    table = pa.concat_tables(tables).replace_schema_metadata(None) if tables else REJECTED.empty_table()
    write_table(table, output / "rejected.parquet")
    # the same for people: opens in an editor and in a spreadsheet
    write_csv(table, output / "rejected.csv")
    return len(table)


def _list_duplicates(folder: Path, output: Path) -> NDArray[np.bool_]:
    """Write ``duplicates.parquet``; return a mask over all rows, true where an earlier row has the same sequence."""
    digests = [text_digests(table.column("text").to_pylist()) for table in read_columns(folder, ["text"])]
    first = first_of_each(pa.chunked_array(digests, pa.binary(16)))
    repeated = np.flatnonzero(first != np.arange(len(first)))
    originals = np.unique(first[repeated])
    needed = np.union1d(repeated, originals)
    names: dict[int, tuple[str, str]] = {}
    start = 0
    for table in read_columns(folder, ["id", "source"]):
        inside = needed[(needed >= start) & (needed < start + len(table))]
        for index, row in zip(inside.tolist(), table.take(inside - start).to_pylist(), strict=True):
            names[index] = row["id"], row["source"]
        start += len(table)
    rows = [(*names[index], *names[int(first[index])]) for index in repeated.tolist()]
    columns = [list(column) for column in zip(*rows, strict=True)] if rows else [[], [], [], []]
    write_table(pa.table(columns, schema=DUPLICATES), output / "duplicates.parquet")
    mask: NDArray[np.bool_] = first != np.arange(len(first))
    return mask


def _leave_out(folder: Path, output: Path, repeated: NDArray[np.bool_]) -> None:
    """Write the shards again without the marked rows; they are no longer all of their input and do not say so."""
    start = 0
    paths = shard_paths(folder)
    for path in paths:
        table = pq.read_table(path)
        kept = table.filter(pa.array(~repeated[start : start + len(table)]))
        metadata = json.loads(table.schema.metadata[METADATA_KEY])
        del metadata["input"]
        write_table(kept.replace_schema_metadata({METADATA_KEY: json.dumps(metadata)}), output / path.name)
        start += len(table)
    wanted = {path.name for path in paths}
    for path in shard_paths(output):
        if path.name not in wanted:
            path.unlink()


def finish(folder: Path, output: Path, duplicates: str, wanted: set[Path]) -> PrepareReport:
    """Join what was set aside, list duplicates, count, and write ``report.json``.

    Args:
        folder: with all shards.
        output: where the prepared corpus goes: the same folder, or another one if duplicates are removed.
        duplicates: one of :data:`DUPLICATE_CHOICES`.
        wanted: the shards, and those of rejected rows; others, from an earlier and longer input, are removed.
    """
    _clean(folder, output, wanted)
    rejected = _join_rejected(folder, output)
    repeated = _list_duplicates(folder, output)
    if duplicates == "remove":
        _leave_out(folder, output, repeated)
    encoded = tokens = 0
    for table in read_columns(output, ["n_tokens"]):
        encoded += len(table)
        tokens += int(pa.compute.sum(table.column("n_tokens")).as_py() or 0)
    removed = len(repeated) - encoded
    report = PrepareReport(len(repeated) + rejected, encoded, rejected, tokens, int(repeated.sum()), removed)
    scheme = json.loads((pq.read_schema(shard_paths(output)[0]).metadata or {})[METADATA_KEY])
    scheme.pop("input", None)
    text = json.dumps({**asdict(report), **scheme}, indent=2) + "\n"
    partial = output / "report.json.tmp"
    partial.write_text(text, encoding="utf-8")
    partial.replace(output / "report.json")
    return report


def check_settings(duplicates: str, chunk_size: int, seconds: float, num_proc: int = 1) -> None:
    """Refuse settings with which no run can work, before there is any work.

    Raises:
        Mat2SeqError: one of them is out of range.
    """
    if num_proc < 1 or chunk_size < 1:
        raise Mat2SeqError(f"num_proc and chunk_size are at least 1, not {num_proc} and {chunk_size}")
    if not 1 <= seconds < math.inf:
        raise Mat2SeqError(f"seconds is a finite number, at least 1, not {seconds!r}")
    if duplicates not in DUPLICATE_CHOICES:
        raise Mat2SeqError(f"duplicates is one of {', '.join(DUPLICATE_CHOICES)}, not {duplicates!r}")


@contextmanager
def writing(folder: Path, output: Path) -> Iterator[None]:
    """Make the folders of a run, let no other run write there, and take away the report until there is a new one.

    Args:
        folder: where the shards go.
        output: where the prepared corpus goes: the same, or a folder around it.

    Raises:
        Mat2SeqError: another run writes there, or there are files of others with the names of ours.
    """
    refuse_foreign_files((folder, folder / "rejected", output))
    (folder / "rejected").mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(output / ".lock", timeout=0):
            (output / "report.json").unlink(missing_ok=True)  # a folder without it is not whole
            yield
    except Timeout as error:
        raise Mat2SeqError(f"another run is writing to {output}; wait for it, or give another folder") from error


def prepare_rows(
    rows: Iterable[InputRow],
    output: str | Path,
    *,
    symprec: float = 0.01,
    on_disorder: str = "set_aside",
    duplicates: str = "report",
    num_proc: int = 2,
    chunk_size: int = 500,
    seconds: float = 20.0,
    progress: bool = True,
) -> PrepareReport:
    """:func:`prepare` for rows from anywhere, such as a generator over a database of your own.

    Raises:
        Mat2SeqError: as :func:`prepare`.
    """
    check_settings(duplicates, chunk_size, seconds, num_proc)
    settings = EncodeSettings(symprec, on_disorder)
    target = Path(output)
    folder = target / "all" if duplicates == "remove" else target
    with writing(folder, target):
        with tqdm(unit=" crystals", disable=not progress, desc=target.name, smoothing=0.05, mininterval=0.5) as bar:
            count = _run(chunks(rows, chunk_size), folder, settings, seconds, num_proc, bar)
        if count == 0:
            raise Mat2SeqError("there are no crystals in the input")
        return finish(folder, target, duplicates, {path for number in range(count) for path in _parts(folder, number)})


def input_rows(inputs: Sequence[str | Path], output: Path) -> Iterator[InputRow]:
    """Rows of the inputs, without the folder ``output``, which an earlier run may have written into one of them.

    Raises:
        Mat2SeqError: an input cannot be opened, is the output or is a file in it, or there is no row at all.
    """
    rows = read_rows(inputs, output)
    first = list(islice(rows, 1))
    if not first:
        raise Mat2SeqError(f"no crystals in {', '.join(map(str, inputs))}")
    return chain(first, rows)


def prepare(
    inputs: Sequence[str | Path],
    output: str | Path,
    *,
    symprec: float = 0.01,
    on_disorder: str = "set_aside",
    duplicates: str = "report",
    num_proc: int = 2,
    chunk_size: int = 500,
    seconds: float = 20.0,
    progress: bool = True,
) -> PrepareReport:
    """Encode crystals and write ``part-*.parquet`` (columns of :data:`~.schema.PREPARED`) and what became of the rest.

    Beside the shards: ``rejected.parquet`` and ``rejected.csv`` (id, source, reason), ``duplicates.parquet`` (rows
    whose sequence an earlier row has) and ``report.json`` (counts and scheme). Killed and started again it continues:
    chunks that are there with the same scheme, settings and input are kept, others are made again.

    Args:
        inputs: files, folders and archives, see :func:`~.sources.read_rows`.
        output: folder, made if it is not there.
        symprec: tolerance of the symmetry search in angstrom.
        on_disorder: ``"set_aside"``, ``"order"`` (by pymatgen) or ``"error"``.
        duplicates: ``"report"`` lists them; ``"remove"`` leaves them out, too, and keeps all shards in ``all/``.
        num_proc: processes; the output does not depend on it.
        chunk_size: rows of a shard.
        seconds: processor time after which a crystal is set aside.
        progress: show a progress bar.

    Raises:
        Mat2SeqError: an input cannot be opened, is the output or is a file in it, there is no row at all, the folder
            has ``part-*.parquet`` of others, another run writes to it, or a crystal is disordered and that is an
            error. Single bad rows are set aside instead.

    Example:
        >>> prepare(["mp_20/val.parquet"], "prepared/mp_20/val")  # doctest: +SKIP
        PrepareReport(read=9047, encoded=9047, rejected=0, tokens=551234, duplicates=12, removed=0)
    """
    return prepare_rows(
        input_rows(inputs, Path(output)),
        output,
        symprec=symprec,
        on_disorder=on_disorder,
        duplicates=duplicates,
        num_proc=num_proc,
        chunk_size=chunk_size,
        seconds=seconds,
        progress=progress,
    )
