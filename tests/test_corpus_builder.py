"""Laws of load_crystals, of the benchmark corpora, and of downloads that are cut off."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import stat
import threading
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict, IterableDataset, config, load_dataset
from pymatgen.core import Lattice, Structure

from mat2seq_hf.canonical import canonicalize
from mat2seq_hf.cli import main
from mat2seq_hf.corpora.benchmarks import BENCHMARKS, download_benchmark, find_benchmark
from mat2seq_hf.corpora.builder import CrystalCorpus
from mat2seq_hf.corpora.download import download
from mat2seq_hf.corpora.feature import Crystal, plain_columns
from mat2seq_hf.corpora.load import SAMPLE_CORPUS, load_crystals
from mat2seq_hf.corpora.prepare import prepare
from mat2seq_hf.corpora.remote import load_rows
from mat2seq_hf.corpora.rows import InputRow
from mat2seq_hf.corpora.texts import json_text
from mat2seq_hf.errors import CrystalError, Mat2SeqError


@pytest.fixture
def folder(crystals: dict[str, Structure], tmp_path: Path) -> Path:
    """A folder of CIFs, one of them broken and one disordered."""
    path = tmp_path / "cifs"
    path.mkdir()
    for name in ("BaTiO3", "NaCl", "ZrO2"):
        crystals[name].to(filename=str(path / f"{name}.cif"))
    (path / "broken.cif").write_text("data_x\n_cell_length_a 1\n")
    half = Structure(Lattice.cubic(4.0), [{"Na": 0.5, "K": 0.5}], [[0, 0, 0]])
    half.to(filename=str(path / "half.cif"))
    return path


def test_one_line_turns_a_folder_into_structures(
    folder: Path, crystals: dict[str, Structure], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        dataset = load_crystals(folder, cache_dir=tmp_path / "cache")
    assert isinstance(dataset, Dataset)
    assert list(dataset["id"]) == ["BaTiO3", "NaCl", "ZrO2"]
    for row in dataset:
        assert canonicalize(row["structure"]) == canonicalize(crystals[row["id"]])
    assert "left out 2 of 5 rows" in caplog.text


def test_bad_rows_are_kept_or_stop_the_run_when_asked(folder: Path, tmp_path: Path) -> None:
    kept = load_crystals(folder, on_error="keep", cache_dir=tmp_path / "cache")
    assert len(kept) == 5
    assert [row["structure"] is None for row in kept] == [row["error"] is not None for row in kept]
    with pytest.raises(Mat2SeqError, match=r"broken\.cif"):
        load_crystals(folder, on_error="raise", cache_dir=tmp_path / "cache")
    with pytest.raises(Mat2SeqError, match=r"half\.cif.*disordered"):
        load_crystals(folder, on_disorder="error", cache_dir=tmp_path / "cache")


def test_streaming_and_processes_give_the_same_rows(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = list(load_crystals(folder, cache_dir=tmp_path / "cache"))
    for files, shards in ((128, 1), (2, 3)):
        monkeypatch.setattr("mat2seq_hf.corpora.sources._SHARD_FILES", files)
        stream = load_crystals(folder, streaming=True)
        assert isinstance(stream, IterableDataset)
        assert list(stream) == rows
        assert stream.num_shards == shards
    assert list(load_crystals(folder, num_proc=2, cache_dir=tmp_path / "another")) == rows


def test_a_stream_of_small_files_says_once_what_it_leaves_out_and_can_be_written(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "notes.txt").write_text("what this is")
    stream = load_crystals(folder, streaming=True)
    assert caplog.text.count("left out 1 files that hold no crystals") == 1
    for index in range(stream.num_shards):  # as push_to_hub does
        plain_columns(stream.shard(stream.num_shards, index)).to_parquet(tmp_path / f"{index}.parquet")
    assert len(load_dataset("parquet", data_files=str(tmp_path / "*.parquet"), cache_dir=str(tmp_path))["train"]) == 3
    assert caplog.text.count("left out 2 of 5 rows") == 1


def test_a_changed_file_is_read_anew(folder: Path, crystals: dict[str, Structure], tmp_path: Path) -> None:
    assert len(load_crystals(folder, cache_dir=tmp_path / "cache")) == 3
    crystals["rutile"].to(filename=str(folder / "broken.cif"))
    assert len(load_crystals(folder, cache_dir=tmp_path / "cache")) == 4


def test_one_relative_path_is_another_corpus_in_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for length in ("4.0", "5.0"):
        path = tmp_path / length / "a.vasp"
        path.parent.mkdir()
        path.write_text(f"salt\n{length}\n1 0 0\n0 1 0\n0 0 1\nCs Cl\n1 1\ndirect\n0 0 0\n0.5 0.5 0.5\n")
        os.utime(path, (1e9, 1e9))
        monkeypatch.chdir(path.parent)
        (row,) = load_crystals("a.vasp", cache_dir=tmp_path / "cache")
        assert row["structure"].lattice.a == float(length)


def _table(crystals: dict[str, Structure], **columns: list[Any]) -> pd.DataFrame:
    cif = crystals["NaCl"].to(fmt="cif")
    length = len(next(iter(columns.values())))
    return pd.DataFrame({"material_id": [f"x-{n}" for n in range(length)], "cif": [cif] * length, **columns})


def test_splits_and_property_columns_come_from_files(crystals: dict[str, Structure], tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    _table(crystals, gap=[0.5, None], number=[1, 2], phase=["a", "b"]).to_parquet(data / "train.parquet")
    _table(crystals, gap=[1.5], number=[3], phase=["c"]).to_csv(data / "valid.csv", index=False)
    loaded = load_crystals(data, cache_dir=tmp_path / "cache")
    assert isinstance(loaded, DatasetDict)
    assert {name: len(split) for name, split in loaded.items()} == {"train": 2, "val": 1}
    features = loaded["train"].features
    assert [features[name].dtype for name in ("gap", "number", "phase")] == ["float64", "int64", "string"]
    assert loaded["train"].remove_columns("structure")[1] == {
        "id": "x-1",
        "source": "train.parquet:1",
        "gap": None,
        "number": 2,
        "phase": "b",
    }
    assert load_crystals(data, split="val", cache_dir=tmp_path / "cache")[0]["gap"] == 1.5


def test_a_column_that_changes_its_type_is_named_with_the_remedy(
    crystals: dict[str, Structure], tmp_path: Path
) -> None:
    path = tmp_path / "late.csv"
    _table(crystals, gap=[0.5] * 300 + ["none"]).to_csv(path, index=False)
    with pytest.raises(Mat2SeqError, match=r"column 'gap' was taken for float64.*properties="):
        load_crystals(path, cache_dir=tmp_path / "cache")
    assert load_crystals(path, properties={"gap": "string"}, cache_dir=tmp_path / "cache")[300]["gap"] == "none"
    _table(crystals, gap=[1] * 300 + [10**25]).to_csv(path, index=False)  # more than 64 bits
    with pytest.raises(Mat2SeqError, match=r"column 'gap' was taken for int64.*properties="):
        load_crystals(path, cache_dir=tmp_path / "cache")


def test_no_decimals_are_cut_off(crystals: dict[str, Structure], tmp_path: Path) -> None:
    table = _table(crystals, band_gap=["0"] * 201 + ["1.17"])
    table.to_csv(tmp_path / "late.csv", index=False)
    table.assign(band_gap=pd.Series([0] * 201 + [1.17], dtype=object)).to_json(
        tmp_path / "late.jsonl", orient="records", lines=True
    )
    for name in ("late.csv", "late.jsonl"):
        path = tmp_path / name
        said = rf"'band_gap' was taken for int64.* {name}:201: 1\.17 is no whole number; .*\{{'band_gap': 'float64'\}}"
        with pytest.raises(Mat2SeqError, match=said):
            load_crystals(path, cache_dir=tmp_path / "cache")
        with pytest.raises(Mat2SeqError, match=said):
            list(load_crystals(path, streaming=True))
        loaded = load_crystals(path, properties={"band_gap": "float64"}, cache_dir=tmp_path / "cache")
        assert loaded[201]["band_gap"] == 1.17
    table.assign(band_gap=[0.5] * 202).to_csv(path, index=False)
    with pytest.raises(Mat2SeqError, match="was taken for int32"):
        list(load_crystals(path.rename(tmp_path / "all.csv"), properties={"band_gap": "int32"}, streaming=True))
    (tmp_path / "whole.jsonl").write_text("\n".join(map(json.dumps, ({"cif": "x", "n": n} for n in (1, 2.0)))))
    rows = load_crystals(tmp_path / "whole.jsonl", properties={"n": "int64"}, on_error="keep", streaming=True)
    assert [row["n"] for row in rows] == [1, 2]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["gap"], r"a mapping of names to types .* not \['gap'\]"),
        ("gap", "not 'gap'"),
        ({"gap": float}, "'gap' is <class 'float'>"),
        ({1: "int64"}, "1 is 'int64'"),
        ({"gap": "number"}, "'gap' is 'number'"),
    ],
)
def test_properties_of_no_type_are_refused(given: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(Mat2SeqError, match=said):
        load_crystals("sample", properties=given, cache_dir=tmp_path / "cache")


def test_a_property_that_no_row_has_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    given = {"bandgap": "float64", "band_gap": "float64", "source": "string"}
    for _ in range(2):  # from the files, and from the cache
        caplog.clear()
        loaded = load_crystals("sample", properties=given, cache_dir=tmp_path / "cache")
        assert caplog.text.count("no row has the property") == 1
        assert "no row has the property 'bandgap', 'source': the columns are empty" in caplog.text
    assert loaded.column_names == ["id", "structure", "source", "bandgap", "band_gap", "source_"]


def test_the_sample_corpus_is_in_the_package_and_every_crystal_in_it_encodes(tmp_path: Path) -> None:
    dataset = load_crystals("sample", cache_dir=tmp_path / "cache")
    assert len(dataset) == 302
    assert {"band_gap", "e_above_hull", "formation_energy_per_atom"} < set(dataset.features)
    for row in dataset.select(range(0, 302, 30)):
        assert canonicalize(row["structure"]).text


def test_plain_columns_are_read_as_they_are_unless_a_row_is_no_crystal(tmp_path: Path) -> None:
    table = pq.read_table(SAMPLE_CORPUS)
    rows = table.to_pylist()
    good = load_crystals(SAMPLE_CORPUS, streaming=True)
    assert [(row["id"], row["band_gap"]) for row in good] == [(row["id"], row["band_gap"]) for row in rows]
    assert next(iter(good))["source"] == "mp_20_sample.parquet:0"
    flat, far = [[1.0, 0.0, 0.0], [2.0, 0.0, 0.0], [0.0, 0.0, 1.0]], [[float("inf"), 0.0, 0.0]] * 3
    shapes = ({"numbers": [0]}, {"lattice": [[1.0, 0.0]]}, {"frac_coords": [[0.0, 0.0, 0.0]]}, {"numbers": None})
    nan = [[float("nan")] * 3] * 4
    for spoil in (*shapes, {"lattice": flat}, {"lattice": far}, {"frac_coords": nan}):
        rows = table.to_pylist()
        rows[7]["structure"] |= spoil
        path = tmp_path / "spoilt.parquet"
        pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path)
        kept = list(load_crystals(path, on_error="keep", streaming=True))
        assert [number for number, row in enumerate(kept) if row["error"]] == [7], spoil
        assert kept[8]["structure"] is not None


@pytest.mark.parametrize(
    "values",
    [
        *(pa.array([1.0, 2.5]), pa.array([1.0, 2.0]), pa.array([1.0, None]), pa.array([1.0, float("nan")])),
        *(
            pa.array([float("inf"), 1.0]),
            pa.array([1.5, 2.0], pa.float32()),
            pa.array([1, None]),
            pa.array([True, False]),
        ),
        *(pa.array(["1", "nan"]), pa.array(["a", None], pa.large_string()), pa.array(["a", "b"]).dictionary_encode()),
        *(pa.nulls(2), pa.array([1, 2], pa.timestamp("s")), pa.array([[1], [2]]), pa.array([2**60 + 1, 0])),
    ],
    ids=lambda values: f"{values.type}",
)
def test_no_value_depends_on_another_row(values: pa.Array, tmp_path: Path) -> None:
    good = {"lattice": [[4.0, 0, 0], [0, 4, 0], [0, 0, 4]], "numbers": [6], "frac_coords": [[0.0, 0, 0]], "text": "C"}
    flat = good | {"lattice": [[0.0, 0, 0]] * 3}

    def read(rows: list[dict[str, Any]], **settings: Any) -> Any:
        column = pa.concat_arrays([values, values])[: len(rows)]
        pq.write_table(pa.table({"id": column, "structure": rows, "gap": column}), tmp_path / "a.parquet")
        try:
            stream = load_crystals(tmp_path / "a.parquet", streaming=True, **settings)
            kept = list(stream.cast_column("structure", Crystal(decode=False)))
        except Mat2SeqError as error:
            return f"{error}"
        return [(row["id"], row.get("gap"), row.get("id_"), row["structure"]["text"]) for row in kept]

    kinds = ("string", "large_string", "float64", "float32", "int64", "int16", "bool")
    for chosen in ({}, *({"properties": {"gap": kind, "id": kind}} for kind in kinds)):
        for keep_text in (False, True):
            settings = {**chosen, "keep_text": keep_text}
            assert repr(read([good, good, flat], **settings)) == repr(read([good, good], **settings)), settings


def test_benchmark_corpora_are_read_from_local_copies(
    crystals: dict[str, Structure], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "data" / "mp_20").mkdir(parents=True)
    _table(crystals, band_gap=[0.5]).to_parquet(tmp_path / "data" / "mp_20" / "val.parquet")
    with caplog.at_level(logging.WARNING):
        loaded = load_crystals("mp_20", data_dir=tmp_path / "data", split="val", cache_dir=tmp_path / "cache")
    assert len(loaded) == 1
    assert "mp_20/val has 1 crystals here, 9047 as published" in caplog.text
    with pytest.raises(Mat2SeqError, match=r"train of mp_20 is not in .*data"):
        load_crystals("mp_20", data_dir=tmp_path / "data", split="train")
    with pytest.raises(Mat2SeqError, match="has the splits train, val, test"):
        load_crystals("mp_20", data_dir=tmp_path / "data", split="dev")


def test_without_network_or_copy_the_remedy_is_named() -> None:
    with pytest.raises(Mat2SeqError, match=r"HF_HUB_OFFLINE.*data_dir"):
        load_crystals("perov_5")
    with pytest.raises(Mat2SeqError, match="none of the corpora perov_5, carbon_24, mp_20, mpts_52"):
        load_crystals("nobody/nothing")
    with pytest.raises(Mat2SeqError, match="does not exist"):
        load_crystals("no_such_folder")
    with pytest.raises(Mat2SeqError, match="on_error is one of"):
        CrystalCorpus(inputs={}, on_error="ignore")
    for wrong in (["gap"], {"gap": "number"}):
        with pytest.raises(Mat2SeqError, match="properties is a mapping of names to types"):
            CrystalCorpus(inputs={}, properties=wrong)


@dataclass
class _Server:
    """What the server serves, how often it still fails, and what it was asked."""

    files: dict[str, bytes] = field(default_factory=dict)
    cuts: int = 0
    failures: int = 0
    ranges: list[str | None] = field(default_factory=list)
    url: str = ""


@pytest.fixture
def server() -> Iterator[_Server]:
    state = _Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state.ranges.append(self.headers.get("Range"))
            if state.failures:
                state.failures -= 1
                return self.send_error(503)
            data = state.files.get(self.path)
            if data is None:
                return self.send_error(404)
            start = int(state.ranges[-1].removeprefix("bytes=").rstrip("-")) if state.ranges[-1] else 0
            if start >= len(data):
                return self.send_error(416)
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(data) - start))
            self.end_headers()
            stop = len(data)
            if state.cuts:
                state.cuts -= 1
                stop = start + (len(data) - start) // 2
            self.wfile.write(data[start:stop])
            return None

        def log_message(self, *_: Any) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    state.url = f"http://127.0.0.1:{http.server_address[1]}"
    yield state
    http.shutdown()
    http.server_close()
    thread.join()


def _blob(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


DATA = bytes(range(256)) * 40


def test_a_download_goes_on_where_it_was_cut_off(server: _Server, tmp_path: Path) -> None:
    server.files["/a.csv"] = DATA
    server.cuts, server.failures = 2, 1
    download(f"{server.url}/a.csv", tmp_path / "a.csv", _blob(DATA), pause=0.0)
    assert (tmp_path / "a.csv").read_bytes() == DATA
    assert server.ranges == [None, None, "bytes=5120-", "bytes=7680-"]
    download(f"{server.url}/a.csv", tmp_path / "a.csv", _blob(DATA), pause=0.0)
    assert len(server.ranges) == 4
    (tmp_path / "a.csv").rename(tmp_path / "a.csv.part")  # killed before the last step
    download(f"{server.url}/a.csv", tmp_path / "a.csv", _blob(DATA), pause=0.0)
    assert (tmp_path / "a.csv").read_bytes() == DATA


def test_what_arrived_is_kept_for_the_next_run(server: _Server, tmp_path: Path) -> None:
    server.files["/a.csv"] = DATA
    server.cuts = 1
    with pytest.raises(Mat2SeqError, match=r"cannot be downloaded.*data_dir"):
        download(f"{server.url}/a.csv", tmp_path / "a.csv", _blob(DATA), tries=1)
    assert (tmp_path / "a.csv.part").stat().st_size == len(DATA) // 2
    download(f"{server.url}/a.csv", tmp_path / "a.csv", _blob(DATA), tries=1)
    assert (tmp_path / "a.csv").read_bytes() == DATA


def test_other_bytes_than_the_published_are_refused(server: _Server, tmp_path: Path) -> None:
    server.files["/a.csv"] = DATA
    with pytest.raises(Mat2SeqError, match="is not the published file"):
        download(f"{server.url}/a.csv", tmp_path / "a.csv", "0" * 40, pause=0.0)
    assert not [path for path in tmp_path.iterdir() if path.suffix != ".lock"]
    with pytest.raises(Mat2SeqError, match="404"):
        download(f"{server.url}/b.csv", tmp_path / "b.csv", "0" * 40, pause=0.0)
    with pytest.raises(Mat2SeqError, match="neither http"):
        download("file:///etc/passwd", tmp_path / "b.csv", "0" * 40)


def test_a_benchmark_is_downloaded_split_by_split(
    server: _Server, crystals: dict[str, Structure], tmp_path: Path
) -> None:
    tables = {name: _table(crystals, gap=[0.5]).to_csv().encode() for name in ("train", "val", "test")}
    server.files = {f"/{name}.csv": data for name, data in tables.items()}
    published = replace(BENCHMARKS["mp_20"], checksums={name: _blob(data) for name, data in tables.items()})
    paths = download_benchmark(published, tmp_path, url=server.url)
    assert list(paths) == ["train", "val", "test"]
    loaded = load_crystals(paths, cache_dir=tmp_path / "cache")
    assert {name: len(split) for name, split in loaded.items()} == {"train": 1, "val": 1, "test": 1}


def test_what_a_file_says_never_opens_another_file(crystals: dict[str, Structure], tmp_path: Path) -> None:
    secret = tmp_path / "secret.cif"
    secret.write_text(crystals["NaCl"].to(fmt="cif") + "# password")
    (tmp_path / "in").mkdir()
    pd.DataFrame({"id": ["a"], "cif": [str(secret)]}).to_csv(tmp_path / "in" / "a.csv", index=False)
    (tmp_path / "in" / "b.cif").write_text(str(secret))
    with zipfile.ZipFile(tmp_path / "in" / "c.zip", "w") as archive:
        link = zipfile.ZipInfo("link.cif")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, str(secret))
    loaded = load_crystals(tmp_path / "in", keep_text=True, on_error="keep", cache_dir=tmp_path / "cache")
    assert [row["source"] for row in loaded] == ["in/a.csv:0", "in/b.cif"]
    for row in (*loaded, *load_rows([InputRow("a", str(secret), "here")])):
        assert row["structure"] is None
        assert "password" not in row["error"]
    with pytest.raises(CrystalError):
        Dataset.from_dict({"s": [str(secret)]}).cast_column("s", Crystal())
    assert Crystal().encode_example(str(secret))["numbers"]  # the user's own path


def test_a_folder_has_splits_if_all_of_its_crystals_are_in_one(
    crystals: dict[str, Structure], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("train.csv", "val.csv"):
        _table(crystals, gap=[0.5]).to_csv(tmp_path / name, index=False)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "readme.txt").write_text("what this is")
    out = tmp_path / "out"
    for _ in range(2):  # again with what was written beside the splits
        assert main(["prepare", str(tmp_path), "--splits", "-o", str(out), "--num-proc", "1"]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["train", "val"]
    crystals["NaCl"].to(filename=str(tmp_path / "extra.cif"))
    assert main(["prepare", str(tmp_path), "--splits", "-o", str(tmp_path / "more"), "--num-proc", "1"]) == 2
    folder = tmp_path / "cifs"
    folder.mkdir()
    for name in ("NaCl", "test"):
        crystals["NaCl"].to(filename=str(folder / f"{name}.cif"))
    assert len(load_crystals(folder, cache_dir=tmp_path / "cache")) == 2
    assert "what has the name of no split: NaCl.cif" in caplog.text


def test_property_values_are_those_of_the_file(crystals: dict[str, Structure], tmp_path: Path) -> None:
    codes, formulas = ["1.10", "beta", "1E3", "+5"], ["CsCl", "InF", "NaN", "Inf"]
    path = tmp_path / "a.csv"
    _table(crystals, code=codes, formula=formulas, gap=["1", "2.50", "NaN", "nan"]).to_csv(path, index=False)
    loaded = load_crystals(path, cache_dir=tmp_path / "cache")
    assert (list(loaded["code"]), list(loaded["formula"])) == (codes, formulas)
    loaded = load_crystals(path, properties={"gap": "float64", "code": "string"}, cache_dir=tmp_path / "cache")
    assert list(loaded["gap"])[:2] == [1.0, 2.5]
    assert list(loaded["code"]) == codes


def test_columns_called_like_those_of_the_builder_get_another_name(
    crystals: dict[str, Structure], tmp_path: Path
) -> None:
    table = _table(crystals, id=["icsd-77"], source=["ICSD"], error=[0.02])
    table.to_csv(tmp_path / "a.csv", index=False)
    crystal = crystals["NaCl"]
    plain = json.loads(json_text(crystal.lattice.matrix, crystal.atomic_numbers, crystal.frac_coords))
    table.drop(columns="cif").assign(structure=[plain]).to_parquet(tmp_path / "b.parquet")
    for name in ("a.csv", "b.parquet"):
        (row,) = load_crystals(tmp_path / name, cache_dir=tmp_path / "cache")
        assert (row["id"], row["source"]) == ("x-0", f"{name}:0")
        assert (row["id_"], row["source_"], row["error_"]) == ("icsd-77", "ICSD", 0.02)
    _table(crystals, source_=["own"]).to_csv(tmp_path / "c.csv", index=False)
    assert load_crystals(tmp_path / "c.csv", cache_dir=tmp_path / "cache")[0]["source_"] == "own"
    (row,) = load_rows([InputRow("a", json.dumps(plain), "here", json.dumps({"source": "ICSD"}))])
    assert (row["source"], row["source_"], row["error"]) == ("here", "ICSD", None)


def test_a_property_that_comes_late_is_there_or_named(
    crystals: dict[str, Structure], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    many = tmp_path / "many"
    many.mkdir()
    for number in range(52):
        _table(crystals, **({"gap": [1.5]} if number == 51 else {"n": [1]})).to_csv(many / f"{number:02}.csv")
    assert load_crystals(many, cache_dir=tmp_path / "cache")[51]["gap"] == 1.5
    _table(crystals, gap=[None] * 250 + [1.5]).to_csv(tmp_path / "sparse.csv")
    assert load_crystals(tmp_path / "sparse.csv", cache_dir=tmp_path / "cache")[250]["gap"] == 1.5
    rows = [{"cif": crystals["NaCl"].to(fmt="cif"), **({"gap": 1.5} if number > 200 else {})} for number in range(203)]
    (tmp_path / "late.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert "gap" not in load_crystals(tmp_path / "late.jsonl", cache_dir=tmp_path / "cache").features
    assert caplog.text.count("the property 'gap' of late.jsonl:201 is left out") == 1
    again = load_crystals(tmp_path / "late.jsonl", properties={"gap": "float64"}, cache_dir=tmp_path / "cache")
    assert again[202]["gap"] == 1.5


def test_preparing_and_loading_agree_on_what_is_a_crystal(tmp_path: Path) -> None:
    good = {"lattice": [[4.0, 0, 0], [0, 4, 0], [0, 0, 4]], "numbers": [55], "frac_coords": [[0.0, 0, 0]]}
    spoilt: list[dict[str, Any]] = [
        *({"numbers": [8.5]}, {"numbers": [500]}, {"numbers": [55, 17]}, {"numbers": []}, {"numbers": ["Cs"]}),
        *({"frac_coords": [[float("nan"), 0, 0]]}, {"frac_coords": [[None, 0, 0]]}, {"frac_coords": [[0, 0]]}),
        *({"lattice": [[0, 0, 0]] * 3}, {"lattice": ["abc"] * 3}, {"lattice": [[float("inf"), 0, 0]] * 3}),
    ]
    rows = [good | spoil for spoil in spoilt]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, [*rows, good])))
    loaded = load_crystals(tmp_path / "a.jsonl", on_error="keep", cache_dir=tmp_path / "cache")
    assert [row["structure"] is None for row in loaded] == [True] * len(rows) + [False]
    report = prepare([tmp_path / "a.jsonl"], tmp_path / "out", num_proc=1, progress=False)
    assert (report.encoded, report.rejected) == (1, len(rows))
    for row in rows:
        with pytest.raises(CrystalError):
            Crystal().encode_example(row)


def test_a_corpus_of_which_nothing_is_left_says_why(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.cif").write_text("junk")
    with pytest.raises(Mat2SeqError, match=r"none of the rows is a crystal; the first is in/a\.cif: .*on_error"):
        load_crystals(tmp_path / "in", cache_dir=tmp_path / "cache")


def test_a_row_without_a_name_has_its_number(crystals: dict[str, Structure], tmp_path: Path) -> None:
    table = pq.read_table(SAMPLE_CORPUS).slice(0, 2)
    names = pa.array(["a", None])
    pq.write_table(table.set_column(0, "id", names), tmp_path / "a.parquet")
    _table(crystals, gap=[1, 2]).assign(material_id=["a", None]).to_parquet(tmp_path / "b.parquet")
    for name in ("a.parquet", "b.parquet"):
        assert list(load_crystals(tmp_path / name, cache_dir=tmp_path / "cache")["id"]) == ["a", "1"]


def test_names_on_the_hub_may_have_dots() -> None:
    for name in ("nobody/nothing.v1", "no.body/nothing"):
        with pytest.raises(Mat2SeqError, match="cannot be loaded from the Hub"):
            load_crystals(name)
    for name in ("data/train.csv", "../data", "data/a.cif.gz"):
        with pytest.raises(Mat2SeqError, match="does not exist"):
            load_crystals(name)


def test_a_split_in_the_cache_is_enough_without_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "HF_DATASETS_CACHE", tmp_path)
    path = tmp_path / "mat2seq_hf" / "perov_5" / "val.csv"
    path.parent.mkdir(parents=True)
    path.write_bytes(DATA)
    published = replace(BENCHMARKS["perov_5"], checksums=BENCHMARKS["perov_5"].checksums | {"val": _blob(DATA)})
    assert find_benchmark(published, None, "val") == {"val": path}
    with pytest.raises(Mat2SeqError, match="HF_HUB_OFFLINE"):
        find_benchmark(published, None, None)


def test_two_downloads_of_one_file_wait_for_each_other(server: _Server, tmp_path: Path) -> None:
    server.files["/a.csv"] = DATA

    def fetch(_: int) -> None:
        download(f"{server.url}/a.csv", tmp_path / "a.csv", _blob(DATA), pause=0.0)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(fetch, range(4)))
    assert len(server.ranges) == 1
    assert (tmp_path / "a.csv").read_bytes() == DATA


def _benchmark_copies(folder: Path, crystals: dict[str, Structure], splits: tuple[str, ...]) -> None:
    folder.mkdir(parents=True)
    for split in splits:
        _table(crystals, band_gap=[0.5]).to_parquet(folder / f"{split}.parquet")


def test_with_data_dir_a_name_is_the_benchmark_and_without_it_never_what_is_here(
    crystals: dict[str, Structure],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    _benchmark_copies(tmp_path / "data" / "mp_20", crystals, ("train", "val", "test"))
    _table(crystals, band_gap=[0.5]).to_csv(tmp_path / "data" / "mp_20" / "train.csv")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    Path("mp_20").symlink_to("../data/mp_20")
    asked = ["prepare", "mp_20", "--num-proc", "1", "-o", "out"]
    assert main([*asked, "--data-dir", "../data"]) == 0
    assert sorted(path.name for path in Path("out").iterdir()) == ["test", "train", "val"]
    said = capsys.readouterr().out
    assert "train: ../data/mp_20/train.parquet\n" in said
    assert "train: 1 crystals read" in said
    assert "mp_20/train has 1 crystals here, 27136 as published" in caplog.text
    loaded = load_crystals("mp_20", data_dir="../data", cache_dir=tmp_path / "cache")
    assert {name: len(rows) for name, rows in loaded.items()} == {"train": 1, "val": 1, "test": 1}
    assert main(asked) == 2
    assert "is a benchmark corpus, and" in capsys.readouterr().err
    with pytest.raises(Mat2SeqError, match=r"has its name: give \./mp_20 for what is here, or a data directory"):
        load_crystals("mp_20")
    with pytest.raises(Mat2SeqError, match=r"train\.csv and train\.parquet would both be read"):
        load_crystals("./mp_20")
    assert main(["prepare", "./mp_20", "--splits", "-o", "more"]) == 2
    Path("mp_20/train.csv").unlink()
    assert len(load_crystals("./mp_20", split="val", cache_dir=tmp_path / "cache")) == 1


def test_a_data_dir_that_nothing_uses_is_refused(crystals: dict[str, Structure], tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    _table(crystals, gap=[0.5]).to_csv(path)
    for given in ([str(path)], ["mp_20", str(path)]):
        assert main(["prepare", *given, "--data-dir", "nowhere", "-o", str(tmp_path / "out")]) == 2
    for source in (path, "sample", "org/name", [path]):
        with pytest.raises(Mat2SeqError, match="nowhere is for copies of the benchmark corpora"):
            load_crystals(source, data_dir="nowhere")


def test_the_files_of_one_benchmark_are_never_taken_for_another_and_missing_splits_are_named(
    crystals: dict[str, Structure], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _benchmark_copies(tmp_path / "mp_20", crystals, ("val",))
    with pytest.raises(Mat2SeqError, match=r"mpts_52 is not in .*mp_20: expected .*mp_20/mpts_52/train\.parquet"):
        find_benchmark(BENCHMARKS["mpts_52"], tmp_path / "mp_20")
    assert find_benchmark(BENCHMARKS["mp_20"], tmp_path) == {"val": tmp_path / "mp_20" / "val.parquet"}
    assert "train, test of mp_20 is not in" in caplog.text


def test_a_split_that_is_not_there_is_named_before_anything_is_read(
    crystals: dict[str, Structure], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("train", "val"):
        _table(crystals, gap=[0.5, 0.6]).to_csv(tmp_path / f"{name}.csv")
    for split, rows in (("train[:1]", 1), ("train+val", 4), ("all", 4), ("val[1:]+train", 3)):
        assert len(load_crystals(tmp_path, split=split, cache_dir=tmp_path / ".cache")) == rows
    monkeypatch.setattr(CrystalCorpus, "__init__", None)
    for source, split, said in (
        ("sample", "val", "there is no split 'val', only train"),
        (tmp_path, "test", "there is no split 'test', only train, val"),
        (tmp_path, "train+test[:5]", "there is no split 'test', only train, val"),
    ):
        for streaming in (False, True):
            with pytest.raises(Mat2SeqError, match=said):
                load_crystals(source, split=split, streaming=streaming)
