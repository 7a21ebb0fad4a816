"""From CIF text to token ids: rows a second, processor time, memory, for whole corpora.

python scripts/benchmark_preparation.py ../shared/data/mp_20/*.parquet --num-proc 2 --reference 200
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
import warnings
from itertools import islice
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

from mat2seq_hf.corpora.prepare import prepare
from mat2seq_hf.corpora.sources import read_rows


class Meter(threading.Thread):
    """Memory and processor time of this process and its descendants, read every half second."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.samples: list[tuple[float, int]] = []
        self.cpu: dict[int, float] = {}
        self._stopped = threading.Event()

    def run(self) -> None:
        """Sample until stopped."""
        start, own = time.perf_counter(), psutil.Process()
        before = time.process_time()
        while not self._stopped.wait(0.5):
            resident = 0
            for process in (own, *own.children(recursive=True)):
                try:
                    with process.oneshot():
                        # memory that forked processes share counts once, as it does for the machine
                        resident += process.memory_full_info().pss
                        times = process.cpu_times()
                        self.cpu[process.pid] = times.user + times.system - (before if process == own else 0.0)
                except psutil.Error:
                    continue
            self.samples.append((time.perf_counter() - start, resident))

    def stop(self) -> None:
        """End the thread."""
        self._stopped.set()
        self.join()


def _authors_route(path: Path, count: int) -> float:
    """Crystals a second of processor time by the route of the original: pymatgen, spglib, symmetrised CIF, text."""
    from pymatgen.core import Structure
    from pymatgen.io.cif import CifWriter

    rows = list(islice(read_rows([path]), count))
    start = time.process_time()
    for row in rows:
        structure = Structure.from_str(row.text, fmt="cif")
        str(CifWriter(structure, symprec=0.1))
    return len(rows) / (time.process_time() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("inputs", nargs="+", type=Path)
    parser.add_argument("--num-proc", type=int, default=2)
    parser.add_argument("--reference", type=int, default=200, help="crystals through pymatgen's symmetrised CIF writer")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    console = Console(width=120)
    with tempfile.TemporaryDirectory() as folder:
        meter = Meter()
        meter.start()
        start = time.perf_counter()
        report = prepare(args.inputs, Path(folder), num_proc=args.num_proc)
        wall = time.perf_counter() - start
        meter.stop()
    processor = sum(meter.cpu.values())
    middle = [memory for _, memory in meter.samples[len(meter.samples) // 4 :]]
    half = len(middle) // 2
    console.print(report)
    table = Table("", "value")
    for name, value in (
        ("wall time", f"{wall:.0f} s with {args.num_proc} processes"),
        ("processor time", f"{processor:.0f} s"),
        ("crystals a second of wall time", f"{report.read / wall:.0f}"),
        ("crystals a second of processor time", f"{report.read / processor:.0f}"),
        ("memory of all processes, largest", f"{max(memory for _, memory in meter.samples) / 2**20:.0f} MiB"),
        ("mean of the second quarter and of the rest", " and ".join(
            f"{sum(part) / max(1, len(part)) / 2**20:.0f} MiB" for part in (middle[:half], middle[half:]))),
    ):  # fmt: skip
        table.add_row(name, value)
    reference = _authors_route(args.inputs[0], args.reference)
    table.add_row("pymatgen to symmetrised CIF, a second of processor time", f"{reference:.0f}")
    table.add_row("ratio", f"{report.read / processor / reference:.1f}")
    console.print(table)


if __name__ == "__main__":
    main()
