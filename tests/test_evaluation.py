"""An evaluation counts what it says it counts, whatever the samples are."""

from __future__ import annotations

import gzip
import io
import json
import os
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Lattice, Structure
from synthetic import cif_of

from mat2seq_hf.cli import main
from mat2seq_hf.corpora.prepare import prepare
from mat2seq_hf.errors import Mat2SeqError, SchemeMismatchError
from mat2seq_hf.evaluation import pool
from mat2seq_hf.evaluation.conditional import ConditionalSettings, evaluate_conditional
from mat2seq_hf.evaluation.crystals import composition_prompt, examine, examine_all
from mat2seq_hf.evaluation.csp import CspSettings, any_of, evaluate_csp
from mat2seq_hf.evaluation.denovo import DenovoSettings, evaluate_denovo
from mat2seq_hf.evaluation.equivalents import random_equivalent
from mat2seq_hf.evaluation.formulas import formula_of_cif, reduced_formula
from mat2seq_hf.evaluation.literature import Compound, LiteratureSettings, evaluate_literature, read_compounds
from mat2seq_hf.evaluation.matching import Matcher
from mat2seq_hf.evaluation.novelty import mark_unique
from mat2seq_hf.evaluation.reduced_cell import ReducedCrystal
from mat2seq_hf.evaluation.report import compare_table, different_settings, plot_comparison, render_markdown
from mat2seq_hf.evaluation.schema import (
    clustered_mean,
    clustered_share,
    format_figure,
    load_report,
    share,
    write_report,
)
from mat2seq_hf.evaluation.sources import Reference, SampleText, assign_prompts, read_references, read_samples
from mat2seq_hf.evaluation.validity import smact_installed

Capture = pytest.CaptureFixture[str]

QUIET = CspSettings(progress=False)


def sample(prompt: str, index: int, cif: str | None) -> SampleText:
    return SampleText(prompt, index, cif, None if cif else "cut off", f"{prompt}_{index}")


def value(report: dict[str, object], name: str) -> float | None:
    figures: dict[str, dict[str, float | None]] = report["figures"]  # type: ignore[assignment]
    return figures[name]["value"]


@pytest.fixture(scope="module")
def salts() -> dict[str, str]:
    """Two polymorphs of NaCl and another compound."""
    rock = Structure.from_spacegroup("Fm-3m", Lattice.cubic(5.64), ["Na", "Cl"], [[0.0, 0.0, 0.0], [0.5, 0.5, 0.5]])
    chloride = Structure.from_spacegroup("Pm-3m", Lattice.cubic(3.4), ["Na", "Cl"], [[0.0, 0.0, 0.0], [0.5, 0.5, 0.5]])
    titanate = Structure.from_spacegroup(
        "Pm-3m", Lattice.cubic(4.0), ["Ba", "Ti", "O"], [[0.5, 0.5, 0.5], [0.0, 0.0, 0.0], [0, 0, 0.5]]
    )
    return {"rock": cif_of(rock), "cscl": cif_of(chloride), "titanate": cif_of(titanate)}


@pytest.fixture(scope="module")
def references(salts: dict[str, str]) -> list[Reference]:
    return [Reference(name, cif) for name, cif in salts.items()]


def test_other_descriptions_of_the_true_crystals_match_perfectly(references: list[Reference]) -> None:
    rng = np.random.default_rng(0)
    texts = []
    for reference in references:
        structure = Structure.from_str(reference.cif, fmt="cif")
        texts += [sample(reference.id, i, cif_of(random_equivalent(structure, rng))) for i in range(2)]
    report, _ = evaluate_csp(texts, references, QUIET)
    for name in ("match_1", "match_k", "formula_right", "space_group_right", "readable", "metre", "polymorphs"):
        assert value(report, name) == 1
    assert value(report, "rmse_1") == pytest.approx(0, abs=1e-4)
    assert value(report, "crmse_k") == pytest.approx(0, abs=1e-4)


def test_figures_are_those_of_a_plain_loop(crystals: dict[str, Structure]) -> None:
    rng = np.random.default_rng(1)
    references = [Reference(name, cif_of(structure)) for name, structure in crystals.items()]
    texts = []
    for name, structure in crystals.items():
        for index in range(4):
            moved = structure.copy()
            moved.perturb(float(rng.choice([0.05, 0.4, 1.5])))
            texts.append(sample(name, index, cif_of(moved)))
    matcher = StructureMatcher(ltol=0.3, stol=0.5, angle_tol=10)
    truths = {item.id: Structure.from_str(item.cif, fmt="cif") for item in references}
    plain = [matcher.get_rms_dist(Structure.from_str(t.cif or "", fmt="cif"), truths[t.prompt_id]) for t in texts]
    report, rows = evaluate_csp(texts, references, QUIET)
    by_place = {(row["prompt_id"], row["sample_index"]): row["rms"] for row in rows}
    for text, expected in zip(texts, plain, strict=True):
        found = by_place[text.prompt_id, text.index]
        assert found == (None if expected is None else pytest.approx(float(expected[0]), abs=1e-12))
    hits = [float(item[0]) for item in plain if item is not None]
    assert 0 < len(hits) < len(texts)
    assert value(report, "match_1") == pytest.approx(len(hits) / len(texts))
    assert value(report, "rmse_1") == pytest.approx(sum(hits) / len(hits))
    assert value(report, "crmse_1") == pytest.approx((sum(hits) + 0.5 * (len(texts) - len(hits))) / len(texts))


def test_the_order_of_a_comparison_is_that_asked_for() -> None:
    salt = Structure(Lattice.rhombohedral(4.0, 60), ["Na", "Cl"], [[0.0, 0.0, 0.0], [0.5, 0.5, 0.5]])
    strained = salt.copy()
    strained.apply_strain([0.15, -0.1, 0.0])
    matcher = StructureMatcher(ltol=0.3, stol=0.5, angle_tol=10)
    assert matcher.get_rms_dist(salt, strained) is None
    assert matcher.get_rms_dist(strained, salt) is not None
    given = [sample("a", 0, cif_of(strained))], [Reference("a", cif_of(salt))]
    assert value(evaluate_csp(*given, QUIET)[0], "match_1") == 1.0
    for reference_first in (False, True):
        report, _ = evaluate_csp(*given, replace(QUIET, reference_first=reference_first))
        assert value(report, "match_1") == float(not reference_first)
        assert report["settings"]["reference_first"] == reference_first


