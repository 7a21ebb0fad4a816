"""Laws of deduplication: descriptions of one crystal fall together, different crystals stay apart."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pymatgen.core import Structure

from mat2seq_hf.canonical import canonicalize
from mat2seq_hf.cli import main
from mat2seq_hf.corpora.dedup import dedup
from mat2seq_hf.corpora.duplicates import (
    crystal_numbers,
    first_of_each,
    largest_difference,
    leakage,
    near_groups,
    text_digests,
)
from mat2seq_hf.corpora.prepare import prepare
from mat2seq_hf.corpora.schema import shard_paths
from mat2seq_hf.errors import Mat2SeqError, SchemeMismatchError
from mat2seq_hf.evaluation.equivalents import random_equivalent

NAMES = ("BaTiO3", "quartz", "quartz mirrored", "ZnO")


@pytest.fixture(scope="module")
def described(crystals: dict[str, Structure], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four crystals, three descriptions each, the mirror images of quartz among them, and one row that is none."""
    rng = np.random.default_rng(0)
    rows = [
        (f"{name}-{number}", json.dumps(random_equivalent(crystals[name], rng).as_dict()))
        for number in range(3)
        for name in NAMES
    ]
    rows.insert(5, ("nothing", "no crystal"))
    path = tmp_path_factory.mktemp("described") / "crystals.parquet"
    pd.DataFrame(rows, columns=["id", "structure"]).to_parquet(path)
    return path


def test_descriptions_of_one_crystal_are_duplicates_and_mirror_images_are_not(described: Path, tmp_path: Path) -> None:
    report = dedup([described], tmp_path, num_proc=1, progress=False)
    assert (report.read, report.distinct, report.duplicates, report.rejected) == (13, 4, 8, 1)
    assert sorted(report.groups) == sorted([f"{name}-{number}" for number in range(3)] for name in NAMES)
    unique = pd.read_csv(tmp_path / "unique.csv")
    assert list(unique["id"]) == [f"{name}-0" for name in NAMES]
    members = pd.read_csv(tmp_path / "duplicates.csv")
    assert len(members) == 12
    assert all(len(set(group["text"])) == 1 for _, group in members.groupby("group"))


def test_counts_add_up_when_duplicates_are_removed_and_what_is_left_is_distinct(
    described: Path, tmp_path: Path
) -> None:
    kept = prepare([described], tmp_path / "kept", num_proc=1, chunk_size=4, progress=False)
    prepare([described], tmp_path / "out", num_proc=1, chunk_size=4, progress=False)
    report = prepare([described], tmp_path / "out", duplicates="remove", num_proc=1, chunk_size=4, progress=False)
    assert (kept.read, kept.encoded, kept.rejected, kept.duplicates, kept.removed) == (13, 12, 1, 8, 0)
    assert (report.read, report.encoded, report.rejected, report.removed) == (13, 4, 1, 8)
    assert json.loads((tmp_path / "out" / "report.json").read_text())["removed"] == 8
    texts = [text for path in shard_paths(tmp_path / "out") for text in pq.read_table(path)["text"].to_pylist()]
    assert len(texts) == len(set(texts)) == 4
    listed = pq.read_table(tmp_path / "out" / "duplicates.parquet").to_pylist()
    assert listed == pq.read_table(tmp_path / "kept" / "duplicates.parquet").to_pylist()
    assert all(row["id"][:-1] == row["first_id"][:-1] and row["first_id"].endswith("0") for row in listed)
    again = prepare([described], tmp_path / "out", duplicates="remove", num_proc=1, chunk_size=4, progress=False)
    assert again == report
    back = prepare([described], tmp_path / "out", num_proc=1, chunk_size=4, progress=False)
    assert back == kept
    (first, *_), (expected, *_) = (shard_paths(tmp_path / folder) for folder in ("out", "kept"))
    assert first.read_bytes() == expected.read_bytes()


def test_leakage_between_splits_is_counted_in_both(described: Path, tmp_path: Path) -> None:
    table = pd.read_parquet(described)
    table.iloc[:5].to_parquet(tmp_path / "train.parquet")
    table.iloc[6:8].to_parquet(tmp_path / "val.parquet")
    for split in ("train", "val"):
        prepare([tmp_path / f"{split}.parquet"], tmp_path / split, num_proc=1, progress=False)
    (overlap,) = leakage({"train": tmp_path / "train", "val": tmp_path / "val"})
    assert (overlap.sequences, overlap.rows_of_first, overlap.rows_of_second) == (2, 2, 2)


