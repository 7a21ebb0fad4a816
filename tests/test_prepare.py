"""Laws of corpus preparation: nothing is lost, and the bytes do not depend on how the work was split."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest
from pymatgen.core import Lattice, Structure

from mat2seq_hf.cli import main
from mat2seq_hf.corpora.dedup import dedup
from mat2seq_hf.corpora.duplicates import leakage, read_columns
from mat2seq_hf.corpora.prepare import prepare
from mat2seq_hf.corpora.schema import METADATA_KEY, PREPARED, shard_paths
from mat2seq_hf.corpora.sources import read_rows
from mat2seq_hf.errors import Mat2SeqError
from mat2seq_hf.sequence import scheme_fingerprint
from mat2seq_hf.vocabulary import TOKENS, tokenize


def _rock_salt(metal: str, length: float) -> str:
    crystal = Structure.from_spacegroup("Fm-3m", Lattice.cubic(length), [metal, "O"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    text: str = crystal.to(fmt="cif")
    return text


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven good crystals and three bad rows, with a property."""
    metals = ["Mg", "Ca", "Sr", "Ba", "Mn", "Fe", "Co"]
    cifs = [_rock_salt(metal, 4.2 + 0.1 * number) for number, metal in enumerate(metals)]
    cifs[3:3] = ["this is no crystal"]
    cifs += ["", cifs[0].replace("Mg0  1", "Mg0  0").replace("  1.0", "  0.5").replace("  1\n", "  0.5\n")]
    path = tmp_path_factory.mktemp("input") / "crystals.parquet"
    names = [f"row-{number}" for number in range(len(cifs))]
    gaps = [float(number) if number % 2 else None for number in range(len(cifs))]
    pd.DataFrame({"material_id": names, "cif": cifs, "band_gap": gaps}).to_parquet(path)
    return path


