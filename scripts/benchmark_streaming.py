"""Millions of crystals in bounded memory: through load_crystals, through preparation, and as token ids.

python scripts/benchmark_streaming.py --data ../shared/data/mp_20/val.parquet --rows 2000000 --encode 100000
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from benchmark_preparation import Meter
from datasets import load_dataset
from rich.console import Console
from rich.table import Table

from mat2seq_hf.corpora.feature import Crystal
from mat2seq_hf.corpora.load import load_crystals
from mat2seq_hf.corpora.prepare import prepare
from mat2seq_hf.corpora.schema import shard_paths
from mat2seq_hf.corpora.sources import read_rows

SHARD = 100_000
GROUP = 10_000
STRAIN = 0.01  # standard deviation of the relative size of the cell
SHIFT = 1e-7  # standard deviation of each fractional coordinate


def _nested(lists: pa.Array, values: np.ndarray[tuple[int], np.dtype[np.float64]]) -> pa.Array:
    """A list of lists like ``lists`` with other numbers."""
    inner = pa.ListArray.from_arrays(lists.values.offsets, pa.array(values))
    return pa.ListArray.from_arrays(lists.offsets, inner)


def _noisy(crystals: pa.StructArray, rng: np.random.Generator) -> pa.StructArray:
    """The same crystals with cells a little larger or smaller and atoms a little off."""
    lattice, numbers, coords = (crystals.field(name) for name in ("lattice", "numbers", "frac_coords"))
    cells = lattice.values.values.to_numpy().reshape(-1, 9) * (1 + STRAIN * rng.normal(size=(len(crystals), 1)))
    points = coords.values.values.to_numpy()
    moved = _nested(coords, points + SHIFT * rng.normal(size=len(points)))
    nothing = pa.nulls(len(crystals), pa.string())
    fields = ["lattice", "numbers", "frac_coords", "text"]
    return pa.StructArray.from_arrays([_nested(lattice, cells.ravel()), numbers, moved, nothing], fields)


def _write_corpus(source: Path, folder: Path, rows: int) -> int:
    """Shards of real crystals repeated with noise; return their bytes."""
    feature, rng = Crystal(), np.random.default_rng(0)
    real = pa.array([feature.encode_example(row.text) for row in read_rows([source])], type=Crystal.pa_type)
    for number, start in enumerate(range(0, rows, SHARD)):
        count = min(SHARD, rows - start)
        chosen = real.take(pa.array(rng.integers(0, len(real), count)))
        ids = pa.array(f"crystal-{start + index}" for index in range(count))
        table = pa.table({"id": ids, "structure": _noisy(chosen, rng)})
        pq.write_table(table, folder / f"{number:05d}.parquet", compression="zstd", row_group_size=GROUP)
    return sum(path.stat().st_size for path in folder.iterdir())


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _measured(work: Callable[[], int]) -> tuple[int, float, float, float]:
    """Rows, processor seconds, and peak memory (MiB) before and after."""
    before, start = _peak(), time.process_time()
    return work(), time.process_time() - start, before, _peak()


def _stream(folder: Path, decode: bool, limit: int) -> int:
    stream = load_crystals(folder, streaming=True)
    if not decode:
        stream = stream.cast_column("structure", Crystal(decode=False))
    return sum(len(batch["id"]) for batch in stream.take(limit).iter(batch_size=1000))


def _token_stream(folder: Path, rows: int) -> int:
    """Rows of the prepared shards, streamed again and again until there are as many as asked."""
    files = [str(path) for path in shard_paths(folder)]
    held = sum(pq.read_metadata(path).num_rows for path in files)
    many = files * -(-rows // held)
    stream = load_dataset("parquet", data_files=many, split="train", streaming=True, columns=["input_ids"])
    return sum(len(batch["input_ids"]) for batch in stream.iter(batch_size=1000))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="real crystals to repeat")
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--encode", type=int, default=100_000, help="rows to canonicalise")
    parser.add_argument("--num-proc", type=int, default=2)
    args = parser.parse_args()
    console = Console(width=130)
    with tempfile.TemporaryDirectory() as name:
        folder, part, prepared = Path(name, "corpus"), Path(name, "part"), Path(name, "prepared")
        folder.mkdir()
        part.mkdir()
        size = _write_corpus(args.data, folder, args.rows)
        console.print(f"{args.rows:,} crystals, {size / 1e9:.2f} GB of parquet, {size / args.rows:.0f} bytes each")
        table = Table("", "rows", "processor time (s)", "rows a second", "peak memory before and after (MiB)")

        def add(label: str, work: Callable[[], int]) -> None:
            rows, seconds, before, after = _measured(work)
            table.add_row(label, f"{rows:,}", f"{seconds:.0f}", f"{rows / seconds:,.0f}", f"{before:.0f}, {after:.0f}")
            console.print(f"{label}: {rows:,} rows, {seconds:.0f} s, peak {after:.0f} MiB")

        add("load_crystals, first tenth, columns", lambda: _stream(folder, False, args.rows // 10))
        add("load_crystals, all, columns", lambda: _stream(folder, False, args.rows))
        add("load_crystals, a twentieth, structures", lambda: _stream(folder, True, args.rows // 20))
        for path in sorted(folder.iterdir())[: -(-args.encode // SHARD)]:
            pq.write_table(pq.read_table(path).slice(0, args.encode), part / path.name, row_group_size=GROUP)
        meter = Meter()
        meter.start()
        report = prepare([part], prepared, num_proc=args.num_proc)
        meter.stop()
        seconds, memory = sum(meter.cpu.values()), max(resident for _, resident in meter.samples)
        console.print(report, f"{seconds:.0f} s of processor time, {report.read / seconds:.0f} crystals a second")
        console.print(f"all processes together: {memory / 2**20:.0f} MiB at most")
        bytes_ = sum(path.stat().st_size for path in shard_paths(prepared))
        console.print(f"prepared: {bytes_ / max(1, report.encoded):.0f} bytes and "
                      f"{report.tokens / max(1, report.encoded):.1f} tokens a crystal")  # fmt: skip
        add("token ids through load_dataset", lambda: _token_stream(prepared, args.rows))
        console.print(table)


if __name__ == "__main__":
    main()
