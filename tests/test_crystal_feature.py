"""Laws of the Crystal feature: whatever the crystal comes from and wherever the dataset goes, it stays the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict, Features, Value, load_dataset, load_from_disk
from hub_server import hub
from pymatgen.core import Composition, Lattice, Structure
from pymatgen.io.ase import AseAtomsAdaptor

from mat2seq_hf.corpora.feature import CRYSTAL_COLUMNS, Crystal, plain_columns, with_crystals
from mat2seq_hf.corpora.texts import json_text, ordered
from mat2seq_hf.errors import CrystalError

FEATURES = Features({"name": Value("string"), "structure": Crystal()})


def same(first: Structure, second: Structure) -> bool:
    return (
        np.array_equal(first.lattice.matrix, second.lattice.matrix)
        and np.array_equal(first.frac_coords, second.frac_coords)
        and [site.specie.symbol for site in first] == [site.specie.symbol for site in second]
    )


@pytest.fixture(scope="module")
def dataset(crystals: dict[str, Structure]) -> Dataset:
    rows = [{"name": name, "structure": structure} for name, structure in crystals.items()]
    return Dataset.from_list(rows, features=FEATURES)


def test_a_structure_comes_back_to_the_last_bit(dataset: Dataset, crystals: dict[str, Structure]) -> None:
    for row in dataset:
        assert same(row["structure"], crystals[row["name"]])
    odd = Structure(-Lattice.cubic(3.1).matrix, ["Na"], [[1.25, -0.5, 7.0]])  # left-handed, outside the cell
    assert same(Dataset.from_list([{"name": "odd", "structure": odd}], features=FEATURES)[0]["structure"], odd)


def test_every_form_of_a_crystal_is_taken(crystals: dict[str, Structure], tmp_path: Path) -> None:
    structure = crystals["CaTiO3"]
    cif = structure.to(fmt="cif", significant_figures=12)
    path = tmp_path / "crystal.cif"
    path.write_text(cif)
    plain = json.loads(json_text(structure.lattice.matrix, structure.atomic_numbers, structure.frac_coords))
    forms: list[Any] = [
        *(structure, AseAtomsAdaptor.get_atoms(structure), cif, structure.to(fmt="poscar"), path, str(path)),
        *(structure.as_dict(), json.dumps(structure.as_dict()), plain, json.dumps(plain)),
    ]
    for form in forms:
        found = Crystal().decode_example(Crystal().encode_example(form))
        assert found.composition == structure.composition
        assert np.allclose(found.lattice.parameters, structure.lattice.parameters, atol=1e-6)
        assert np.allclose(found.distance_matrix.sum(), structure.distance_matrix.sum(), atol=1e-4)


def test_a_crystal_survives_every_journey_of_a_dataset(
    dataset: Dataset, crystals: dict[str, Structure], tmp_path: Path
) -> None:
    dataset.save_to_disk(tmp_path / "disk")
    dataset.to_parquet(tmp_path / "crystals.parquet")
    files = str(tmp_path / "crystals.parquet")
    cache = str(tmp_path / "cache")
    journeys = {
        "disk": load_from_disk(tmp_path / "disk"),
        "parquet": load_dataset("parquet", data_files=files, split="train", cache_dir=cache),
        "streaming": load_dataset("parquet", data_files=files, split="train", streaming=True),
        "iterable": dataset.to_iterable_dataset(num_shards=2),
        "select": dataset.select(range(len(dataset))),
        "shuffle": dataset.shuffle(seed=0),
        "map": dataset.map(lambda name: {"length": len(name)}, input_columns="name"),
        "two processes": dataset.map(lambda name: {"length": len(name)}, input_columns="name", num_proc=2),
        "filter": dataset.filter(lambda name: len(name) > 0, input_columns="name"),
        "dict": DatasetDict({"train": dataset})["train"],
        "plain and back": with_crystals(plain_columns(dataset)),
    }
    for journey, arrived in journeys.items():
        rows = list(arrived)
        assert len(rows) == len(crystals), journey
        assert all(same(row["structure"], crystals[row["name"]]) for row in rows), journey


def test_map_over_the_crystal_gives_what_the_function_computes(dataset: Dataset) -> None:
    mapped = dataset.map(lambda structure: {"sites": len(structure)}, input_columns="structure")
    assert mapped["sites"] == [len(row["structure"]) for row in dataset]
    removed = dataset.map(lambda row: {"sites": len(row["structure"])}, remove_columns="structure")
    assert list(removed["sites"]) == list(mapped["sites"])


def test_crystals_are_decoded_only_when_they_are_read(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    decode = Crystal.decode_example

    def counted(self: Crystal, value: dict[str, Any], **others: Any) -> Structure:
        read.append(1)
        return decode(self, value)

    monkeypatch.setattr(Crystal, "decode_example", counted)
    assert dataset.select(range(3))["name"][0]
    assert len(dataset.cast_column("structure", Crystal(decode=False))[0]["structure"]["numbers"])
    assert not read
    assert dataset[0]["structure"]
    assert len(read) == 1


def test_published_columns_open_without_this_package(dataset: Dataset, tmp_path: Path) -> None:
    plain_columns(dataset).to_parquet(tmp_path / "plain.parquet")
    code = f"""
