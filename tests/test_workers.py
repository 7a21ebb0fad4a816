"""Laws of the worker processes and of interrupted runs: no row can stop the others, and no kill changes the result."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pymatgen.core import Composition, Lattice, Structure

from mat2seq_hf.corpora.encode import EncodeSettings, encode_chunk, encode_row, write_table
from mat2seq_hf.corpora.load import SAMPLE_CORPUS, load_crystals
from mat2seq_hf.corpora.prepare import prepare
from mat2seq_hf.corpora.rows import InputRow
from mat2seq_hf.corpora.sources import read_rows
from mat2seq_hf.corpora.workers import Worker
from mat2seq_hf.errors import Mat2SeqError


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first 48 crystals of the sample corpus."""
    path = tmp_path_factory.mktemp("few") / "few.parquet"
    pq.write_table(pq.read_table(SAMPLE_CORPUS).slice(0, 48), path)
    return path


def act(
    rows: list[str], folder: str, doomed: Mapping[int, str], begin: Callable[[int], None]
) -> list[tuple[str, str | None]]:
    """Do what the rows say; runs in the worker."""
    done = []
    for index, row in enumerate(rows):
        if index not in doomed:
            begin(index)
            if row == "hang":
                while True:
                    pass
            if row == "crash" or (row == "crash once" and not (Path(folder) / "crashed").exists()):
                (Path(folder) / "crashed").touch()
                os.kill(os.getpid(), signal.SIGSEGV)
            if row == "raise":
                raise Mat2SeqError("bad input")
            if row == "surprise":
                raise pa.ArrowInvalid("no table")
        done.append((row, doomed.get(index)))
    return done


def test_a_row_that_hangs_or_crashes_is_named_and_the_others_are_done(tmp_path: Path) -> None:
    worker = Worker(act, seconds=1)
    begun: list[int] = []
    rows = ["good", "hang", "good", "crash", "crash once", "good"]
    done = worker.run(rows, str(tmp_path), on_row=lambda: begun.append(1))
    assert [row for row, _ in done] == rows
    reasons = {row: reason for row, reason in done if reason}
    assert reasons == {"hang": "took more than 1 s of processor time", "crash": "died with SIGSEGV"}
    assert len(begun) == len(rows)
    with pytest.raises(Mat2SeqError, match="bad input"):
        worker.run(["raise"], str(tmp_path))
    assert worker.run(["good"], str(tmp_path)) == [("good", None)]
    worker.close()


def test_what_nobody_expected_is_the_error_of_the_run_and_no_fault_of_a_row(tmp_path: Path) -> None:
    worker = Worker(act, seconds=1)
    with pytest.raises(Mat2SeqError, match="unexpected ArrowInvalid: no table"):
        worker.run(["good", "surprise"], str(tmp_path))
    worker.close()


def test_a_worker_that_dies_while_it_is_sent_its_rows_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = Worker._start
    killed: list[int] = []

    def started(worker: Worker) -> Any:
        connections = start(worker)
        if not killed:
            killed.append(worker._process.pid)
            worker._process.kill()
            worker._process.join()
        return connections

    monkeypatch.setattr(Worker, "_start", started)
    worker = Worker(act, seconds=1)
    assert worker.run(["good"], str(tmp_path)) == [("good", None)]
    assert killed
    worker.close()


def test_a_worker_may_be_stopped_while_it_starts_and_never_starts_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    starting, stopped = threading.Event(), threading.Event()

    @contextmanager
    def slowly() -> Iterator[None]:
        starting.set()
        stopped.wait(0.5)
        yield

    monkeypatch.setattr("mat2seq_hf.corpora.workers._main_hidden", slowly)
    worker = Worker(act, seconds=1)
    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(worker.run, ["hang"], str(tmp_path))
        assert starting.wait(60)
        worker.stop()
        stopped.set()
        with pytest.raises(Mat2SeqError, match="the run was stopped"):
            running.result(60)
    with pytest.raises(Mat2SeqError, match="the run was stopped"):
        worker.run(["good"], str(tmp_path))