def test_a_prepared_folder_gives_the_groups_of_its_crystals(described: Path, tmp_path: Path) -> None:
    raw = dedup([described], num_proc=1, progress=False)
    prepare([described], tmp_path / "prepared", num_proc=1, progress=False)
    assert dedup([tmp_path / "prepared"], tmp_path / "out") == raw
    assert len(pd.read_csv(tmp_path / "out" / "unique.csv")) == 4
    assert main(["dedup", str(tmp_path / "prepared"), "--near", "0.1"]) == 0
    with pytest.raises(Mat2SeqError, match="holds sequences"):
        dedup([tmp_path / "prepared", described])
    for more in ([str(described)], ["--symprec", "0.1"], [str(tmp_path / "prepared"), "--near", "0.1"]):
        assert main(["dedup", str(tmp_path / "prepared"), *more]) == 2


def test_corpora_of_different_canonical_forms_are_not_compared(described: Path, tmp_path: Path) -> None:
    pd.read_parquet(described).iloc[:4].to_parquet(tmp_path / "few.parquet")
    for symprec in (0.01, 0.1):
        prepare([tmp_path / "few.parquet"], tmp_path / str(symprec), symprec=symprec, num_proc=1, progress=False)
    with pytest.raises(SchemeMismatchError, match=r"symprec=0\.01 .* symprec=0\.1 "):
        leakage({"one": tmp_path / "0.01", "other": tmp_path / "0.1"})
    asked = ["prepare", str(tmp_path / "few.parquet"), "-o", str(tmp_path / "new"), "--num-proc", "1", "--against"]
    assert main([*asked, str(tmp_path / "0.1")]) == 2
    assert not (tmp_path / "new").exists()
    assert main([*asked, str(tmp_path / "0.01")]) == 0