import sys
sys.modules["mat2seq_hf"] = None
from datasets import load_dataset
rows = load_dataset("parquet", data_files={str(tmp_path / "plain.parquet")!r}, split="train", streaming=True)
row = list(rows)[0]  # to the end: an interpreter that stops while pyarrow reads ahead can abort
assert set(row["structure"]) == {set(CRYSTAL_COLUMNS)!r}, row
print(len(row["structure"]["numbers"]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) == len(dataset[0]["structure"])
    assert pq.read_schema(tmp_path / "plain.parquet").field("structure").type == Crystal.pa_type


def test_crystals_are_pushed_to_a_hub_and_loaded_with_and_without_this_package(tmp_path: Path) -> None:
    ours = """
from datasets import Dataset, load_dataset
from mat2seq_hf import load_crystals
from mat2seq_hf.corpora.feature import plain_columns
from mat2seq_hf.errors import Mat2SeqError
dataset = load_crystals("sample").select(range(20))
plain_columns(dataset).push_to_hub("me/crystals")
dataset.push_to_hub("me/as-feature")
for loaded in (
    load_crystals("me/crystals"),
    list(load_crystals("me/crystals", streaming=True)),
    load_dataset("me/as-feature", split="train"),
):
    assert [row["structure"] for row in loaded] == [row["structure"] for row in dataset]
Dataset.from_dict({"material_id": ["salt"], "cif": ["data_salt"]}).push_to_hub("me/texts")
for name, settings in (("me/texts", {}), ("me/crystals", {"keep_text": True})):
    try:
        load_crystals(name, **settings)
    except Mat2SeqError as error:
        assert "snapshot_download" in str(error) or "keep_text is for files" in str(error)
    else:
        raise AssertionError(name)
print("pushed and loaded")
"""
    theirs = """
import sys
sys.modules["mat2seq_hf"] = None
from datasets import load_dataset
print(load_dataset("me/crystals", split="train")[0]["structure"]["numbers"])
"""
    with hub() as url:
        settings = {"HF_ENDPOINT": url, "HF_HOME": str(tmp_path), "HF_TOKEN": "hf_dummy", "HF_HUB_DISABLE_XET": "1"}
        environment = {**os.environ, **settings, "HF_HUB_OFFLINE": "0"}
        for code, said in ((ours, "pushed and loaded"), (theirs, "[69, 12, 80, 80]")):
            done = subprocess.run(
                [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stderr
            assert done.stdout.strip() == said


def test_the_source_text_is_kept_when_asked_for(crystals: dict[str, Structure]) -> None:
    cif = crystals["NaCl"].to(fmt="cif")
    assert Crystal(keep_text=True).encode_example(cif)["text"] == cif
    assert Crystal().encode_example(cif)["text"] is None


def test_a_missing_crystal_is_none_and_a_bad_one_is_named() -> None:
    assert Dataset.from_list([{"name": "none", "structure": None}], features=FEATURES)[0]["structure"] is None
    half = Structure(Lattice.cubic(3.0), [{"Na": 0.5}], [[0, 0, 0]])
    with pytest.raises(CrystalError, match="disordered"):
        Crystal().encode_example(half)
    with pytest.raises(CrystalError, match=r"nowhere\.cif"):
        Crystal().encode_example("nowhere.cif")
    with pytest.raises(CrystalError, match="holds no structure"):
        Crystal().encode_example({"lattice": 3})


def test_json_never_imports_what_a_file_names(crystals: dict[str, Structure]) -> None:
    data = crystals["NaCl"].as_dict()
    data |= {"@module": "antigravity", "@class": "geohash"}
    data["sites"][0]["properties"] = {"spin": {"@module": "antigravity", "@class": "geohash"}}
    assert len(Crystal().encode_example(json.dumps(data))["numbers"]) == len(crystals["NaCl"])
    assert "antigravity" not in sys.modules


def test_pymatgen_orders_what_makes_whole_atoms() -> None:
    half = Structure(
        Lattice.cubic(4.0), [Composition({"Na": 0.5, "K": 0.5}), Composition("Cl")], [[0.0, 0.0, 0.0], [0.5, 0.5, 0.5]]
    )
    with pytest.raises(CrystalError, match="supercell"):
        ordered(json.dumps(half.as_dict()))
    double = ordered(json.dumps((half * (2, 1, 1)).as_dict()))
    assert double.composition.as_dict() == {"Na": 1, "K": 1, "Cl": 2}