def test_missing_and_unreadable_samples_are_misses(references: list[Reference], salts: dict[str, str]) -> None:
    texts = [sample("rock", 0, salts["rock"]), sample("rock", 1, None), sample("cscl", 0, "no crystal at all")]
    report, rows = evaluate_csp(texts, references, QUIET)
    assert value(report, "match_1") == pytest.approx(1 / 6)
    assert value(report, "match_k") == pytest.approx(1 / 3)
    assert report["counts"]["samples_missing"] == 3
    assert report["counts"]["unreadable"] == 2
    assert [row["reason"] for row in rows if not row["readable"]] != []
    assert any("unreadable CIF" in row["reason"] for row in rows if row["prompt_id"] == "cscl")
    assert [row["reason"] for row in rows if row["sample_index"] == 1] == ["cut off"]


def test_a_polymorph_proposed_for_the_other_prompt_counts_for_metre_alone(
    references: list[Reference], salts: dict[str, str]
) -> None:
    texts = [sample("rock", 0, salts["cscl"]), sample("cscl", 0, salts["rock"]), sample("titanate", 0, None)]
    report, _ = evaluate_csp(texts, references, QUIET)
    assert value(report, "match_1") == 0
    assert value(report, "metre") == pytest.approx(2 / 3)
    assert value(report, "polymorphs") == 1
    assert value(report, "metre_crmse") == pytest.approx(0.5 / 3, abs=1e-4)


def test_a_report_speaks_of_metre_only_where_it_was_computed(
    references: list[Reference], salts: dict[str, str]
) -> None:
    texts = [sample("rock", number, salts["rock"]) for number in range(2)]
    for polymorphs in (True, False):
        report, _ = evaluate_csp(texts, references, replace(QUIET, polymorphs=polymorphs))
        assert ("metre" in report["figures"]) == any("METRe" in note for note in report["notes"]) == polymorphs


@pytest.mark.skipif(not smact_installed(), reason="needs smact")
def test_with_the_filter_invalid_samples_are_misses() -> None:
    fluorite = [[0.0, 0.0, 0.0], [0.25, 0.25, 0.25]]
    odd = cif_of(Structure.from_spacegroup("Fm-3m", Lattice.cubic(5.4), ["Li", "F"], fluorite))  # LiF2
    report, rows = evaluate_csp([sample("a", 0, odd)], [Reference("a", odd)], QUIET)
    assert (value(report, "match_1"), value(report, "match_1_valid")) == (1, 0)
    assert rows[0]["valid_composition"] is False


@pytest.mark.skipif(not smact_installed(), reason="needs smact")
def test_where_no_sample_can_be_read_smact_is_still_installed(references: list[Reference]) -> None:
    texts = [sample(reference.id, 0, "broken") for reference in references]
    settings = DenovoSettings(progress=False, coverage=False)
    for report in (evaluate_csp(texts, references, QUIET)[0], evaluate_denovo(texts, None, None, settings)[0]):
        assert value(report, "valid") == value(report, "valid_composition") == 0
        assert not any("not installed" in note for note in report["notes"])


