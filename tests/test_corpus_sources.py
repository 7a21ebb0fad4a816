"""Laws of reading: every kind of file gives every crystal in it once, and what is broken is a row that says so."""

from __future__ import annotations

import gzip
import io
import json
import lzma
import os
import shutil
import sqlite3
import tarfile
import time
import zipfile
from datetime import date
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ase.calculators.singlepoint import SinglePointCalculator
from ase.db import connect
from ase.io import write
from pymatgen.core import Structure
from pymatgen.io.ase import AseAtomsAdaptor

from mat2seq_hf.canonical import canonicalize
from mat2seq_hf.corpora.encode import encode_row
from mat2seq_hf.corpora.formats import cif_blocks
from mat2seq_hf.corpora.load import load_crystals
from mat2seq_hf.corpora.prepare import prepare
from mat2seq_hf.corpora.rows import InputRow, chunks
from mat2seq_hf.corpora.sources import list_units, read_rows, shards_of, short_names
from mat2seq_hf.corpora.texts import crystal_of, json_text
from mat2seq_hf.errors import Mat2SeqError

NAMES = ("BaTiO3", "NaCl", "rutile")


@pytest.fixture(scope="module")
def cifs(crystals: dict[str, Structure]) -> dict[str, str]:
    return {name: crystals[name].to(fmt="cif", significant_figures=12) for name in NAMES}