def test_a_corpus_is_never_compared_with_itself(
    described: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    prepare([described], out, num_proc=1, progress=False)
    (tmp_path / "link").symlink_to(out)
    assert main(["dedup", str(out), str(out)]) == 2
    assert f"{out} is named twice" in capsys.readouterr().err
    assert main(["dedup", str(out), str(tmp_path / "link")]) == 2
    assert f"{out} and {tmp_path / 'link'} are the same folder" in capsys.readouterr().err
    report = (out / "report.json").stat().st_mtime_ns
    monkeypatch.chdir(tmp_path)
    for against in ("out", "link", "out/../out"):
        assert main(["prepare", str(described), "-o", str(out), "--num-proc", "1", "--against", against]) == 2
        assert "are the same folder" in capsys.readouterr().err
    assert (out / "report.json").stat().st_mtime_ns == report


def test_the_first_of_each_value_is_found_whatever_the_chunks() -> None:
    words = list("abcabdaxyzx")
    expected = [words.index(word) for word in words]
    assert first_of_each(text_digests(words)).tolist() == expected
    chunks = pa.chunked_array([text_digests(words[:4]), text_digests(words[4:5]), text_digests(words[5:])])
    assert first_of_each(chunks).tolist() == expected
    assert first_of_each(text_digests([])).tolist() == []


def test_near_duplicates_differ_by_less_than_the_tolerance(crystals: dict[str, Structure]) -> None:
    rutile = crystals["rutile"]
    stretched = rutile.copy()
    stretched.apply_strain(0.004)  # 0.018 angstrom along a
    far = rutile.copy()
    far.apply_strain(0.03)
    texts = [canonicalize(c).text for c in (rutile, crystals["ZnO"], stretched, far, crystals["NaCl"])]
    assert near_groups(texts, 0.03).tolist() == [0, 1, 0, 3, 4]
    assert near_groups(texts, 0.01).tolist() == [0, 1, 2, 3, 4]
    assert near_groups([], 0.1).tolist() == []


def test_exact_duplicates_stay_together_among_near_ones(crystals: dict[str, Structure], tmp_path: Path) -> None:
    stretched = crystals["rutile"].copy()
    stretched.apply_strain(0.004)
    chosen = [crystals["ZnO"], stretched, crystals["rutile"], stretched, crystals["ZnO"]]
    cifs = [crystal.to(fmt="cif", significant_figures=12) for crystal in chosen]
    pd.DataFrame({"id": list("abcde"), "cif": cifs}).to_parquet(tmp_path / "crystals.parquet")
    report = dedup([tmp_path / "crystals.parquet"], near=0.03, num_proc=1, progress=False)
    assert sorted(report.groups) == [["a", "e"], ["b", "c", "d"]]
    with pytest.raises(Mat2SeqError, match="near is a tolerance"):
        dedup([tmp_path / "crystals.parquet"], near=-1.0)


def test_the_commands_say_what_they_found(described: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dedup", str(described), "-o", str(tmp_path / "out"), "--num-proc", "1"]) == 0
    said = capsys.readouterr().out
    assert "13 crystals: 4 distinct, 8 duplicates in 4 groups, 1 set aside" in said
    splits = tmp_path / "data"
    splits.mkdir()
    for split in ("train", "val"):
        (splits / f"{split}.parquet").write_bytes(described.read_bytes())
    assert main(["prepare", str(splits), "--splits", "-o", str(tmp_path / "prepared"), "--num-proc", "1"]) == 0
    said = capsys.readouterr().out
    assert "val: 13 crystals read, 12 encoded (8 of them repeat an earlier one), 1 set aside" in said
    assert "shared canonical sequences" in said
    assert main(["dedup", *(str(tmp_path / "prepared" / split) for split in ("train", "val"))]) == 0
    assert "shared canonical sequences" in capsys.readouterr().out
    assert main(["prepare", str(tmp_path), "--splits", "-o", str(tmp_path / "other")]) == 2


@pytest.mark.parametrize(
    ("text", "stretch"),
    [
        ("Na1 Cl1 [Fm-3m] {a:.4f} {a:.4f} {a:.4f} 90 90 90 Na 4a 0 0 0 Cl 4b 1/2 1/2 1/2", 0.0),
        ("Mg2 [P6_3/mmc] {a:.4f} {a:.4f} {c:.4f} 90 90 120 Mg 2c 1/3 2/3 1/4", 2.0),
    ],
    ids=["cubic", "hexagonal"],
)
def test_strain_counts_by_the_lengths_it_changes_and_equal_angles_not_at_all(text: str, stretch: float) -> None:
    one, inside, edge, outside = (text.format(a=3.2 + by, c=3.2 + stretch + by) for by in (0, 0.0999, 0.1, 0.1001))
    assert largest_difference(crystal_numbers(one), crystal_numbers(inside)) == pytest.approx(0.0999)
    for order in (1, -1):
        assert near_groups([one, inside][::order], 0.1).tolist() == [0, 0]
        assert near_groups([one, edge][::order], 0.1).tolist() == [0, 0]
        assert near_groups([one, outside][::order], 0.1).tolist() == [0, 1]
    assert near_groups([one, outside, inside], 0.1).tolist() == [0, 0, 0]  # outside and inside are near


def test_an_angle_counts_by_the_mean_length_of_both_crystals_whatever_else_is_compared() -> None:
    text = "Po1 [P2/m] {a:.4f} 8.0000 8.0000 90 {beta:.2f} 90 Po 1a 0 0 0"
    one, other = text.format(a=8, beta=100), text.format(a=8.06, beta=100.7)
    expected = np.radians(0.7) * 8.01
    assert largest_difference(crystal_numbers(one), crystal_numbers(other)) == pytest.approx(expected)
    assert largest_difference(crystal_numbers(other), crystal_numbers(one)) == pytest.approx(expected)
    small = text.format(a=2, beta=100)  # by its lengths the angle would count less
    for others in ([], [small]):
        assert near_groups([one, other, *others], expected + 1e-6).tolist() == [0, 0, 2][: 2 + len(others)]
        assert near_groups([one, other, *others], expected - 1e-6).tolist() == [0, 1, 2][: 2 + len(others)]


def test_files_of_others_are_not_replaced_and_ours_are_never_half_written(
    described: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare([described], tmp_path / "prepared", num_proc=1, progress=False)
    out = tmp_path / "out"
    out.mkdir()
    for name, text in (("unique.csv", "id,note\n1,mine\n"), ("duplicates.parquet", "mine")):
        (out / name).write_text(text)
        with pytest.raises(Mat2SeqError, match=f"{name} is none that `mat2seq dedup` wrote"):
            dedup([tmp_path / "prepared"], out)
        assert (out / name).read_text() == text
        (out / name).unlink()
    for _ in range(2):
        dedup([tmp_path / "prepared"], out)
    whole = (out / "unique.csv").read_bytes()

    def cut_off(table: pa.Table, path: Path) -> None:
        path.write_bytes(b'"id"')
        raise KeyboardInterrupt

    monkeypatch.setattr("pyarrow.csv.write_csv", cut_off)
    with pytest.raises(KeyboardInterrupt):
        dedup([tmp_path / "prepared"], out)
    assert (out / "unique.csv").read_bytes() == whole
    assert len(pd.read_csv(out / "duplicates.csv")) == 12


@pytest.mark.parametrize("option", [["--show", "-1"], ["--num-proc", "-3"], ["--num-proc", "0"]])
def test_counts_below_what_is_possible_are_refused(
    option: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["dedup", str(tmp_path), *option]) == 2
    assert "--show is at least 0 and --num-proc at least 1" in capsys.readouterr().err