def test_a_comparison_that_takes_too_long_is_counted(
    references: list[Reference], salts: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def hang(*_: object) -> float:
        while True:
            pass

    monkeypatch.setattr("mat2seq_hf.evaluation.matching.Matcher.rms", hang)
    settings = CspSettings(progress=False, timeout=2.0, polymorphs=False)
    report, rows = evaluate_csp([sample("rock", 0, salts["rock"])], references, settings)
    assert report["counts"]["timeouts"] == 1
    assert rows[0]["outcome"] == "timeout"
    assert value(report, "match_1") == 0


def test_any_of_agrees_with_counting() -> None:
    assert any_of(1, 4, 2) == 0.5
    assert any_of(0, 4, 4) == 0
    assert any_of(3, 4, 2) == 1


def test_intervals_of_groups_are_wider_than_those_of_single_values() -> None:
    groups = [[True] * 10, [False] * 10] * 20
    wide, narrow = clustered_share(groups), share(v for group in groups for v in group)
    assert wide["value"] == narrow["value"] == 0.5
    assert wide["high"] - wide["low"] > 2 * (narrow["high"] - narrow["low"])  # type: ignore[operator]


def test_the_interval_of_a_share_has_a_width_where_all_samples_are_alike() -> None:
    for values in ([True], [False]):
        groups = [values * 5 for _ in range(10)]
        sure, alone = clustered_share(groups), share(group[0] for group in groups)
        assert (sure["value"], sure["low"], sure["high"]) == (alone["value"], alone["low"], alone["high"])
        assert sure["high"] - sure["low"] > 0.2  # type: ignore[operator]
    single = [[i % 3 == 0] for i in range(60)]
    assert clustered_share(single)["low"] == pytest.approx(share(v == [True] for v in single)["low"], abs=0.003)


def test_the_interval_of_a_distance_is_none_of_a_share(references: list[Reference], salts: dict[str, str]) -> None:
    texts = [sample(reference.id, 0, salts[reference.id]) for reference in references]
    figures = evaluate_csp(texts, references, QUIET)[0]["figures"]
    for name in ("rmse_1", "rmse_k", "crmse_1", "metre_crmse"):
        assert figures[name]["value"] == pytest.approx(0, abs=1e-9)
        assert figures[name]["high"] < 1e-6
    ones = [[0.0], [1.0]] * 20  # misses that count stol = 1
    assert clustered_mean(ones)["high"] == pytest.approx(0.5 + 1.959964 * (0.25 / 39) ** 0.5)


def test_a_folder_that_sampling_wrote_is_read_once(tmp_path: Path, salts: dict[str, str]) -> None:
    rows = [{"prompt_id": "rock", "sample_index": i, "cif": salts["rock"]} for i in range(2)]
    (tmp_path / "parts").mkdir()
    (tmp_path / "cifs").mkdir()
    pd.DataFrame(rows).to_parquet(tmp_path / "parts" / "part-0.parquet")
    pd.DataFrame({"prompt_id": ["x"], "reason": ["no formula"]}).to_parquet(tmp_path / "rejected.parquet")
    (tmp_path / "cifs" / "rock__0.cif").write_text(salts["rock"])
    with pytest.raises(Mat2SeqError, match=r"holds tables .* and CIFs .* name those that are meant"):
        read_samples([tmp_path])
    pd.DataFrame(rows).to_parquet(tmp_path / "samples.parquet")
    assert [(text.prompt_id, text.index) for text in read_samples([tmp_path])] == [("rock", 0), ("rock", 1)]


def test_no_sample_takes_the_place_of_a_missing_one(references: list[Reference], salts: dict[str, str]) -> None:
    texts = [sample("rock", 1, salts["rock"]), sample("cscl", 0, salts["cscl"])]  # sample 0 of rock was not valid
    report, rows = evaluate_csp(texts, references, replace(QUIET, samples=1))
    assert [row["prompt_id"] for row in rows] == ["cscl"]
    assert value(report, "match_1") == pytest.approx(1 / 3)
    assert report["counts"]["samples_missing"] == 2
    unnumbered = [replace(text, index=-1) for text in texts] + [sample("rock", 3, salts["rock"])] * 2
    placed = assign_prompts(unnumbered, {"rock", "cscl"})
    assert [(text.prompt_id, text.index) for text in placed] == [("cscl", 0), ("rock", 3), ("rock", 4), ("rock", 5)]


def test_figures_do_not_depend_on_how_samples_are_numbered(
    tmp_path: Path, references: list[Reference], salts: dict[str, str]
) -> None:
    cifs = [(name, i, salts["rock" if i else name]) for name in salts for i in range(2)]
    pd.DataFrame([{"prompt_id": name, "sample_index": i + 1, "cif": cif} for name, i, cif in cifs]).to_parquet(
        tmp_path / "from_1.parquet"
    )
    (tmp_path / "files").mkdir()
    (tmp_path / "dated").mkdir()
    for number, (name, i, cif) in enumerate(cifs):
        (tmp_path / "files" / f"{name}_{i + 1}.cif").write_text(cif)
        (tmp_path / "dated" / f"{name}_{2024000 + number}.cif").write_text(cif)
    expected, _ = evaluate_csp([sample(*item) for item in cifs], references, QUIET)
    files = sorted((tmp_path / "files").iterdir())
    for inputs in ([tmp_path / "from_1.parquet"], [tmp_path / "files"], files, [tmp_path / "dated"]):
        report, _ = evaluate_csp(read_samples(inputs), references, QUIET)
        assert report["figures"] == expected["figures"]
        assert (report["settings"]["samples"], report["counts"]["samples_missing"]) == (2, 0)
        assert any("numbered anew" in note for note in report["notes"]) == (inputs == [tmp_path / "dated"])


def test_samples_beyond_those_asked_for_are_counted(references: list[Reference], salts: dict[str, str]) -> None:
    texts = [sample("rock", i, salts["rock"]) for i in range(3)] + [sample("other", 0, None)]
    report, rows = evaluate_csp(texts, references, replace(QUIET, samples=1))
    counts = report["counts"]
    assert (len(rows), counts["samples_beyond_k"], counts["samples_of_other_prompts"]) == (1, 2, 1)
    with pytest.raises(Mat2SeqError, match=r"no sample is left: 2 a prompt .* begin at 7"):
        evaluate_csp([sample("rock", 7, salts["rock"])], references, replace(QUIET, samples=2))


def test_samples_are_read_from_folders_archives_and_tables(tmp_path: Path, salts: dict[str, str]) -> None:
    names = {"mp-1__1.cif": "rock", "mp-1__2.cif": "cscl", "mp-2_7.cif": "rock", "mp-3/1.cif": "rock", "x.cif": "rock"}
    folder = tmp_path / "folder"
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive, tarfile.open(tmp_path / "a.tar.gz", "w:gz") as tar:
        for name, salt in names.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(salts[salt])
            archive.writestr(name, salts[salt])
            info = tarfile.TarInfo(name)
            info.size = len(salts[salt])
            tar.addfile(info, io.BytesIO(salts[salt].encode()))
    expected = [("mp-1", 0), ("mp-1", 1), ("mp-2", 6), ("mp-3", 0), ("x", -1)]  # none has 0: they count from 1
    for place in ("folder", "a.zip", "a.tar.gz"):
        assert [(text.prompt_id, text.index) for text in read_samples([tmp_path / place])] == expected
    rows = [{"prompt_id": "mp-1", "sample_index": i, "cif": salts["rock"], "seconds": 1.5} for i in range(2)]
    pd.DataFrame(rows).to_parquet(tmp_path / "samples.parquet")
    assert [(text.prompt_id, text.index) for text in read_samples([tmp_path / "samples.parquet"])] == [
        ("mp-1", 0),
        ("mp-1", 1),
    ]
    placed = assign_prompts(read_samples([folder]), {"mp-1", "mp-2_7"})
    assert [(text.prompt_id, text.index) for text in placed] == [("mp-1", 0), ("mp-1", 1), ("mp-2_7", 0)]


def test_files_in_any_encoding_and_under_any_name_are_placed(tmp_path: Path, salts: dict[str, str]) -> None:
    (tmp_path / "rock_1.cif").write_bytes(f"# lengths in Å\n{salts['rock']}".encode("latin-1"))
    (tmp_path / "x_1.cif.gz").write_bytes(gzip.compress(salts["rock"].encode()))
    (tmp_path / "rock_1").mkdir()
    (tmp_path / "rock_1" / "5.cif").write_text(salts["rock"])
    found = assign_prompts(read_samples([tmp_path]), {"rock", "rock_1", "x_1", "5"})
    places = {item.source: (item.prompt_id, item.index) for item in found}
    assert places == {"rock_1.cif": ("rock_1", 5), "x_1.cif.gz": ("x_1", 0), "rock_1/5.cif": ("rock_1", 4)}
    assert all(item.cif and examine(item.cif).readable for item in found)
    assert main(["encode", str(tmp_path / "rock_1.cif")]) == 0


def test_cells_that_are_no_text_are_samples_with_a_reason(tmp_path: Path, salts: dict[str, str]) -> None:
    for cell, reason in (
        (salts["rock"].encode(), None),
        ([salts["rock"]], "a list where a crystal is expected"),
        ({"a": 1}, None),
        (float("nan"), "no CIF"),
    ):
        pd.DataFrame({"prompt_id": ["rock"], "cif": [cell]}).to_parquet(tmp_path / "s.parquet")
        (found,) = read_samples([tmp_path / "s.parquet"])
        assert found.reason == reason
        assert (found.cif == salts["rock"]) == isinstance(cell, bytes)
    pd.DataFrame({"name": ["rock"], "cif": [salts["rock"]]}).to_parquet(tmp_path / "s.parquet")
    with pytest.raises(Mat2SeqError, match="a column prompt_id or material_id or id; beside cif there are name"):
        assign_prompts(read_samples([tmp_path / "s.parquet"]), {"rock"})


@pytest.mark.parametrize("kind", ["folder", "zip", "tar"])
def test_what_is_no_sample_is_no_sample_anywhere(kind: str, tmp_path: Path, salts: dict[str, str]) -> None:
    files = {
        "out/a__0.cif": salts["rock"].encode(),
        "out/a__1.CIF.GZ": gzip.compress(salts["rock"].encode()),
        "out/b__0.cif.gz": b"no gzip",
        "out/c__0.cif": b"#" * 5_000_001,
        "__MACOSX/out/._a__0.cif": b"\0\5\x16\7\0\2Mac OS X",
        "out/.hidden.cif": b"",
        "out/notes.txt": b"",
    }
    with zipfile.ZipFile(tmp_path / "a.ZIP", "w") as archive, tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, content in files.items():
            archive.writestr(name, content)
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
            (tmp_path / "folder" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "folder" / name).write_bytes(content)
    place = {"folder": tmp_path / "folder", "zip": tmp_path / "a.ZIP", "tar": tmp_path / "a.tar"}[kind]
    found = read_samples([place])
    assert [(text.prompt_id, text.index) for text in found] == [("a", 0), ("a", 1), ("b", 0), ("c", 0)]
    assert [text.cif for text in found] == [salts["rock"], salts["rock"], None, None]
    assert "cannot be read" in (found[2].reason or "")
    assert "larger than" in (found[3].reason or "")


def test_a_csv_of_samples_is_read_like_a_parquet_file(tmp_path: Path, salts: dict[str, str]) -> None:
    rows = [
        {"prompt_id": "007", "sample_index": 1, "cif": salts["rock"], "reason": None, "seconds": 1.5},
        {"prompt_id": "1e3", "sample_index": 0, "cif": None, "reason": "cut off", "seconds": 2.5},
    ]
    pd.DataFrame(rows).to_parquet(tmp_path / "samples.parquet")
    pd.DataFrame(rows).to_csv(tmp_path / "samples.csv", index=False)
    pd.DataFrame(rows).to_csv(tmp_path / "samples.csv.gz", index=False)
    expected = [replace(text, source="") for text in read_samples([tmp_path / "samples.parquet"])]
    assert [(text.prompt_id, text.index, text.reason) for text in expected] == [("007", 1, None), ("1e3", 0, "cut off")]
    for name in ("samples.csv", "samples.csv.gz"):
        assert [replace(text, source="") for text in read_samples([tmp_path / name])] == expected
    with (tmp_path / "samples.csv").open("a") as handle:
        handle.write("1,2\n")
    assert "the row has 2 fields" in (read_samples([tmp_path / "samples.csv"])[-1].reason or "")
    for number in ("inf", "x", -1):
        pd.DataFrame([rows[0] | {"sample_index": number}]).to_csv(tmp_path / "bad.csv", index=False)
        with pytest.raises(Mat2SeqError, match=r"bad.csv:0: the sample_index .* is no whole number"):
            read_samples([tmp_path / "bad.csv"])


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.zip", b"no archive", "cannot be read as an archive"),
        ("a.tar.gz", b"no archive", "cannot be read as an archive"),
        ("a.parquet", b"no table", "cannot be read as a table"),
        ("a.exe", b"", "is no table"),
        ("missing", None, "does not exist"),
    ],
)
def test_bad_inputs_are_named(name: str, content: bytes | None, said: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(Mat2SeqError, match=said):
        read_samples([tmp_path / name])


def test_samples_of_nothing_in_the_reference_are_an_error(references: list[Reference], salts: dict[str, str]) -> None:
    with pytest.raises(Mat2SeqError, match="no sample answers"):
        evaluate_csp([sample("other", 0, salts["rock"])], references, QUIET)


def test_ids_choose_a_subset(tmp_path: Path, salts: dict[str, str]) -> None:
    pd.DataFrame({"material_id": list(salts), "cif": list(salts.values())}).to_parquet(tmp_path / "c.parquet")
    (tmp_path / "ids.txt").write_text("cscl\nrock\n")
    assert [item.id for item in read_references(tmp_path / "c.parquet", tmp_path / "ids.txt")] == ["cscl", "rock"]
    pd.DataFrame({"id": ["my 1", "my 2"], "cif": [salts["rock"]] * 2}).to_parquet(tmp_path / "spaces.parquet")
    (tmp_path / "ids.txt").write_text(" my 2\r\n\n")
    assert [item.id for item in read_references(tmp_path / "spaces.parquet", tmp_path / "ids.txt")] == ["my 2"]
    (tmp_path / "ids.txt").write_text("cscl\nnone\n")
    with pytest.raises(Mat2SeqError, match="'none'"):
        read_references(tmp_path / "c.parquet", tmp_path / "ids.txt")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda cif: cif[: len(cif) // 2], "unreadable CIF"),
        (lambda cif: cif.replace("5.64", "nan"), ""),
        (lambda cif: cif.replace("5.64", "0.00000001"), ""),
        (lambda cif: cif.replace("5.64", "1e300"), ""),
        (lambda cif: cif.replace("Cl-", "Xx").replace("Cl", "Xx"), ""),
        (lambda _: "", "unreadable CIF"),
        (lambda _: "\0\1\2", "unreadable CIF"),
    ],
)
def test_broken_files_are_invalid_with_a_reason(change: object, said: str, salts: dict[str, str]) -> None:
    found = examine(change(salts["rock"]), symprec=0.1, canonical=True)  # type: ignore[operator]
    assert not found.valid
    assert found.reason is not None
    assert said in found.reason