def _hashes(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_counts_add_up_and_bad_rows_are_set_aside_with_reasons(table: Path, tmp_path: Path) -> None:
    report = prepare([table], tmp_path, num_proc=1, chunk_size=4, progress=False)
    assert (report.read, report.encoded, report.rejected) == (10, 7, 3)
    rejected = pq.read_table(tmp_path / "rejected.parquet").to_pylist()
    assert [row["id"] for row in rejected] == ["row-3", "row-8", "row-9"]
    assert all(row["reason"].split(":")[0].endswith("Error") and len(row["reason"]) > 20 for row in rejected)
    assert rejected[0]["source"] == "crystals.parquet:3"


def test_a_prepared_row_agrees_with_itself(table: Path, tmp_path: Path) -> None:
    report = prepare([table], tmp_path, num_proc=1, chunk_size=4, progress=False)
    rows = [row for path in shard_paths(tmp_path) for row in pq.read_table(path).to_pylist()]
    assert list(rows[0]) == PREPARED.names
    assert sum(row["n_tokens"] for row in rows) == report.tokens
    for row in rows:
        ids = row["input_ids"]
        assert len(ids) == row["n_tokens"]
        assert (TOKENS[ids[0]], TOKENS[ids[-1]]) == ("<s>", "</s>")
        assert ids[1:-1] == tokenize(row["text"])
        formula, rest = row["text"].split(" [")
        assert ids[1 : row["prompt_length"]] == tokenize(formula)
        assert TOKENS[ids[row["prompt_length"]]] == "[" + rest.split(" ")[0]
    assert [json.loads(row["properties"]) for row in rows[:2]] == [{}, {"band_gap": 1.0}]


def test_the_output_is_the_same_bytes_whatever_the_number_of_processes(table: Path, tmp_path: Path) -> None:
    for processes in (1, 2):
        prepare([table], tmp_path / str(processes), num_proc=processes, chunk_size=3, progress=False)
    assert _hashes(tmp_path / "1") == _hashes(tmp_path / "2")


def test_a_stopped_run_continues_and_keeps_what_is_there(table: Path, tmp_path: Path) -> None:
    prepare([table], tmp_path, num_proc=1, chunk_size=3, progress=False)
    whole = _hashes(tmp_path)
    kept, lost = tmp_path / "part-00000.parquet", tmp_path / "part-00001.parquet"
    before = kept.stat().st_mtime_ns
    lost.unlink()
    (tmp_path / "part-00001.123.tmp").write_bytes(b"half a file")
    (tmp_path / "rejected.parquet").unlink()
    prepare([table], tmp_path, num_proc=1, chunk_size=3, progress=False)
    assert _hashes(tmp_path) == whole
    assert kept.stat().st_mtime_ns == before


def test_another_tolerance_or_another_input_is_never_served_stale(table: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepare([table], out, num_proc=1, chunk_size=3, progress=False)
    prepare([table], out, symprec=0.1, num_proc=1, chunk_size=3, progress=False)
    metadata = [json.loads(pq.read_schema(path).metadata[METADATA_KEY]) for path in shard_paths(out)]
    assert {entry["scheme"] for entry in metadata} == {scheme_fingerprint(0.1)}
    shorter = tmp_path / "shorter.csv"
    pd.read_parquet(table).iloc[1:3].to_csv(shorter, index=False)
    report = prepare([shorter], out, symprec=0.1, num_proc=1, chunk_size=3, progress=False)
    assert (report.read, report.encoded) == (2, 2)
    assert len(shard_paths(out)) == 1


def test_tables_files_and_folders_are_read_in_order(table: Path, tmp_path: Path) -> None:
    (tmp_path / "folder" / "deeper").mkdir(parents=True)
    for name in ("b.cif", "deeper/a.cif", "notes.txt"):
        (tmp_path / "folder" / name).write_text(_rock_salt("Mg", 4.2))
    rows = list(read_rows([tmp_path / "folder", table]))
    assert [row.id for row in rows[:3]] == ["b", "a", "row-0"]
    assert len(rows) == 12


def test_missing_and_unusable_inputs_are_named(tmp_path: Path) -> None:
    with pytest.raises(Mat2SeqError, match=r"nothing\.cif does not exist"):
        prepare([tmp_path / "nothing.cif"], tmp_path / "out", progress=False)
    (tmp_path / "data.csv").write_text("id,crystal\n1,x\n")
    with pytest.raises(Mat2SeqError, match=r"no column 'cif'.*its columns are id, crystal"):
        prepare([tmp_path / "data.csv"], tmp_path / "out", num_proc=1, progress=False)
    (tmp_path / "empty").mkdir()
    with pytest.raises(Mat2SeqError, match="no crystals in"):
        prepare([tmp_path / "empty"], tmp_path / "out", num_proc=1, progress=False)


def test_a_broken_table_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.parquet").write_bytes(b"cif\n1,2,3\n")
    with pytest.raises(Mat2SeqError, match=r"broken\.parquet"):
        prepare([tmp_path / "broken.parquet"], tmp_path / "out", num_proc=1, progress=False)


@pytest.mark.parametrize(
    "setting",
    [{"symprec": 5.0}, {"num_proc": 0}, {"chunk_size": 0}, *({"seconds": float(text)} for text in ("inf", "nan", "0"))],
)
def test_settings_that_cannot_work_are_refused_at_once(setting: dict[str, Any], table: Path, tmp_path: Path) -> None:
    with pytest.raises(Mat2SeqError, match=r"symprec|num_proc|seconds is a finite number"):
        prepare([table], tmp_path / "out", progress=False, **setting)
    assert not (tmp_path / "out").exists()


def test_names_in_a_csv_stay_as_they_are_written(tmp_path: Path) -> None:
    (tmp_path / "crystals.csv").write_text('id,cif\n007,"data_x\nno crystal"\n')
    assert [row.id for row in read_rows([tmp_path / "crystals.csv"])] == ["007"]


def test_a_shard_from_which_all_rows_were_set_aside_opens_with_datasets(table: Path, tmp_path: Path) -> None:
    from datasets import load_dataset

    prepare([table], tmp_path / "out", num_proc=1, chunk_size=1, progress=False)
    assert len(shard_paths(tmp_path / "out")) == 10
    files = str(tmp_path / "out" / "part-*.parquet")
    assert len(load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path / "cache"))) == 7
    assert len(list(load_dataset("parquet", data_files=files, split="train", streaming=True))) == 7


def test_the_rejected_rows_of_another_input_are_never_served(table: Path, tmp_path: Path) -> None:
    rows = pd.read_parquet(table).iloc[2:4]
    for name, frame in (("one", rows), ("other", rows.iloc[::-1])):  # as many good and bad ones
        frame.to_parquet(tmp_path / f"{name}.parquet")
        prepare([tmp_path / f"{name}.parquet"], tmp_path / name, num_proc=1, progress=False)
    whole = _hashes(tmp_path / "one")
    part = Path("rejected") / "part-00000.parquet"
    shutil.copy(tmp_path / "other" / part, tmp_path / "one" / part)  # killed between the two files of a chunk
    prepare([tmp_path / "one.parquet"], tmp_path / "one", num_proc=1, progress=False)
    assert _hashes(tmp_path / "one") == whole


