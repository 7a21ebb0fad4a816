"""What becomes of files nobody has tidied up: each is prepared or set aside with a reason, and none takes long.

python scripts/benchmark_robustness.py --data ../shared/data/robustness
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from mat2seq_hf.corpora.encode import EncodeSettings, encode_chunk
from mat2seq_hf.corpora.prepare import prepare
from mat2seq_hf.corpora.sources import read_rows
from mat2seq_hf.corpora.workers import Worker


def _unpack(data: Path, folder: Path) -> int:
    """The texts of the two tables as files with their own names; return their number."""
    count = 0
    for table, column, suffix in (("cifs", "text", ""), ("poscars", "poscar", ".vasp")):
        for row in pq.read_table(data / f"{table}.parquet").to_pylist():
            path = folder / table / f"{count:04d}_{Path(row['path']).name}{suffix}"
            path.parent.mkdir(exist_ok=True)
            path.write_text(row[column], encoding="utf-8")
            count += 1
    return count


def _kind(reason: str) -> str:
    for words in (
        "disordered",
        "overlap",
        "processor time",
        "sites",
        "atoms",
        "formula",
        "names no elements",
        "lattice",
    ):
        if words in reason:
            return words
    return reason[:60]


def _slowest(folder: Path, output: Path) -> list[tuple[float, str]]:
    """Wall time of each file in a process of its own, the start of the process apart."""
    worker = Worker(encode_chunk, 20)
    worker.run([], str(output / "good"), str(output / "bad"), EncodeSettings())
    times = []
    for row in read_rows([folder]):
        start = time.perf_counter()
        worker.run([row], str(output / "good"), str(output / "bad"), EncodeSettings())
        times.append((time.perf_counter() - start, row.source))
    worker.close()
    return sorted(times, reverse=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with cifs.parquet and poscars.parquet")
    parser.add_argument("--num-proc", type=int, default=1)
    parser.add_argument("--on-disorder", default="set_aside")
    args = parser.parse_args()
    console = Console()
    with tempfile.TemporaryDirectory() as name:
        folder, output, single = Path(name, "files"), Path(name, "prepared"), Path(name, "single")
        folder.mkdir()
        single.mkdir()
        files = _unpack(args.data, folder)
        rows = sum(1 for _ in read_rows([folder]))
        report = prepare([folder], output, num_proc=args.num_proc, on_disorder=args.on_disorder)
        console.print(f"{files} files, {rows} crystals in them; {report}")
        assert report.read == rows == report.encoded + report.rejected
        table = Table("reason", "files")
        reasons = pq.read_table(output / "rejected.parquet").column("reason").to_pylist()
        for reason, count in Counter(map(_kind, reasons)).most_common():
            table.add_row(reason, str(count))
        console.print(table)
        slowest = _slowest(folder, single)
        console.print("slowest, seconds:", ", ".join(f"{source} {seconds:.2f}" for seconds, source in slowest[:5]))
        assert slowest[0][0] < 30


if __name__ == "__main__":
    main()