def test_a_script_without_a_guard_may_prepare(few: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from mat2seq_hf.corpora.prepare import prepare\n"
        f"print(prepare([{str(few)!r}], {str(tmp_path / 'out')!r}, num_proc=2, progress=False).encoded)\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True)
    assert done.stdout == "48\n"


def _hashes(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.parametrize("duplicates", ["report", "remove"])
def test_a_run_killed_at_any_moment_ends_in_the_same_bytes(duplicates: str, few: Path, tmp_path: Path) -> None:
    prepare([few], tmp_path / "whole", num_proc=1, chunk_size=4, duplicates=duplicates, progress=False)
    killed = tmp_path / "killed"
    folder = killed / "all" if duplicates == "remove" else killed
    code = f"""
from mat2seq_hf.corpora.prepare import prepare
from mat2seq_hf.corpora.sources import read_rows
prepare([{str(few)!r}], {str(killed)!r}, num_proc=2, chunk_size=4, duplicates={duplicates!r}, progress=False)
"""
    for name in ("part-00001.parquet", "part-00009.parquet"):
        process = subprocess.Popen([sys.executable, "-c", code])
        while not (folder / name).exists() and process.poll() is None:
            time.sleep(0.01)
        process.kill()
        process.wait()
    done = {path.name: path.stat().st_mtime_ns for path in folder.glob("part-*.parquet")}
    assert len(done) > 1
    report = prepare([few], killed, num_proc=2, chunk_size=4, duplicates=duplicates, progress=False)
    assert report.read == report.encoded == 48
    assert _hashes(killed) == _hashes(tmp_path / "whole")
    assert {name: (folder / name).stat().st_mtime_ns for name in done} == done


def test_two_runs_into_one_folder_are_refused(few: Path, tmp_path: Path) -> None:
    from filelock import FileLock

    with FileLock(tmp_path / ".lock"), pytest.raises(Mat2SeqError, match="another run is writing"):
        prepare([few], tmp_path, progress=False)


def test_disorder_is_set_aside_or_ordered_or_ends_the_run(tmp_path: Path) -> None:
    half = Structure(
        Lattice.cubic(4.0), [Composition({"Na": 0.5, "K": 0.5}), Composition("Cl")], [[0.0, 0.0, 0.0], [0.5, 0.5, 0.5]]
    ) * (2, 1, 1)
    (tmp_path / "half.json").write_text(json.dumps(half.as_dict()))
    report = prepare([tmp_path / "half.json"], tmp_path / "a", num_proc=1, progress=False)
    assert (report.encoded, report.rejected) == (0, 1)
    assert "disordered" in pq.read_table(tmp_path / "a" / "rejected.parquet")["reason"][0].as_py()
    assert (tmp_path / "a" / "rejected.csv").read_text().count("\n") == 2
    report = prepare([tmp_path / "half.json"], tmp_path / "a", num_proc=1, on_disorder="order", progress=False)
    assert (report.encoded, report.rejected) == (1, 0)
    with pytest.raises(Mat2SeqError, match=r"half\.json.*disordered.*on_disorder"):
        prepare([tmp_path / "half.json"], tmp_path / "b", num_proc=1, on_disorder="error", progress=False)
    with pytest.raises(Mat2SeqError, match="on_disorder is one of"):
        EncodeSettings(on_disorder="ignore")


def test_what_a_parser_did_not_expect_is_a_reason_too() -> None:
    row = encode_row(InputRow("x", '{"lattice": [[1, 0, 0]], "numbers": [1], "frac_coords": 7}', "x.json"))
    assert row["reason"]


def test_a_reason_does_not_quote_a_whole_file(tmp_path: Path) -> None:
    bad = {"lattice": ["x" * 2**20] * 3, "numbers": [1], "frac_coords": [[0, 0, 0]]}
    (tmp_path / "a.jsonl").write_text(json.dumps(bad) + "\n" + json.dumps({"structure": {"lattice": bad["lattice"]}}))
    rows = list(read_rows([tmp_path / "a.jsonl"]))
    kept = load_crystals(tmp_path / "a.jsonl", on_error="keep", streaming=True)
    for reason in (*(encode_row(row)["reason"] for row in rows), *(row["error"] for row in kept)):
        assert "CrystalError" in reason or "not all arrays" in reason or "holds no structure" in reason
        assert len(reason) < 1100
    assert len(InputRow("a", "", "a", problem="x" * 2**20).problem) < 1100


def write_late(folder: str, doomed: Mapping[int, str], begin: Callable[[int], None]) -> None:
    """Write a table when told so; runs in the worker."""
    place = Path(folder)
    begin(0)
    (place / "begun").touch()
    while not (place / "go").exists():
        time.sleep(0.01)
    try:
        write_table(pa.table({"a": [1]}), place / "late.parquet", partial(begin, -1))
    finally:
        (place / "ended").touch()


def _wait_for(path: Path) -> None:
    deadline = time.monotonic() + 120
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_worker_whose_run_was_killed_writes_nothing(tmp_path: Path) -> None:
    code = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_workers import Worker, write_late
Worker(write_late, 60).run({str(tmp_path)!r})
"""
    process = subprocess.Popen([sys.executable, "-c", code])
    _wait_for(tmp_path / "begun")
    process.kill()
    process.wait()
    (tmp_path / "go").touch()
    _wait_for(tmp_path / "ended")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["begun", "ended", "go"]


def test_a_chunk_asks_before_each_of_its_files(few: Path, tmp_path: Path) -> None:
    rows = list(read_rows([few]))[:2]
    paths = str(tmp_path / "part-00000.parquet"), str(tmp_path / "rejected.parquet")
    asked: list[int] = []

    def begin(index: int) -> None:
        asked.append(index)
        if index < 0:
            raise ConnectionError

    with pytest.raises(ConnectionError):
        encode_chunk(rows, *paths, EncodeSettings(), {}, begin)
    assert asked == [0, 1, -1]
    assert not list(tmp_path.iterdir())
    assert encode_chunk(rows, *paths, EncodeSettings(), {}, asked.append).encoded == 2
    assert asked == [0, 1, -1, 0, 1, -1, -1]