def test_a_report_stands_for_a_whole_run(table: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepare([table], out, num_proc=1, chunk_size=4, progress=False)
    with pytest.raises(Mat2SeqError, match="disordered"):
        prepare([table], out, on_disorder="error", num_proc=1, chunk_size=4, progress=False)
    assert not (out / "report.json").exists()
    for given in ([str(out)], [str(out), str(out)]):
        assert main(["dedup", *given]) == 2
    asked = ["prepare", str(table), "-o", str(tmp_path / "new"), "--num-proc", "1", "--against", str(out)]
    assert main(asked) == 2
    assert not (tmp_path / "new").exists()
    prepare([table], out, num_proc=1, chunk_size=4, progress=False)
    assert main(asked) == 0


def test_an_output_within_the_input_is_no_input(table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(table, tmp_path / "a.parquet")
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert prepare(["."], "prepared/mine", num_proc=1, progress=False).read == 10
    shutil.rmtree("prepared")
    for _ in range(2):
        assert dedup([tmp_path], "unique", num_proc=1, progress=False).read == 10
    with pytest.raises(Mat2SeqError, match="is input and output"):
        prepare([tmp_path], ".", num_proc=1, progress=False)


def test_files_of_others_are_never_deleted(table: Path, tmp_path: Path) -> None:
    for name in ("part-00000-x.snappy.parquet", "part-00000.parquet", "rejected/part-00007.parquet"):
        own = tmp_path / name.replace("/", "-")
        (own / name).parent.mkdir(parents=True)
        shutil.copy(table, own / name)
        kept = _hashes(own)
        with pytest.raises(Mat2SeqError, match=rf"{name} has the name of a shard .* give another folder"):
            prepare([table], own, num_proc=1, progress=False)
        with pytest.raises(Mat2SeqError, match=f"{name} is input and lies in the output folder"):
            prepare([own / name], own, num_proc=1, progress=False)
        assert _hashes(own) == kept
    out = tmp_path / "out"
    out.mkdir()
    for text in ('{"task": "csp", "scheme": "mat2seq-1"}', "[]", "not JSON"):
        (out / "report.json").write_text(text)
        with pytest.raises(Mat2SeqError, match="is no report of `mat2seq prepare`"):
            prepare([table], out, num_proc=1, progress=False)
        assert (out / "report.json").read_text() == text
    (out / "report.json").unlink()
    for name in ("notes.tmp", "part-00001.draft.tmp", "part-00001.123.tmp", "report.json.tmp"):
        (out / name).write_text("mine")
    (out / "part-00003.parquet").write_bytes(b"PAR1")  # the system stopped before it was on disk
    prepare([table], out, num_proc=1, progress=False)
    assert {path.name for path in out.glob("*.tmp")} == {"notes.tmp", "part-00001.draft.tmp"}
    assert [path.name for path in shard_paths(out)] == ["part-00000.parquet"]
    kept = _hashes(out)
    with pytest.raises(Mat2SeqError, match=r"out holds a prepared corpus, whose duplicates\.parquet"):
        dedup([out], tmp_path / "rejected-part-00007.parquet" / ".." / "out")
    assert _hashes(out) == kept


def _spoil(path: Path, column: str) -> None:
    """Change the last byte of a column's pages, which leaves the footer and the other columns as they are."""
    group = pq.read_metadata(path).row_group(0)
    chunk = next(c for c in map(group.column, range(group.num_columns)) if c.path_in_schema.split(".")[0] == column)
    data = bytearray(path.read_bytes())
    begin = chunk.dictionary_page_offset if chunk.has_dictionary_page else chunk.data_page_offset
    data[begin + chunk.total_compressed_size - 1] ^= 0xFF
    path.write_bytes(data)


@pytest.mark.parametrize("column", ["id", "text", "input_ids", "properties", "source"])
def test_a_shard_with_a_damaged_page_is_named_and_made_again(column: str, table: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepare([table], out, num_proc=1, chunk_size=4, progress=False)
    whole = _hashes(out)
    shard = shard_paths(out)[1]
    _spoil(shard, column)
    with pytest.raises(Mat2SeqError, match=rf"{shard.name} is damaged .* start the same `mat2seq prepare` again"):
        list(read_columns(out, [column]))
    prepare([table], out, num_proc=1, chunk_size=4, progress=False)
    assert _hashes(out) == whole


@pytest.mark.parametrize("number", [0, 1])
def test_a_folder_that_lacks_a_shard_is_not_whole(
    number: int, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    prepare([table], out, num_proc=1, chunk_size=4, progress=False)
    whole = _hashes(out)
    shard = shard_paths(out)[number]
    for damaged, said in (
        (False, "crystals, its report.json says 7: a shard is missing"),
        (True, f"{shard.name} is damaged"),
    ):
        shard.write_bytes(b"PAR1") if damaged else shard.unlink()
        for command in (
            ["dedup", str(out)],
            ["prepare", str(table), "-o", str(tmp_path / "new"), "--num-proc", "1", "--against", str(out)],
        ):
            assert main(command) == 2
            assert said in capsys.readouterr().err
        with pytest.raises(Mat2SeqError, match=said):
            leakage({"one": out, "other": out})
        prepare([table], out, num_proc=1, chunk_size=4, progress=False)
        assert _hashes(out) == whole


def test_a_prepared_folder_whose_only_shard_is_damaged_is_no_folder_of_crystals(table: Path, tmp_path: Path) -> None:
    prepare([table], tmp_path, num_proc=1, progress=False)
    (shard,) = shard_paths(tmp_path)
    shard.write_bytes(b"PAR1")
    with pytest.raises(Mat2SeqError, match=f"{shard.name} is damaged"):
        dedup([tmp_path])
