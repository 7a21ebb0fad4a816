"""The Ray job: on two nodes, with one of them lost, it gives what one process gives."""

from __future__ import annotations

import math
import threading
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from datasets import load_dataset
from filelock import FileLock

from mat2seq_hf.corpora.cluster import prepare_with_ray
from mat2seq_hf.corpora.load import SAMPLE_CORPUS
from mat2seq_hf.corpora.prepare import prepare
from mat2seq_hf.corpora.schema import shard_paths
from mat2seq_hf.errors import Mat2SeqError

ray: Any = pytest.importorskip("ray", reason="the extra `ray` is not installed")


def _rows(folder: Path) -> list[dict[str, object]]:
    return [row for path in shard_paths(folder) for row in pq.read_table(path).to_pylist()]


@pytest.mark.slow
def test_a_job_that_loses_a_node_gives_the_rows_of_one_process(tmp_path: Path) -> None:
    from ray.cluster_utils import Cluster

    data = tmp_path / "data.parquet"
    table = pq.read_table(SAMPLE_CORPUS)
    pq.write_table(table, data, row_group_size=40)
    (tmp_path / "cifs").mkdir()
    (tmp_path / "cifs" / "broken.cif").write_text("data_x\n_cell_length_a 1\n")
    inputs = [data, tmp_path / "cifs"]
    expected = prepare(inputs, tmp_path / "one", num_proc=1, chunk_size=7, progress=False)

    cluster: Any = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    second = cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, log_to_driver=False)
    out = tmp_path / "cluster"

    def lose() -> None:
        while len(shard_paths(out)) < 4:
            time.sleep(0.05)
        cluster.remove_node(second, allow_graceful=False)

    killer = threading.Thread(target=lose)
    try:
        assert len(ray.nodes()) == 2
        killer.start()
        report = prepare_with_ray(inputs, out, chunk_size=7)
        killer.join()
        for _ in range(600):  # the cluster hears of the loss a little later
            if sum(node["Alive"] for node in ray.nodes()) == 1:
                break
            time.sleep(0.1)
        else:
            raise AssertionError(ray.nodes())
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert (report.read, report.rejected) == (303, 1)
    assert report == expected
    assert _rows(out) == _rows(tmp_path / "one")
    assert not list(out.rglob("*.tmp"))
    opened = load_dataset(str(out), data_files="part-*.parquet", split="train", cache_dir=str(tmp_path / "cache"))
    assert opened.num_rows == 302


def test_settings_that_cannot_work_are_refused_before_ray_starts(tmp_path: Path) -> None:
    with pytest.raises(Mat2SeqError, match="duplicates is one of report, remove, not 'ignore'"):
        prepare_with_ray([SAMPLE_CORPUS], tmp_path, duplicates="ignore")
    with pytest.raises(Mat2SeqError, match="seconds is a finite number, at least 1, not inf"):
        prepare_with_ray([SAMPLE_CORPUS], tmp_path, seconds=math.inf)
    with pytest.raises(Mat2SeqError, match="no crystals in"):
        prepare_with_ray([tmp_path], tmp_path / "out")
    assert not ray.is_initialized()


def test_a_job_and_a_run_into_one_folder_are_refused(tmp_path: Path) -> None:
    with FileLock(tmp_path / ".lock"), pytest.raises(Mat2SeqError, match="another run is writing"):
        prepare_with_ray([SAMPLE_CORPUS], tmp_path)
    assert not ray.is_initialized()