def test_atoms_too_near_each_other_are_invalid(salts: dict[str, str]) -> None:
    near = Structure(Lattice.cubic(4.0), ["Na", "Cl"], [[0.0, 0.0, 0.0], [0.1, 0, 0]])
    found = examine(cif_of(near))
    assert found.readable
    assert not found.valid
    assert "0.400 angstrom apart" in (found.reason or "")
    assert examine(salts["rock"]).valid


def test_equal_texts_are_examined_once(salts: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    original = pool.run

    def count(function: object, tasks: list[str], **options: object) -> list[pool.Outcome]:
        asked.append(len(tasks))
        return original(function, tasks, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(pool, "run", count)
    found = examine_all([salts["rock"], None, salts["rock"], salts["cscl"]], progress=False)
    assert asked == [2]
    assert [item.formula for item in found] == ["NaCl", None, "NaCl", "NaCl"]


def test_copies_are_neither_unique_nor_novel(tmp_path: Path, salts: dict[str, str]) -> None:
    rng = np.random.default_rng(2)
    rock = Structure.from_str(salts["rock"], fmt="cif")
    strained = rock.copy()
    strained.scale_lattice(rock.volume * 1.05)
    cifs = [salts["rock"], cif_of(random_equivalent(rock, rng)), cif_of(strained), salts["cscl"], "broken"]
    pd.DataFrame({"id": ["a"], "cif": [salts["titanate"]]}).to_parquet(tmp_path / "other.parquet")
    pd.DataFrame({"id": ["a"], "cif": [salts["cscl"]]}).to_parquet(tmp_path / "same.parquet")
    assert main(["prepare", str(tmp_path / "same.parquet"), "-o", str(tmp_path / "prepared"), "--num-proc", "1"]) == 0
    texts = [sample("", i, cif) for i, cif in enumerate(cifs)]
    settings = DenovoSettings(progress=False, coverage=False)
    for corpus, novel in (("other.parquet", 4), ("same.parquet", 3), ("prepared", 3)):
        report, rows = evaluate_denovo(texts, None, tmp_path / corpus, settings)
        assert [row["unique"] for row in rows] == [True, False, False, True, False]
        assert sum(row["novel"] for row in rows) == novel
        assert value(report, "unique") == pytest.approx(2 / 5)
    assert value(report, "unique_novel") == pytest.approx(1 / 5)


@pytest.mark.parametrize("kind", ["json", "vasp", "plain columns"])
def test_a_corpus_of_any_kind_has_its_own_crystals(kind: str, tmp_path: Path, salts: dict[str, str]) -> None:
    crystals = {name: Structure.from_str(cif, fmt="cif") for name, cif in salts.items()}
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    if kind == "plain columns":
        columns = [
            {"id": name, "lattice": c.lattice.matrix.tolist(), "numbers": list(c.atomic_numbers)}
            | {"frac_coords": c.frac_coords.tolist()}
            for name, c in crystals.items()
        ]
        pd.DataFrame(columns).to_parquet(corpus / "crystals.parquet")
    else:
        for name, crystal in crystals.items():
            crystal.to(str(corpus / f"{name}.{kind}"), fmt="json" if kind == "json" else "poscar")
    texts = [sample(name, 0, cif) for name, cif in salts.items()]
    report, _ = evaluate_denovo(texts, None, corpus, DenovoSettings(progress=False))
    assert value(report, "novel") == 0
    assert value(report, "unique") == 1
    report, _ = evaluate_csp(texts, read_references(corpus), QUIET)
    assert value(report, "match_1") == value(report, "metre") == 1


def test_a_corpus_that_cannot_be_read_makes_nothing_new(tmp_path: Path, salts: dict[str, str]) -> None:
    texts = [sample(name, 0, cif) for name, cif in salts.items()]
    settings = DenovoSettings(progress=False, coverage=False)
    pd.DataFrame({"id": ["a", "b"], "cif": ["nothing", ""]}).to_parquet(tmp_path / "none.parquet")
    with pytest.raises(Mat2SeqError, match="none of the 2 crystals"):
        evaluate_denovo(texts, None, tmp_path / "none.parquet", settings)
    broken = [Reference(name, "nothing") for name in salts]
    with pytest.raises(Mat2SeqError, match="none of the 3 reference crystals"):
        evaluate_csp(texts, broken, QUIET)
    with pytest.raises(Mat2SeqError, match="none of the 3 reference crystals"):
        evaluate_denovo(texts, broken, None, settings)
    pd.DataFrame({"id": ["a", "b"], "cif": ["nothing", salts["rock"]]}).to_parquet(tmp_path / "some.parquet")
    report, _ = evaluate_denovo(texts, None, tmp_path / "some.parquet", settings)
    assert report["counts"]["unreadable_in_training_corpus"] == 1
    assert any("1 crystals of some.parquet could not be read" in note for note in report["notes"])
    assert value(report, "novel") == pytest.approx(2 / 3)


def test_a_corpus_of_another_canonical_form_is_refused(tmp_path: Path, salts: dict[str, str]) -> None:
    pd.DataFrame({"id": ["a"], "cif": [salts["rock"]]}).to_parquet(tmp_path / "corpus.parquet")
    prepare([tmp_path / "corpus.parquet"], tmp_path / "prepared", symprec=0.1, num_proc=1, progress=False)
    with pytest.raises(SchemeMismatchError, match=r"symprec=0\.1 .* symprec=0\.01 "):
        evaluate_denovo([sample("", 0, salts["rock"])], None, tmp_path / "prepared", DenovoSettings(progress=False))


def test_one_comparison_that_hangs_decides_nothing_but_its_own_pair(
    tmp_path: Path, salts: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Matcher.rms

    def hang_for_large_cells(self: Matcher, first: ReducedCrystal, second: ReducedCrystal) -> float | None:
        while second.volume > 60:
            pass
        return original(self, first, second)

    rock = Structure.from_str(salts["rock"], fmt="cif")
    cifs = []
    for scale in (1.02, 1.0, 1.04, 1.5):  # the first is compared with no earlier one
        other = rock.copy()
        other.scale_lattice(rock.volume * scale)
        cifs.append(cif_of(other))
    pd.DataFrame({"id": ["a"], "cif": [salts["rock"]]}).to_parquet(tmp_path / "corpus.parquet")
    monkeypatch.setattr(Matcher, "rms", hang_for_large_cells)
    examine_all(cifs, canonical=True, progress=False)  # what the first crystal of all imports takes its time, too
    settings = DenovoSettings(progress=False, coverage=False, timeout=1.0)
    report, rows = evaluate_denovo(
        [sample("", i, cif) for i, cif in enumerate(cifs)], None, tmp_path / "corpus.parquet", settings
    )
    assert [row["unique"] for row in rows] == [True, False, False, True]
    assert [row["novel"] for row in rows] == [False, False, False, True]
    assert report["counts"]["comparison_timeouts"] == 2
    assert [row["outcome"] for row in rows] == ["ok", "ok", "ok", "comparison: timeout"]
    assert any("did not end" in note for note in report["notes"])


def test_in_processes_the_verdicts_are_those_of_a_plain_loop(salts: dict[str, str]) -> None:
    rng = np.random.default_rng(3)
    cifs = []
    for cif in salts.values():
        for _ in range(15):
            moved = Structure.from_str(cif, fmt="cif")
            moved.perturb(float(rng.choice([0.01, 1.0])))
            cifs.append(cif_of(moved))
    found = examine_all(cifs, canonical=True, progress=False)
    matcher = StructureMatcher()
    kept: list[Structure] = []
    expected = []
    for cif in cifs:
        structure = Structure.from_str(cif, fmt="cif")
        expected.append(all(matcher.get_rms_dist(other, structure) is None for other in kept))
        if expected[-1]:
            kept.append(structure)
    assert mark_unique(found, processes=2, progress=False).verdicts == expected
    assert 3 < sum(expected) < len(expected)


def test_the_table_of_space_groups_is_over_valid_samples(references: list[Reference], salts: dict[str, str]) -> None:
    near = cif_of(Structure(Lattice.cubic(4.0), ["Na", "Cl"], [[0.0, 0.0, 0.0], [0.1, 0, 0]]))
    texts = [sample("a", 0, salts["rock"]), sample("b", 0, near)]
    report, _ = evaluate_denovo(texts, references[:1], None, DenovoSettings(progress=False, coverage=False))
    assert value(report, "space_group_distance") == 0
    expected = {"space group": 225, "valid samples (%)": 100.0, "reference (%)": 100.0}
    assert report["tables"]["space_groups"] == [expected]


def test_distances_to_oneself_are_zero(references: list[Reference], salts: dict[str, str]) -> None:
    texts = [sample(name, 0, cif) for name, cif in salts.items()]
    report, _ = evaluate_denovo(texts, references, None, DenovoSettings(progress=False, coverage=False))
    for name in ("density_distance", "elements_distance", "space_group_distance"):
        assert value(report, name) == pytest.approx(0, abs=1e-9)


def test_formulas_are_read_from_cifs_without_parsing(crystals: dict[str, Structure]) -> None:
    for structure in crystals.values():
        found = formula_of_cif(cif_of(structure))
        assert found is not None
        assert reduced_formula(found) == structure.composition.reduced_formula
    assert formula_of_cif("_chemical_formula_sum 'x, y, z'") is None


def test_literature_counts_over_runs(tmp_path: Path, salts: dict[str, str]) -> None:
    (tmp_path / "published").mkdir()
    (tmp_path / "published" / "salt.cif").write_text(salts["rock"])
    compounds = read_compounds(tmp_path / "published")
    runs = [[sample("NaCl", 0, salts["rock"]), sample("NaCl", 1, other)] for other in (salts["cscl"], None, None)]
    report, rows = evaluate_literature(runs, compounds, LiteratureSettings(progress=False))
    assert value(report, "valid_mean") == pytest.approx(2 / 3)
    assert value(report, "valid_deviation") == pytest.approx(np.std([1, 0.5, 0.5], ddof=1))
    assert value(report, "matched") == 1
    assert [row["match"] for row in rows] == [True, False] * 3
    unanswered = [*compounds, Compound("Ce6Cd23Te")]
    report, _ = evaluate_literature(runs, unanswered, LiteratureSettings(progress=False))
    assert value(report, "valid_mean") == value(report, "valid_and_right") == pytest.approx(1 / 3)
    assert value(report, "formula_right") == pytest.approx(4 / 12)
    assert "valid" not in report["figures"]
    assert report["counts"]["samples_missing"] == 6
    assert {"samples", "unreadable", "timeouts", "crashes", "errors"} <= report["counts"].keys()
    named = [replace(text, prompt_id=f"Na4Cl4_P4-nmm_{i}") for i, text in enumerate(runs[0])]  # as `generate` does
    report, _ = evaluate_literature([named], compounds, LiteratureSettings(progress=False))
    assert (value(report, "valid_mean"), report["counts"]["samples"]) == (1, 2)
    with pytest.raises(Mat2SeqError, match=r"no samples of NaCl ...: its samples are for other ..."):
        evaluate_literature([[sample("other", 0, None)]], compounds, LiteratureSettings(progress=False))
    (tmp_path / "formulas.txt").write_text("Eu2 Fe Ge2 O S6\r\n\nCe6Cd23Te\n")
    assert [compound.formula for compound in read_compounds(tmp_path / "formulas.txt")] == ["Eu2FeGe2S6O", "Ce6Cd23Te"]
    (tmp_path / "formulas.txt").write_text("Eu2FeGe2OS6\nnonsense\n")
    with pytest.raises(Mat2SeqError, match="'nonsense'"):
        read_compounds(tmp_path / "formulas.txt")


def test_samples_of_a_compound_tell_less_than_as_many_compounds(salts: dict[str, str]) -> None:
    compounds = [Compound("NaCl"), Compound("BaTiO3")]
    runs = [[sample("NaCl", i, salts["rock"]) for i in range(20)] + [sample("BaTiO3", i, None) for i in range(20)]]
    report, _ = evaluate_literature(runs, compounds, LiteratureSettings(progress=False))
    alone = share([True, False])
    for name in ("readable", "valid_structure", "formula_right", "valid_and_right"):
        figure = report["figures"][name]
        assert (figure["value"], figure["n"]) == (0.5, 40)
        assert figure["high"] - figure["low"] > 0.9 * (alone["high"] - alone["low"])  # type: ignore[operator]


def length(cifs: list[str]) -> list[float]:
    """A judge for tests."""
    return [float(len(cif)) for cif in cifs]


def test_without_smact_every_report_says_so(salts: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mat2seq_hf.evaluation.validity.find_spec", lambda _: None)
    texts = [sample("NaCl", 0, salts["rock"])]
    judge = f"{__name__}:length"
    reports = [
        evaluate_csp(texts, [Reference("NaCl", salts["rock"])], QUIET)[0],
        evaluate_denovo(texts, None, None, DenovoSettings(progress=False))[0],
        evaluate_literature([texts], [Compound("NaCl")], LiteratureSettings(progress=False))[0],
        evaluate_conditional(texts, None, None, ConditionalSettings(below=99.0, judge=judge, progress=False))[0],
    ]
    for report in reports:
        assert any("smact is not installed" in note for note in report["notes"])


def test_a_prompt_for_a_composition_holds_it_exactly() -> None:
    for counts, expected in (
        ({"O": 1}, ("O1", 1)),
        ({"Li": 3, "O": 3}, ("Li1O1", 3)),
        ({"Ba": 2, "Ti": 2, "O": 6}, ("Ba1Ti1O3", 2)),
    ):
        symbols = [symbol for symbol, n in counts.items() for _ in range(n)]
        places = [[0.13 * i, 0.17 * i, 0.21 * i * i] for i in range(len(symbols))]
        found = composition_prompt(Structure(Lattice.cubic(9.0), symbols, places))
        assert (found["formula"], found["formula_units"]) == expected


def test_the_command_writes_reports_that_can_be_compared(
    tmp_path: Path, salts: dict[str, str], capsys: Capture
) -> None:
    pd.DataFrame({"material_id": list(salts), "cif": list(salts.values())}).to_parquet(tmp_path / "corpus.parquet")
    rows = [{"prompt_id": name, "sample_index": 0, "cif": cif} for name, cif in salts.items()]
    pd.DataFrame(rows).to_parquet(tmp_path / "good.parquet")
    pd.DataFrame([*rows[:1], {"prompt_id": "cscl", "sample_index": 0, "cif": "?"}]).to_parquet(tmp_path / "bad.parquet")
    for name in ("good", "bad"):
        asked = ["evaluate", "csp", str(tmp_path / f"{name}.parquet"), "--reference", str(tmp_path / "corpus.parquet")]
        assert main([*asked, "-o", str(tmp_path / name), "--quiet", "--processes", "1"]) == 0
    report = load_report(tmp_path / "good")
    assert report["figures"]["match_1"]["value"] == 1
    assert report["inputs"]["reference"].endswith("corpus.parquet")
    assert str(tmp_path) not in json.dumps(report["inputs"])
    assert pq.read_table(tmp_path / "good" / "per_sample.parquet").num_rows == 3
    assert "match rate, 1 sample | 100.0 %" in (tmp_path / "good" / "report.md").read_text()
    capsys.readouterr()
    out = ["--markdown", str(tmp_path / "table.md"), "--plot", str(tmp_path / "plot.png")]
    assert main(["compare", str(tmp_path / "good"), str(tmp_path / "bad"), *out]) == 0
    assert "33.3 %" in capsys.readouterr().out
    assert "| good | bad |" in (tmp_path / "table.md").read_text()
    assert (tmp_path / "plot.png").stat().st_size > 1000


def test_a_report_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    row = {"prompt_id": "a", "sample_index": 0}
    write_report(tmp_path, {"task": "csp", "figures": {}}, [row])
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_report(tmp_path, {"task": "csp", "figures": {"match_1": float("nan")}}, [row] * 2)
    assert pq.read_table(tmp_path / "per_sample.parquet").num_rows == 1


def test_reports_on_other_crystals_are_told_apart(
    references: list[Reference], salts: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    halves = (references[:1], references[2:], references[:2])
    reports = []
    for half in halves:
        report, _ = evaluate_csp([sample(item.id, 0, salts[item.id]) for item in half], half, QUIET)
        reports.append({**report, "task": "csp", "name": "val", "inputs": {}, "versions": {}})
    first, second = (report["ids"]["references"] for report in reports[:2])
    assert different_settings(reports[:2]) == [f"ids references: {first}, {second}"]
    assert "counts references: 1, 2" in different_settings(reports[::2])
    assert "counts samples: 1, 2" in different_settings(reports[::2])
    assert different_settings([reports[0], {k: v for k, v in reports[0].items() if k != "ids"}]) == []
    assert compare_table(reports[:2])[0] == ["figure", "val (1)", "val (2)"]
    axes = pytest.importorskip("matplotlib.axes").Axes
    original, drawn = axes.barh, []

    def barh(self: object, places: list[float], values: list[float], **options: object) -> object:
        drawn.append((len(values), options["label"], options["xerr"]))
        return original(self, places, values, **options)

    without = {**reports[1], "figures": {"match_1": {"value": 0.5, "low": 0.25, "high": 0.75, "n": 4}}}
    monkeypatch.setattr(axes, "barh", barh)
    assert plot_comparison([reports[0], without], tmp_path / "plot.png")
    assert drawn[0][0] > 1
    assert drawn[1] == (1, "val (2)", [[25.0], [25.0]])


def test_reports_with_another_corpus_of_the_same_name_are_told_apart(tmp_path: Path, salts: dict[str, str]) -> None:
    reports = []
    for number, names in enumerate((["rock", "cscl"], ["rock"], ["cscl", "rock"])):
        (tmp_path / str(number)).mkdir()
        corpus = tmp_path / str(number) / "train.parquet"
        pd.DataFrame({"id": names, "cif": [salts[name] for name in names]}).to_parquet(corpus)
        prepare([corpus], tmp_path / str(number) / "prepared", num_proc=1, progress=False)
        for train in (corpus, corpus.with_name("prepared")):
            settings = DenovoSettings(progress=False)
            report, _ = evaluate_denovo([sample("", 0, salts["rock"])], None, train, settings)
            reports.append({**report, "inputs": {}, "versions": {}})
    (one, _, other, _, same, same_prepared) = reports
    assert different_settings([one, same]) == different_settings([one, same_prepared]) == []
    assert different_settings([one, other]) == [f"ids train: {one['ids']['train']}, {other['ids']['train']}"]


def test_reports_of_different_tasks_are_not_compared(tmp_path: Path, capsys: Capture) -> None:
    plain = {"format": 1, "figures": {}, "name": "x", "settings": {}, "inputs": {}, "versions": {}}
    for name, task in (("a", "csp"), ("b", "denovo")):
        (tmp_path / f"{name}.json").write_text(json.dumps(plain | {"task": task}))
    assert main(["compare", str(tmp_path / "a.json"), str(tmp_path / "b.json")]) == 2
    assert "different tasks" in capsys.readouterr().err
    (tmp_path / "c.json").write_text("[]")
    assert main(["compare", str(tmp_path / "c.json")]) == 2
    assert "is no report" in capsys.readouterr().err
    assert compare_table([plain | {"task": "csp"}])[0] == ["figure", "x"]


@pytest.mark.parametrize(
    "change",
    [
        {"name": 3},
        {"task": ["csp"]},
        {"figures": [1]},
        {"figures": {"match_1": 0.5}},
        {"figures": {"match_1": {"value": 0.5, "n": 3}}},
        {"figures": {"match_1": {"value": "0.5", "low": None, "high": None, "n": 3}}},
        {"figures": {"match_1": {"value": float("nan"), "low": None, "high": None, "n": 3}}},
        {"settings": [1]},
        {"counts": None},
    ],
)
def test_a_broken_report_is_named(change: dict[str, object], tmp_path: Path, capsys: Capture) -> None:
    plain = {"format": 1, "task": "csp", "name": "x", "figures": {}, "settings": {}, "inputs": {}, "versions": {}}
    for name, report in (("whole", plain), ("broken", plain | change)):
        (tmp_path / f"{name}.json").write_text(json.dumps(report))
    assert main(["compare", str(tmp_path / "whole.json"), str(tmp_path / "whole.json")]) == 0
    assert main(["compare", str(tmp_path / "whole.json"), str(tmp_path / "broken.json")]) == 2
    assert f"{tmp_path / 'broken.json'} is no report" in capsys.readouterr().err


def test_names_of_reports_stand_in_tables_as_they_are(tmp_path: Path, capsys: Capture) -> None:
    plain = {"format": 1, "task": "csp", "settings": {}, "inputs": {}, "versions": {}}
    figures = {"my | figure [bold]": {"value": 0.5, "low": None, "high": None, "n": 2}}
    for name, heading in (("a", "run [ours]"), ("b", "a|b [/b]")):
        (tmp_path / f"{name}.json").write_text(
            json.dumps(plain | {"name": heading, "figures": figures, "scheme": name})
        )
    table = tmp_path / "table.md"
    assert main(["compare", str(tmp_path / "a.json"), str(tmp_path / "b.json"), "--markdown", str(table)]) == 0
    shown = capsys.readouterr().out
    assert all(part in shown for part in ("run [ours]", "a|b [/b]", "my | figure [bold]", "canonical form: a, b"))
    head, _, row = table.read_text().splitlines()[:3]
    assert head == r"| figure | run [ours] | a\|b [/b] |"
    assert row == r"| my \| figure [bold] | 0.5000 | 0.5000 |"


@pytest.mark.skipif(os.name == "nt", reason="file names are text there")
def test_names_of_files_need_not_be_utf_8(
    tmp_path: Path, salts: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "samples"
    folder.mkdir()
    for stem in (b"rock", b"caf\xe9"):
        (folder / os.fsdecode(stem + b"_0.cif")).write_text(salts["rock"])
    output = tmp_path / os.fsdecode(b"o\xe9")
    asked = ["evaluate", "denovo", str(folder), "-o", str(output), "--quiet", "--processes", "1"]
    monkeypatch.setattr("sys.argv", ["mat2seq", *asked])
    assert main(asked) == 0
    with (output / "per_sample.parquet").open("rb") as stream:
        assert pq.read_table(stream)["prompt_id"].to_pylist() == ["caf?", "rock"]
    (output / "per_sample.parquet").rename(table := tmp_path / os.fsdecode(b"caf\xe9.parquet"))
    with pytest.raises(Mat2SeqError, match="has no column 'cif'"):
        read_samples([table])
    assert load_report(output)["name"] == "o?"
    assert "o?" in (output / "report.md").read_text(encoding="utf-8")


def test_shares_are_known_by_their_whole_names() -> None:
    figure: dict[str, float | int | None] = {"value": 0.5, "low": None, "high": None, "n": 2}
    for name in ("same text: my_module:distance_error, all", "valid_mean", "valid_deviation", "match_1"):
        assert format_figure(name, figure) == "50.0 %"
    for name in ("rmse_1_valid", "e_above_hull", "judge_error", "mean error of my judge"):
        assert format_figure(name, figure) == "0.5000"


def test_a_report_says_how_its_figures_came_about() -> None:
    report = {
        "task": "csp",
        "name": "x",
        "inputs": {"samples": "s.parquet"},
        "figures": {"match_1": {"value": 0.5, "low": 0.4, "high": 0.6, "n": 10}},
        "notes": ["A note."],
        "counts": {"timeouts": 2},
        "reasons": {"a | b": 3},
        "tables": {},
        "settings": {"ltol": 0.3},
        "versions": {"pymatgen": "1"},
        "command": "mat2seq evaluate csp",
    }
    text = render_markdown(report)
    for part in ("50.0 % (40.0 to 60.0)", "A note.", "| timeouts | 2 |", "a \\| b", "ltol 0.3", "mat2seq evaluate csp"):
        assert part in text
