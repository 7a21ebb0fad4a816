"""Laws of reading: every kind of file gives every crystal in it once, and what is broken is a row that says so."""

from __future__ import annotations

import gzip
import io
import json
import sqlite3
import tarfile
import zipfile
from pathlib import Path

import pandas as pd
import pytest
from ase.db import connect
from ase.io import write
from pymatgen.core import Structure
from pymatgen.io.ase import AseAtomsAdaptor

from mat2seq_hf.canonical import canonicalize
from mat2seq_hf.corpora.encode import encode_row
from mat2seq_hf.corpora.formats import cif_blocks
from mat2seq_hf.corpora.prepare import prepare
from mat2seq_hf.corpora.sources import read_rows
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


BROKEN = {
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
        archive.write(files / "cif.parquet", "cif.parquet")
    assert len(list(read_rows([tmp_path / "mixed.zip"]))) == len(NAMES)
    assert "left out 1 files that hold no crystals in mixed.zip: 1 .db" in caplog.text


def test_numbers_in_a_csv_are_those_that_people_write(cifs: dict[str, str], tmp_path: Path) -> None:
    written = {"1_2": "1_2", "007": "007", "-007": "-007", "12": 12, "-0.5": -0.5, "1e3": 1000.0, "0x1": "0x1", "0": 0}
    pd.DataFrame({"cif": cifs["NaCl"], "code": list(written)}).to_csv(tmp_path / "table.csv", index=False)
    assert [json.loads(row.properties)["code"] for row in read_rows([tmp_path / "table.csv"])] == list(written.values())


@pytest.mark.parametrize("given", ["prepared", ".", "prepared/part-00000.parquet"])
def test_sequences_are_never_taken_for_crystals(given: str, files: Path, tmp_path: Path) -> None:
    prepare([files / "cif.parquet"], tmp_path / "prepared", num_proc=1, progress=False)
    with pytest.raises(Mat2SeqError, match="holds sequences, not crystals"):
        list(read_rows([tmp_path / given]))
