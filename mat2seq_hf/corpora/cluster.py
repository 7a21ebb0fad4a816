"""Preparation on a cluster: the chunks of :mod:`.prepare` as a Ray Data job, for what one machine cannot do."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..errors import Mat2SeqError
from .encode import Counts, EncodeSettings, encode_chunk
from .prepare import PrepareReport, check_settings, finish, writing
from .rows import InputRow, chunks
from .sources import Unit, list_units, unit_rows
from .workers import Worker

__all__ = ["prepare_with_ray"]

_COLUMNS = ("id", "text", "source", "properties", "problem")
_WORKERS: dict[tuple[int, float], Worker] = {}  # one for each process of Ray, kept from task to task


def _read(item: dict[str, Any], chunk_size: int) -> Iterator[dict[str, Any]]:
    """The chunks of one unit, each a row of lists."""
    for number, chunk in enumerate(chunks(unit_rows(Unit(**item["unit"])), chunk_size)):
        columns = {name: [getattr(row, name) for row in chunk] for name in _COLUMNS}
        yield {"name": f"part-{item['number']:07d}-{number:05d}.parquet", **columns}


def _encode(chunk: dict[str, Any], folder: str, settings: EncodeSettings, seconds: float) -> dict[str, Any]:
    """Write the two files of a chunk; a task that Ray repeats after a loss finds them there, or writes the same."""
    key = os.getpid(), seconds
    worker = _WORKERS.setdefault(key, Worker(encode_chunk, seconds))
    rows = [InputRow(*values) for values in zip(*(chunk[name] for name in _COLUMNS), strict=True)]
    name = str(chunk["name"])
    counts: Counts = worker.run(rows, f"{folder}/{name}", f"{folder}/rejected/{name}", settings)
    return {"name": name, "read": counts.read}


def prepare_with_ray(
    inputs: Sequence[str | Path],
    output: str | Path,
    *,
    symprec: float = 0.01,
    on_disorder: str = "set_aside",
    duplicates: str = "report",
    chunk_size: int = 500,
    seconds: float = 20.0,
) -> PrepareReport:
    """:func:`~.prepare.prepare` on all machines of a Ray cluster; the rows of the result are the same.

    Connects to the cluster that ``ray.init`` or ``RAY_ADDRESS`` names, else starts Ray on this machine. Reading is
    spread by file and by row group of parquet files, encoding by chunk. Shards are named by file and chunk, each
    written once and whole, so that a lost machine costs only the chunks it was working on, and a job that is started
    again keeps what is there. The folders must be on a file system that all machines share.

    Args:
        inputs: as for ``prepare``.
        output: folder, as for ``prepare``; ``load_dataset`` opens its shards directly.
        symprec: tolerance of the symmetry search in angstrom.
        on_disorder: ``"set_aside"``, ``"order"`` or ``"error"``.
        duplicates: ``"report"`` or ``"remove"``.
        chunk_size: rows of a shard, at most.
        seconds: processor time after which a crystal is set aside.

    Raises:
        Mat2SeqError: Ray is not installed, or as ``prepare``.

    Example:
        >>> prepare_with_ray(["/shared/structures/"], "/shared/prepared")  # doctest: +SKIP
    """
    try:
        import ray  # noqa: F401
    except ImportError as error:
        raise Mat2SeqError("clusters need ray: pip install 'mat2seq-hf[ray]'") from error
    check_settings(duplicates, chunk_size, seconds)
    settings = EncodeSettings(symprec, on_disorder)
    target = Path(output).absolute()
    folder = target / "all" if duplicates == "remove" else target
    units = [{"number": number, "unit": _absolute(unit)} for number, unit in enumerate(list_units(inputs, target))]
    if not units:
        raise Mat2SeqError(f"no crystals in {', '.join(map(str, inputs))}")
    with writing(folder, target):
        names = _run(units, folder, settings, chunk_size, seconds)
        if not names:
            raise Mat2SeqError(f"no crystals in {', '.join(map(str, inputs))}")
        wanted = {place / name for name in names for place in (folder, folder / "rejected")}
        return finish(folder, target, duplicates, wanted)


def _run(
    units: list[dict[str, Any]], folder: Path, settings: EncodeSettings, chunk_size: int, seconds: float
) -> list[str]:
    """Prepare all units; return the names of their chunks."""
    import ray
    import ray.data

    read: Any = _read  # ray.data's annotations do not know fn_kwargs
    encode: Any = _encode
    chunks = (
        ray.data.from_items(units, override_num_blocks=min(len(units), 10_000))
        .flat_map(read, fn_kwargs={"chunk_size": chunk_size})
        .repartition(target_num_rows_per_block=1)  # one chunk a task: what is lost with a machine is small
        .map(encode, fn_kwargs={"folder": str(folder), "settings": settings, "seconds": seconds})
    )
    try:
        return [row["name"] for row in chunks.iter_rows()]
    except ray.exceptions.RayTaskError as error:
        cause = error.cause if isinstance(error.cause, Mat2SeqError) else error
        raise Mat2SeqError(str(cause)) from error


def _absolute(unit: Unit) -> dict[str, Any]:
    return {**asdict(unit), "path": str(Path(unit.path).absolute())}