@pytest.fixture(scope="module")
def files(cifs: dict[str, str], crystals: dict[str, Structure], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One file of each kind, each with the three crystals in order and the property ``gap`` where it can hold one."""
    folder = tmp_path_factory.mktemp("kinds")
    chosen = [crystals[name] for name in NAMES]
    documents = [
        {"material_id": name, "structure": crystals[name].as_dict(), "gap": 0.5 * number}
        for number, name in enumerate(NAMES)
    ]
    plain = [json.loads(json_text(c.lattice.matrix, c.atomic_numbers, c.frac_coords)) for c in chosen]
    gaps = {"material_id": list(NAMES), "gap": [0.0, 0.5, 1.0]}
    texts = list(cifs.values())

    (folder / "blocks.cif").write_text("".join(texts))
    (folder / "list.json").write_text(json.dumps(documents))
    (folder / "lines.jsonl").write_text("\n".join(map(json.dumps, documents)))
    (folder / "dict.json").write_text(json.dumps({d["material_id"]: d["structure"] for d in documents}))
    frame = {"index": list(NAMES), "columns": ["structure", "gap"]}
    (folder / "matbench.json.gz").write_bytes(
        gzip.compress(json.dumps(frame | {"data": [[d["structure"], d["gap"]] for d in documents]}).encode())
    )
    pd.DataFrame({**gaps, "cif": texts}).to_csv(folder / "cdvae.csv")  # with pandas' index, as CDVAE publishes
    pd.DataFrame({**gaps, **{k: [json.dumps(p[k]) for p in plain] for k in plain[0]}}).to_csv(folder / "plain.csv")
    pd.DataFrame({**gaps, "cif": texts}).to_parquet(folder / "cif.parquet", row_group_size=2)
    pd.DataFrame({**gaps, "structure": plain}).to_parquet(folder / "struct.parquet")
    pd.DataFrame({**gaps, **{k: [p[k] for p in plain] for k in plain[0]}}).to_parquet(folder / "columns.parquet")
    atoms = [AseAtomsAdaptor.get_atoms(crystal) for crystal in chosen]
    for entry, document in zip(atoms, documents, strict=True):
        entry.info.update({"material_id": document["material_id"], "gap": document["gap"]})
    write(folder / "frames.extxyz", atoms, format="extxyz")
    for name in ("ase.db", "ase.json"):
        with connect(folder / name) as database:
            for entry in atoms:
                database.write(entry, key_value_pairs=dict(entry.info))
    with zipfile.ZipFile(folder / "files.zip", "w") as archive:
        for number, text in enumerate(texts):
            archive.writestr(f"deep/{number}.cif", text)
    with tarfile.open(folder / "files.tar.gz", "w:gz") as tar:
        for number, crystal in enumerate(chosen):
            data = crystal.to(fmt="poscar").encode()
            member = tarfile.TarInfo(f"deep/{number}/POSCAR")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return folder


KINDS = (
    *("blocks.cif", "list.json", "lines.jsonl", "dict.json", "matbench.json.gz", "cdvae.csv", "plain.csv"),
    *("cif.parquet", "struct.parquet", "columns.parquet", "frames.extxyz", "ase.db", "ase.json", "files.zip"),
    "files.tar.gz",
)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_file_gives_every_crystal_once(kind: str, files: Path, crystals: dict[str, Structure]) -> None:
    rows = list(read_rows([files / kind]))
    assert [row.problem for row in rows] == ["", "", ""]
    texts = [canonicalize(crystal_of(row.text)).text for row in rows]
    assert texts == [canonicalize(crystals[name]).text for name in NAMES]
    assert len({row.source for row in rows}) == 3
    if kind not in ("blocks.cif", "dict.json", "files.zip", "files.tar.gz"):
        assert [row.id for row in rows] == list(NAMES)
        assert [json.loads(row.properties) for row in rows] == [{"gap": 0.0}, {"gap": 0.5}, {"gap": 1.0}]


def test_chunks_of_anything_end() -> None:
    rows = [InputRow(str(number), "", "") for number in range(5)]
    for given in (rows, tuple(rows), iter(rows)):
        assert list(islice(chunks(given, 2), 9)) == [rows[:2], rows[2:4], rows[4:]]


def test_half_a_surrogate_pair_in_a_property_is_replaced(cifs: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps([{"cif": cifs["NaCl"], "by\ud800": 1.5, "who": "M\udcfcller", "where": "Zürich"}]))
    (row,) = read_rows([path])
    assert json.loads(row.properties) == {"by?": 1.5, "who": "M?ller", "where": "Zürich"}
    assert load_crystals(path, streaming=True).features["by?"].dtype == "float64"


def test_folders_are_read_to_the_bottom_in_the_order_of_names(
    files: Path, cifs: dict[str, str], tmp_path: Path
) -> None:
    assert len(list(read_rows([files]))) == 3 * len(KINDS)
    for name in ("b.cif", "a/z.cif", ".hidden/x.cif", "notes.txt", "CONTCAR"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(cifs["NaCl"])
    assert [row.source for row in read_rows([tmp_path])] == [
        f"{tmp_path.name}/{name}" for name in ("CONTCAR", "a/z.cif", "b.cif")
    ]


def test_a_file_that_is_named_twice_is_read_once(
    files: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("cif.parquet", "plain.csv"):
        shutil.copy(files / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path)
    given: list[str | Path] = ["plain.csv", tmp_path / "plain.csv", ".", "link", "link/cif.parquet"]
    rows = list(read_rows(given))
    assert [row.source.partition(":")[0].rpartition("/")[2] for row in rows] == ["plain.csv"] * 3 + ["cif.parquet"] * 3
    assert "left out 5 files, which are named twice and read once, in the inputs: " in caplog.text
    (tmp_path / "copy.csv").symlink_to("plain.csv")  # another name
    assert len(list(read_rows(["plain.csv", "copy.csv"]))) == 6


def test_files_of_one_name_are_told_apart(cifs: dict[str, str], tmp_path: Path) -> None:
    for corpus in ("mp_20", "mpts_52"):
        (tmp_path / corpus).mkdir()
        (tmp_path / corpus / "val.cif").write_text(cifs["NaCl"])
    paths = [tmp_path / "mp_20" / "val.cif", tmp_path / "mpts_52" / "val.cif"]
    assert [row.source for row in read_rows(paths)] == ["mp_20/val.cif", "mpts_52/val.cif"]


def test_a_line_within_a_text_field_starts_no_block(cifs: dict[str, str]) -> None:
    text = cifs["NaCl"] + "_publ_comment\n;\ndata_none\n_cell_length_a is named here\n;\n"
    assert cif_blocks(text) == [("", text)]
    assert [name for name, _ in cif_blocks(text + cifs["rutile"])] == ["NaCl", "TiO2"]


def _tar(names: str, text: str) -> bytes:
    """A tar archive of one text under several names, with a comment that does not compress."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name in names:
            data = f"{text}# {np.random.default_rng(ord(name)).bytes(3000).hex()}\n".encode()
            member = tarfile.TarInfo(f"{name}.cif")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return stream.getvalue()


def _damaged(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes(50) + data[middle + 50 :]


def _zip(text: str) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("a.cif", text + np.random.default_rng(0).bytes(3000).hex())
    return stream.getvalue()


def _parquet(**columns: Any) -> bytes:
    stream = io.BytesIO()
    pq.write_table(pa.table(columns), stream)
    return stream.getvalue()


BROKEN = {
    "bad.tar.xz": _damaged(lzma.compress(_tar("abcdef", "data_a\n"))),
    "lzma.zip": _damaged(_zip("data_a\n")),
    "long.csv": b'id,cif\n1,"' + b"x" * (33 * 2**20) + b'"\n',
    "number.parquet": _parquet(id=["a"], structure=[5]),
    "list.parquet": _parquet(id=["a"], structure=[[1.0, 2.0]]),
    "time.parquet": _parquet(id=["a"], structure=[{"sites": [1], "when": date(2020, 1, 1)}]),
    "far.xyz": b"999999999999\n\n",
    "cut.json": b'{"lattice": {"matrix": [[1, 0',
    "number.json": b"3",
    "deep.json": b"[" * 100_000,
    "bad.json.gz": b"not gzip",
    "bad.zip": b"PK\x03\x04 and then nothing",
    "bad.tar.gz": b"\x1f\x8b\x08 and then nothing",
    "bad.db": b"SQLite format 3\0 and then nothing",
    "bad.parquet": b"PAR1 and then nothing PAR1",
    "bad.csv": b'a,b\n1,"2',
    "bad.extxyz": b'2\nLattice="1 0 0"\nNa 0 0\n',
    "bad.jsonl": b'{"lattice": \n{"structure": 7}\n',
    "binary.cif": bytes(range(256)),
    "empty.cif": b"",
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_in_a_folder_is_a_row_that_says_so(name: str, cifs: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(BROKEN[name])
    (tmp_path / "z.cif").write_text(cifs["NaCl"])
    rows = list(read_rows([tmp_path]))
    assert len(rows) >= 2
    assert rows[-1].source.endswith("z.cif")
    for row in rows[:-1]:
        assert "reason" in encode_row(row)


def test_a_database_of_something_else_is_left_as_it_is(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "other.db") as connection:
        connection.execute("CREATE TABLE birds (name TEXT)")
    connection.close()
    before = (tmp_path / "other.db").read_bytes()
    with pytest.raises(Mat2SeqError, match="no ASE database"):
        list(read_rows([tmp_path / "other.db"]))
    assert (tmp_path / "other.db").read_bytes() == before


def test_a_molecule_is_no_crystal(tmp_path: Path) -> None:
    (tmp_path / "water.xyz").write_text("3\nwater\nO 0 0 0\nH 0 0 1\nH 0 1 0\n")
    (row,) = read_rows([tmp_path / "water.xyz"])
    assert "periodic" in row.problem


def test_rows_with_too_few_fields_are_set_aside_alone(cifs: dict[str, str], tmp_path: Path) -> None:
    quoted = '"' + cifs["NaCl"].replace('"', '""') + '"'
    (tmp_path / "table.csv").write_text(f"id,cif,gap\n007,{quoted},1\n8,9\n,{quoted},0.5\n")
    rows = list(read_rows([tmp_path / "table.csv"]))
    assert [bool(row.problem) for row in rows] == [False, True, False]
    assert rows[0].id == "007"
    assert [json.loads(row.properties) for row in rows] == [{"gap": 1}, {}, {"gap": 0.5}]


def test_a_csv_is_read_as_far_as_its_quotes_are_right(cifs: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    quoted = ['"' + text.replace('"', '""') + '"' for text in cifs.values()]
    whole = "id,cif\n" + "".join(f"{number},{text}\n" for number, text in enumerate(quoted))
    path.write_text(whole[: whole.rindex("\n", 0, -5)])  # within the last text
    rows = list(read_rows([path]))
    assert [(row.id, bool(row.problem)) for row in rows] == [("0", False), ("1", False), ("table", True)]
    first = whole.count("\n", 0, whole.index("\n2,")) + 2
    last = whole.count("\n") - 2
    assert f"the row of lines {first} to {last}: unexpected end of data" in rows[-1].problem
    path.write_text(whole.replace(quoted[1], quoted[1][:-1]))
    rows = list(read_rows([path]))
    assert [bool(row.problem) for row in rows] == [False, True]
    assert rows[1].problem.endswith("mend its quotes; the rest of the file is not read")
    path.write_text(f'id,cif\n0,{quoted[0]}\n1,"x"y\n2,{quoted[1]}\n3,5" disk\n4,"x')
    rows = list(read_rows([path]))
    assert [bool(row.problem) for row in rows] == [False, True, False, False, True]
    assert rows[2].text == cifs[NAMES[1]]


def test_two_columns_of_one_name_are_refused(files: Path, cifs: dict[str, str], tmp_path: Path) -> None:
    frame = pd.DataFrame([["a", cifs["NaCl"], 1.5, 9.9, 0]], columns=["id", "cif", "gap", "gap", "Unnamed: 0"])
    frame.to_csv(tmp_path / "a.csv", index=False)
    frame.to_json(tmp_path / "b.json", orient="split")
    pq.write_table(pa.table([frame.iloc[:, place] for place in range(4)], names=list("abcc")), tmp_path / "c.parquet")
    struct = pq.read_table(files / "struct.parquet")
    pq.write_table(struct.append_column("gap", struct["gap"]), tmp_path / "d.parquet")
    for name in ("a.csv", "b.json", "c.parquet", "d.parquet"):
        for read in (lambda path: list(read_rows([path])), lambda path: list(load_crystals(path, streaming=True))):
            with pytest.raises(Mat2SeqError, match=r"the column '(gap|c)' is there twice; remove one"):
                read(tmp_path / name)
    (tmp_path / "e.csv").write_text("id,cif,,\na,x,,\n")
    assert [row.id for row in read_rows([tmp_path / "e.csv"])] == ["a"]


def test_suffixes_mean_the_same_in_capitals_and_packed(cifs: dict[str, str], tmp_path: Path) -> None:
    text = cifs["NaCl"]
    (tmp_path / "mp-1.cif.gz").write_bytes(gzip.compress(text.encode()))
    (tmp_path / "mp-2.CIF.GZ").write_bytes(gzip.compress(text.encode()))
    with zipfile.ZipFile(tmp_path / "UP.ZIP", "w") as archive:
        archive.writestr("in/mp-3.cif.gz", gzip.compress(text.encode()))
        archive.writestr("__MACOSX/in/._mp-3.cif", b"\0")
    pd.DataFrame({"id": ["mp-4"], "cif": [text]}).to_parquet(tmp_path / "table.PARQUET")
    rows = list(read_rows([tmp_path]))
    assert [row.id for row in rows] == ["mp-3", "mp-1", "mp-2", "mp-4"]
    assert {row.text for row in rows} == {text}


def test_what_an_archive_holds_beside_crystals_is_counted(
    files: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with zipfile.ZipFile(tmp_path / "mixed.zip", "w") as archive:
        archive.write(files / "ase.db", "ase.db")
        archive.write(files / "files.zip", "inner.zip")
        archive.writestr("notes.txt", "notes")
        archive.write(files / "cif.parquet", "cif.parquet")
    assert len(list(read_rows([tmp_path / "mixed.zip"]))) == len(NAMES)
    assert "left out 1 files that hold no crystals in mixed.zip: 1 .txt" in caplog.text
    assert "left out 2 archives and databases, which are read when they are unpacked first, in mixed.zip" in caplog.text


def test_what_windows_adds_or_writes_is_no_trouble(cifs: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("sub\\mp-1.cif", cifs["NaCl"])
        archive.writestr("sub\\Thumbs.db", b"")
        archive.writestr("sub\\", b"")
    (row,) = read_rows([tmp_path])
    assert (row.id, row.source) == ("mp-1", f"{tmp_path.name}/a.zip/sub/mp-1.cif")


def test_numbers_in_a_csv_are_those_that_people_write(cifs: dict[str, str], tmp_path: Path) -> None:
    written = {
        "1_2": "1_2",
        "007": "007",
        "-007": "-007",
        "12": 12,
        "-0.5": -0.5,
        "1e3": 1000.0,
        "0x1": "0x1",
        "0": 0,
    } | {text: text for text in ("InF", "NaN", "Inf", "1e999", "1_0")}
    pd.DataFrame({"cif": cifs["NaCl"], "code": list(written)}).to_csv(tmp_path / "table.csv", index=False)
    assert [json.loads(row.properties)["code"] for row in read_rows([tmp_path / "table.csv"])] == list(written.values())


@pytest.mark.parametrize("given", ["prepared", ".", "prepared/part-00000.parquet"])
def test_sequences_are_never_taken_for_crystals(given: str, files: Path, tmp_path: Path) -> None:
    prepare([files / "cif.parquet"], tmp_path / "prepared", num_proc=1, progress=False)
    with pytest.raises(Mat2SeqError, match="holds sequences, not crystals"):
        list(read_rows([tmp_path / given]))


def test_of_a_folder_of_samples_each_is_read_once(
    cifs: dict[str, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = tmp_path / "run"
    for folder in ("parts", "cifs"):
        (run / folder).mkdir(parents=True)
    samples = pa.table({"prompt_id": ["a", "a"], "sample_index": [0, 1], "cif": [cifs["NaCl"], cifs["rutile"]]})
    for name in ("samples.parquet", "parts/part-000000.parquet"):
        pq.write_table(samples, run / name)
    (run / "plan.json").write_text('{"samples": 2}')
    for name in ("run/cifs/a__0.cif", "b.cif"):
        (tmp_path / name).write_text(cifs["NaCl"])
    assert [row.id for row in read_rows([run])] == ["a__0", "a__1"]
    assert "left out 3 files beside it" in caplog.text
    assert [row.id for row in read_rows([tmp_path])] == ["b", "a__0", "a__1"]
    pq.write_table(samples.drop_columns(["sample_index"]), run / "samples.parquet")  # of somebody else
    assert len(list(read_rows([run / "samples.parquet", run / "cifs"]))) == 3
    assert len(list_units([run])) == 4


def test_values_of_other_types_cost_no_row(cifs: dict[str, str], tmp_path: Path) -> None:
    text = cifs["NaCl"]
    late = pa.array([10**15], pa.timestamp("ms"))  # far beyond the year 9999
    pq.write_table(pa.table({"id": ["a"], "cif": [text.encode()], "when": late}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"id": ["b", None], "cif": [text] * 2}), tmp_path / "b.parquet")
    short = {"columns": ["cif"], "index": ["d"], "data": [[text]] * 3}
    (tmp_path / "d.json").write_text(json.dumps(short))
    (tmp_path / "e.json").write_text(json.dumps(short | {"index": 5}))
    cell = {"numbers": [3], "positions": [[0, 0, 0]], "cell": [[3, 0, 0], [0, 3, 0], [0, 0, 3]]}
    (tmp_path / "f.json").write_text(json.dumps({"ids": [1], "nextid": 2, "1": cell | {"key_value_pairs": None}}))
    rows = list(read_rows([tmp_path]))
    assert [row.id for row in rows] == ["a", "b", "1", *"012", *"012", "1"]
    assert not any(row.problem for row in rows)
    assert rows[0].text == text


def test_a_bad_row_of_a_database_costs_only_itself(files: Path, tmp_path: Path) -> None:
    (tmp_path / "ase.db").write_bytes((files / "ase.db").read_bytes())
    with sqlite3.connect(tmp_path / "ase.db") as connection:
        connection.execute("UPDATE systems SET key_value_pairs = 'null' WHERE id = 1")
    connection.close()
    assert [bool(row.problem) for row in read_rows([tmp_path / "ase.db"])] == [True, False, False]


@pytest.mark.parametrize("packed", [False, True])
def test_what_is_missing_of_a_tar_is_a_row(packed: bool, cifs: dict[str, str], tmp_path: Path) -> None:
    whole = _tar("abcd", cifs["NaCl"])
    with tarfile.open(fileobj=io.BytesIO(whole)) as tar:
        third = tar.getmembers()[2].offset
    path = tmp_path / ("a.tar.gz" if packed else "a.tar")
    spoilt = whole[: third + 148] + b"garbage!" + whole[third + 156 :]
    cut = ((whole[:third], 1), (whole[: third + 100], 1), (whole[: third + 700], 2))
    for data, problems in ((whole, 0), (spoilt, 1), *cut):
        path.write_bytes(gzip.compress(data) if packed else data)
        rows = list(read_rows([path]))
        assert [bool(row.problem) for row in rows] == ([False] * 2 + [True] * problems if problems else [False] * 4)


def test_links_are_read_or_named(cifs: dict[str, str], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "folder"
    (tmp_path / "other").mkdir()
    folder.mkdir()
    (folder / "a.cif").write_text(cifs["NaCl"])
    os.link(folder / "a.cif", folder / "b.cif")
    for name, target in (("c.cif", "a.cif"), ("d.cif", "nothing"), ("e", "../other")):
        (folder / name).symlink_to(target)
    with tarfile.open(tmp_path / "linked.tar", "w") as tar:
        tar.add(folder, "folder")
    assert [row.id for row in read_rows([folder])] == ["a", "b", "c"]
    assert "left out 2 links to folders or to nothing" in caplog.text
    assert {row.text for row in read_rows([tmp_path / "linked.tar"])} == {cifs["NaCl"]}
    assert "left out 3 symbolic links in linked.tar: folder/c.cif, folder/d.cif, folder/e" in caplog.text
    assert len(list(read_rows([tmp_path / "linked.tar"]))) == 2


def test_what_cannot_be_read_of_a_folder_is_named(
    cifs: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "locked").mkdir()
    (tmp_path / "a.cif").write_text(cifs["NaCl"])
    scan = os.scandir

    def refuse(path: str) -> Any:
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert len(list_units([tmp_path])) == 1
    assert "left out 1 files and folders that cannot be read" in caplog.text


def test_a_suffix_says_more_than_a_name(cifs: dict[str, str], tmp_path: Path) -> None:
    pd.DataFrame({"id": ["x", "y"], "cif": cifs["NaCl"]}).to_csv(tmp_path / "poscars.csv", index=False)
    (tmp_path / "POSCAR_x.json").write_text(json.dumps([{"id": "z", "cif": cifs["NaCl"]}]))
    assert [row.id for row in read_rows([tmp_path])] == ["z", "x", "y"]


def test_scalars_beside_any_kind_of_crystal_are_kept(crystals: dict[str, Structure], tmp_path: Path) -> None:
    crystal = crystals["NaCl"]
    plain = json.loads(json_text(crystal.lattice.matrix, crystal.atomic_numbers, crystal.frac_coords))
    (tmp_path / "a.jsonl").write_text(json.dumps({"id": "a", **plain, "gap": 1.0}))
    atoms = AseAtomsAdaptor.get_atoms(crystal)
    atoms.calc = SinglePointCalculator(atoms, energy=-3.5, stress=np.zeros(6))
    atoms.info["gap"] = 1.0
    write(tmp_path / "b.extxyz", atoms, format="extxyz")
    for name in ("c.db", "d.json"):
        with connect(tmp_path / name) as database:
            database.write(atoms, gap=1.0)
    found = [json.loads(row.properties) for row in read_rows([tmp_path])]
    assert found[0] == {"gap": 1.0}
    assert all((row["gap"], row["energy"]) == (1.0, -3.5) for row in found[1:])
    (tmp_path / "e.json").write_text(json.dumps(crystal.as_dict()))
    assert [row.properties for row in read_rows([tmp_path / "e.json"])] == ["{}"]


def test_frames_after_a_bad_one_are_read_and_a_cut_one_says_so(files: Path, tmp_path: Path) -> None:
    text = (files / "frames.extxyz").read_text()
    (tmp_path / "a.xyz").write_text(text.replace("Ba ", "Xx ", 1) + "\n" + text + "1000000000000\n\n")
    rows = list(read_rows([tmp_path / "a.xyz"]))
    assert [bool(row.problem) for row in rows] == [True, *[False] * 5, True]
    assert "ends within a frame of 1000000000000 atoms" in rows[-1].problem


def test_a_bomb_of_one_line_is_read_no_further_than_a_crystal_may_be_long(
    cifs: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mat2seq_hf.corpora.csv_reading.MAX_TEXT", 2**16)
    good = json.dumps({"cif": cifs["NaCl"]})
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(f"{good}\n{' ' * 2**20}{good}\n{good}\n".encode()))
    rows = list(read_rows([tmp_path / "a.jsonl.gz"]))
    assert [bool(row.problem) for row in rows] == [False, True]
    assert "a line is longer than" in rows[1].problem


def test_small_files_share_a_shard_and_large_ones_have_one_each(files: Path, tmp_path: Path) -> None:
    for number in range(300):
        (tmp_path / f"{number:03}.cif").write_text("x")
    (tmp_path / "100.cif").write_text("x" * 2**22)
    shutil.copy(files / "cif.parquet", tmp_path / "150.parquet")  # of two row groups
    shutil.copy(files / "files.zip", tmp_path / "200.zip")
    units = list_units([tmp_path])
    shards = shards_of(units)
    assert [unit for shard in shards for unit in shard] == units
    assert [len(shard) for shard in shards] == [100, 1, 50, 1, 1, 50, 1, 99]


def test_a_bomb_of_json_is_refused_with_the_remedy(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mat2seq_hf.corpora.formats._MAX_WHOLE", 2**20)
    monkeypatch.setattr("mat2seq_hf.corpora.formats._MAX_VALUES", 2**16)
    (tmp_path / "a.json.gz").write_bytes(gzip.compress(b"[" + b"[]," * 2**20 + b"[]]"))
    with pytest.raises(Mat2SeqError, match=r"a\.json\.gz .* larger than 1 MiB; write it as \.jsonl"):
        list(read_rows([tmp_path / "a.json.gz"]))
    (tmp_path / "b.json.gz").write_bytes(gzip.compress(b"[" + b"[]," * 2**16 + b"[]]"))
    with pytest.raises(Mat2SeqError, match=r"b\.json\.gz .* more than 65536 values; write it as \.jsonl"):
        list(read_rows([tmp_path / "b.json.gz"]))
    assert len(list(read_rows([files / "list.json"]))) == 3


def test_a_bomb_of_parquet_is_read_a_few_rows_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mat2seq_hf.corpora.formats._BATCH_BYTES", 2**22)
    table = pa.table({"cif": ["no crystal"] * 300, "note": ["x" * 2**20] * 300})
    pq.write_table(table, tmp_path / "a.parquet", compression="zstd")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(tmp_path / "a.parquet", "a.parquet")
    del table
    before = pa.total_allocated_bytes()
    for name in ("a.parquet", "a.zip"):
        rows = read_rows([tmp_path / name])
        first = next(rows)
        assert pa.total_allocated_bytes() - before < 2**24
        assert json.loads(first.properties) == {"note": "x" * 2**20}
        assert [row.source.rpartition(":")[2] for row in rows] == [str(number) for number in range(1, 300)]


def test_names_are_short_and_found_in_linear_time() -> None:
    paths = [Path(f"/data/{number}/CONTCAR") for number in range(20_000)]
    begun = time.process_time()
    assert short_names(paths)[:2] == ["0/CONTCAR", "1/CONTCAR"]
    assert time.process_time() - begun < 10  # 160 s where each is compared with each
    assert short_names([Path("/a/x/y"), Path("/b/x/y"), Path("/a/z")]) == ["a/x/y", "b/x/y", "z"]
