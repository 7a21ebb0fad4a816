"""Stability, judges, descriptions, coverage and efficiency on crystals small enough for every run."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from pymatgen.core import Composition, Element, Lattice, Structure
from pymatgen.io.cif import CifWriter
from synthetic import cif_of
from transformers import GPT2LMHeadModel

from mat2seq_hf import build_tokenizer, gpt2_config
from mat2seq_hf.cli import main
from mat2seq_hf.errors import Mat2SeqError
from mat2seq_hf.evaluation import pool
from mat2seq_hf.evaluation.conditional import ConditionalSettings, evaluate_conditional
from mat2seq_hf.evaluation.coverage import CoverageCutoffs, coverage, covered, structure_fingerprint
from mat2seq_hf.evaluation.csp import CspSettings
from mat2seq_hf.evaluation.denovo import DenovoSettings
from mat2seq_hf.evaluation.descriptions import METHODS, DescriptionSettings, evaluate_descriptions
from mat2seq_hf.evaluation.descriptors import describe
from mat2seq_hf.evaluation.efficiency import EfficiencySettings, _figures, evaluate_efficiency
from mat2seq_hf.evaluation.equivalents import random_equivalent
from mat2seq_hf.evaluation.hull import Hull, read_corpus_by_system
from mat2seq_hf.evaluation.judges import _cached_features, _TwoSteps, load_judge, train_judge
from mat2seq_hf.evaluation.literature import LiteratureSettings
from mat2seq_hf.evaluation.potential import load_calculator, single_point
from mat2seq_hf.evaluation.schema import clustered_share, load_report
from mat2seq_hf.evaluation.sources import Reference, SampleText
from mat2seq_hf.evaluation.stability import StabilitySettings, evaluate_stability
from mat2seq_hf.evaluation.store import Store
from mat2seq_hf.publishing import save_model_folder
from mat2seq_hf.registration import DEFAULT_MODEL

pytest.importorskip("ase")
from ase.calculators.calculator import Calculator

EMT = StabilitySettings("ase.calculators.emt:EMT", progress=False)


def texts_of(structures: Sequence[Structure | None]) -> list[SampleText]:
    return [
        SampleText("", index, None if item is None else cif_of(item), None, str(index))
        for index, item in enumerate(structures)
    ]


def metal(symbol: str, a: float) -> Structure:
    """Face-centred cubic; ``a`` of the cube."""
    return Structure(Lattice.rhombohedral(a / 2**0.5, 60), [symbol], [[0, 0, 0]])


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The elements, and an ordered alloy that EMT finds stable."""
    places = [[0.0, 0.0, 0.0], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]]
    alloy = Structure(Lattice.cubic(3.75), ["Au", "Cu", "Cu", "Cu"], places)
    crystals = {"cu": metal("Cu", 3.59), "au": metal("Au", 4.06), "alloy": alloy}
    path = tmp_path_factory.mktemp("corpus") / "corpus.parquet"
    pd.DataFrame({"id": list(crystals), "cif": [cif_of(item) for item in crystals.values()]}).to_parquet(path)
    return path


def test_stability_is_measured_against_the_hull_of_the_potential(corpus: Path, tmp_path: Path) -> None:
    overlapping = Structure(Lattice.cubic(3.0), ["Cu", "Cu"], [[0.0, 0.0, 0.0], [0.05, 0, 0]])
    zincblende = Structure(Lattice.rhombohedral(3.96, 60), ["Cu", "Au"], [[0.0, 0.0, 0.0], [0.25, 0.25, 0.25]])
    nickel = metal("Ni", 3.5)
    samples = texts_of([metal("Cu", 3.7), zincblende, overlapping, nickel, None])
    report, rows = evaluate_stability(samples, corpus, corpus, tmp_path, EMT)
    copper, open_alloy, _, without, _ = rows
    assert copper["converged"]
    assert -0.02 < copper["e_above_hull"] <= 0.001
    assert not copper["novel"]
    assert open_alloy["e_above_hull"] > 0.05
    assert open_alloy["novel"]
    assert [row["outcome"].split(":")[0] for row in rows] == ["ok", "ok", "not relaxed", "ok", "not relaxed"]
    assert without["e_above_hull"] is None
    assert report["counts"]["without_hull"] == 1
    assert report["figures"]["sun"]["value"] == 0
    assert any("not DFT's hull" in note for note in report["notes"])


def test_energies_above_the_hull_are_those_of_a_phase_diagram(tmp_path: Path) -> None:
    from pymatgen.analysis.phase_diagram import PDEntry, PhaseDiagram

    rng = np.random.default_rng(0)
    elements = ["Al", "Cu", "Ag", "Au"]
    corpus: dict[frozenset[str], list[str]] = {}
    entries = []
    for own in [[symbol] for symbol in elements] + [rng.choice(elements, 4).tolist() for _ in range(20)]:
        places = [[x, y, 0.1] for x in (0.0, 0.5) for y in (0.0, 0.5)][: len(own)]
        crystal = Structure(Lattice.cubic(float(rng.uniform(4, 5))), own, places)
        corpus.setdefault(frozenset(own), []).append(cif_of(crystal))
        energy = single_point(cif_of(crystal), EMT.calculator)
        entries.append(PDEntry(crystal.composition, energy * len(crystal)))
    hull = Hull(corpus, Store(tmp_path / "s.jsonl"), EMT.calculator, progress=False)
    hull.prepare([frozenset(elements)])
    diagram = PhaseDiagram(entries)
    for _ in range(20):
        asked = Composition({symbol: int(rng.integers(1, 9)) for symbol in elements})
        expected = diagram.get_hull_energy_per_atom(asked)
        assert hull.above(asked, 1.0) == pytest.approx(1.0 - expected, abs=1e-7)
    assert hull.above(Composition("Cu"), 0.0) == pytest.approx(-diagram.get_hull_energy_per_atom(Composition("Cu")))


def test_a_hull_of_many_elements_is_no_longer_work(tmp_path: Path) -> None:
    symbols = [Element.from_Z(number).symbol for number in range(3, 43) if Element.from_Z(number).is_metal]
    crystals = {frozenset([symbol]): [cif_of(metal(symbol, 4.0))] for symbol in symbols}
    hull = Hull(crystals, Store(tmp_path / "s.jsonl"), "ase.calculators.lj:LennardJones", progress=False)
    hull.prepare([frozenset(symbols)])
    assert len(symbols) > 20
    assert hull.above(Composition(dict.fromkeys(symbols, 1)), 0.0) == pytest.approx(hull.above(Composition("Cu"), 0.0))


def test_of_equal_crystals_the_most_stable_one_is_the_unique_one(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "gold.cif").write_text(cif_of(metal("Au", 4.06)))
    near, far = metal("Cu", 3.6), metal("Cu", 3.8)
    for structures in ([near, far], [far, near]):
        loose = replace(EMT, steps=1, fmax=9.0, metastable=9.0)
        report, rows = evaluate_stability(texts_of(structures), corpus, tmp_path / "gold.cif", tmp_path, loose)
        best, other = sorted(rows, key=lambda row: float(row["e_above_hull"]))
        assert best["e_above_hull"] < other["e_above_hull"] - 0.001
        assert (best["unique"], other["unique"]) == (True, False)
        assert report["figures"]["msun"]["value"] == 0.5


class Hole(Calculator):
    """A potential with a hole: the first two atoms attract each other until they overlap."""

    implemented_properties = ["energy", "free_energy", "forces", "stress"]  # noqa: RUF012 - as ASE declares it

    def calculate(self, atoms: Any = None, properties: Any = None, system_changes: Any = None) -> None:
        """A spring without length."""
        forces = np.zeros((len(atoms), 3))
        if len(atoms) > 1:
            pull = atoms.get_distance(0, 1, mic=True, vector=True)
            forces[0], forces[1] = 10 * pull, -10 * pull
        energy = -20.0 * len(atoms) + (5 * float(pull @ pull) if len(atoms) > 1 else 0.0)
        self.results = {"energy": energy, "free_energy": energy, "forces": forces, "stress": np.zeros(6)}


def test_what_collapses_is_not_stable(corpus: Path, tmp_path: Path) -> None:
    alloy = Structure(Lattice.cubic(3.1), ["Cu", "Au"], [[0.0, 0.0, 0.0], [0.5, 0.5, 0.4]])
    report, (row,) = evaluate_stability(
        texts_of([alloy]), corpus, corpus, tmp_path, replace(EMT, calculator=f"{__name__}:Hole", fmax=0.001)
    )
    assert row["valid_structure"]
    assert row["outcome"].startswith("relaxed: ")
    assert (row["e_above_hull"], row["energy_per_atom"], row["unique"]) == (None, None, False)
    assert (report["counts"]["not_valid_when_relaxed"], report["counts"]["relaxed"]) == (1, 0)
    assert report["figures"]["stable"]["value"] == report["figures"]["sun"]["value"] == 0


def test_started_again_it_computes_nothing_twice(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = texts_of([metal("Cu", 3.7), metal("Au", 4.2)])
    first = evaluate_stability(samples, corpus, None, tmp_path, EMT)
    with (tmp_path / "relaxations.jsonl").open("a") as handle:
        handle.write('{"key": "cut o')  # as a killed run leaves it

    def never(*_: object, **__: object) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr("mat2seq_hf.evaluation.stability.relax", never)
    monkeypatch.setattr("mat2seq_hf.evaluation.hull.single_point", never)
    again = evaluate_stability(samples, corpus, None, tmp_path, EMT)
    assert again == first


def test_what_ran_out_of_time_is_tried_again(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(*_: object, **__: object) -> None:
        while True:
            pass

    samples = texts_of([metal("Cu", 3.7)])
    with monkeypatch.context() as patched:
        patched.setattr("mat2seq_hf.evaluation.stability.relax", hang)
        short, rows = evaluate_stability(samples, corpus, None, tmp_path, replace(EMT, timeout=0.1))
    assert (short["counts"]["relaxation_timeouts"], rows[0]["outcome"]) == (1, "timeout")
    evaluate_stability(samples, corpus, None, tmp_path, EMT)
    (tmp_path / "single_points.jsonl").unlink()  # what is relaxed stays relaxed: single points alone take time
    with monkeypatch.context() as patched:
        patched.setattr("mat2seq_hf.evaluation.hull.single_point", hang)
        short, _ = evaluate_stability(samples, corpus, None, tmp_path, replace(EMT, timeout=2.0))
    assert short["counts"]["failed_single_points"] == short["counts"]["crystals_of_the_hull"] == 1
    assert any("more stable than they are" in note for note in short["notes"])
    report, rows = evaluate_stability(samples, corpus, None, tmp_path, EMT)
    assert (report["counts"]["relaxation_timeouts"], report["counts"]["failed_single_points"]) == (0, 0)
    assert rows[0]["e_above_hull"] is not None


def test_a_comparison_with_the_relaxed_crystal_has_a_time_limit(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = texts_of([metal("Cu", 3.65)])
    evaluate_stability(samples, corpus, None, tmp_path, EMT)  # what is relaxed stays relaxed

    def fail(*_: object) -> None:
        raise ValueError("cost matrix is infeasible")

    monkeypatch.setattr("mat2seq_hf.evaluation.matching.Matcher.rms", fail)
    report, (row,) = evaluate_stability(samples, corpus, None, tmp_path, EMT)
    assert row["relaxation_rms"] is None
    assert row["e_above_hull"] is not None
    assert report["figures"]["relaxation_rmse"]["n"] == 0


def test_the_time_limit_holds_for_reading_relaxing_and_comparing(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits: list[float] = []
    make = pool.Pool.__init__

    def noting(self: pool.Pool, *, timeout: float, **more: int) -> None:
        limits.append(timeout)
        make(self, timeout=timeout, **more)

    monkeypatch.setattr(pool.Pool, "__init__", noting)
    settings = replace(EMT, timeout=77.0, steps=1)
    evaluate_stability(texts_of([metal("Cu", 3.6), metal("Cu", 3.8)]), corpus, corpus, tmp_path, settings)
    assert len(limits) > 5
    assert set(limits) == {77.0}


def test_the_hull_takes_crystals_that_state_no_formula(tmp_path: Path) -> None:
    without = "".join(
        line for line in cif_of(metal("Cu", 3.59)).splitlines(keepends=True) if "_chemical_formula" not in line
    )
    gold = json.dumps(metal("Au", 4.06).as_dict())
    silver = cif_of(metal("Ag", 4.09)).replace("Ag1", "Au1")  # what a formula says is not what the crystal is
    pd.DataFrame({"structure": [without, gold, silver, "broken", ""]}).to_parquet(tmp_path / "c.parquet")
    systems, unreadable, _ = read_corpus_by_system(tmp_path / "c.parquet")
    assert set(systems) >= {frozenset({"Cu"}), frozenset({"Au"})}
    assert unreadable == 2
    report, rows = evaluate_stability(texts_of([metal("Cu", 3.7)]), tmp_path / "c.parquet", None, tmp_path, EMT)
    assert report["counts"]["unreadable_in_corpus"] == 2
    assert rows[0]["e_above_hull"] is not None


def test_a_store_survives_a_line_that_was_cut_off(tmp_path: Path) -> None:
    store = Store(tmp_path / "s.jsonl")
    store.keep("a", 1)
    store.keep("none", None)
    with (tmp_path / "s.jsonl").open("a") as handle:
        handle.write('{"key": "b", "va')
    again = Store(tmp_path / "s.jsonl")
    assert "b" not in again
    again.keep("c", 3)
    assert [Store(tmp_path / "s.jsonl").get(key) for key in ("a", "b", "c", "none")] == [1, None, 3, None]


def test_calculators_that_do_not_exist_are_named() -> None:
    with pytest.raises(Mat2SeqError, match="'nonsense'"):
        load_calculator("nonsense")


def test_chgnet_gives_the_same_energy_alone_and_in_a_batch() -> None:
    pytest.importorskip("chgnet")
    from mat2seq_hf.evaluation.potential import single_point, single_points

    cifs = [cif_of(metal("Cu", 3.6)), cif_of(metal("Au", 4.1))]
    assert single_points(cifs) == pytest.approx([single_point(cif) for cif in cifs], abs=1e-4)


def lattice_judge(cifs: Sequence[str]) -> list[float]:
    """A judge for tests: the cube root of the volume of an atom."""
    structures = [Structure.from_str(cif, fmt="cif") for cif in cifs]
    return [float((item.volume / len(item)) ** (1 / 3)) for item in structures]


lattice_judge.errors = {"judge_error": {"value": 0.0, "low": 0.0, "high": 0.0, "n": 1}}  # type: ignore[attr-defined]


def test_success_is_what_the_judge_says() -> None:
    structures = [metal("Cu", 3.0), metal("Cu", 4.0), metal("Cu", 5.0), None]
    settings = ConditionalSettings(
        property="size", above=2.0, below=3.0, judge=f"{__name__}:lattice_judge", progress=False
    )
    report, rows = evaluate_conditional(texts_of(structures), None, None, settings)
    assert [row["success"] for row in rows] == [False, True, False, False]
    assert report["figures"]["success"]["value"] == pytest.approx(1 / 4)
    assert report["figures"]["judge_error"]["value"] == 0
    with pytest.raises(Mat2SeqError, match="'nobody'"):
        load_judge("nobody")


def one_answer(cifs: Sequence[str]) -> float:
    """A judge that does not look at the crystals."""
    return float(len(cifs))


def failing(cifs: Sequence[str]) -> list[float]:
    """A judge with a fault."""
    raise KeyError("gap")


def halving(cifs: Sequence[str]) -> list[float]:
    """A judge without errors of its own."""
    return [0.5] * len(cifs)


def unsure(cifs: Sequence[str]) -> list[float | None]:
    """A judge that cannot tell much."""
    return [None, float("inf"), float("-inf"), *[0.5] * (len(cifs) - 3)]


def test_what_a_judge_cannot_tell_is_counted() -> None:
    settings = ConditionalSettings(below=1.0, judge=f"{__name__}:unsure", progress=False)
    report, rows = evaluate_conditional(texts_of([metal("Cu", 3 + i / 10) for i in range(4)]), None, None, settings)
    assert [row["success"] for row in rows] == [False, False, False, True]
    assert [row["predicted"] for row in rows] == [None, None, None, 0.5]
    assert report["counts"]["without_judgement"] == 3
    json.dumps(report, allow_nan=False)


def test_a_judge_has_to_answer_for_each_crystal() -> None:
    texts = texts_of([metal("Cu", 3.0), metal("Cu", 4.0)])
    settings = ConditionalSettings(below=1.0, progress=False)
    for judge, message in (("one_answer", "one number for each of 2 crystals"), ("failing", "failed: KeyError: 'gap'")):
        with pytest.raises(Mat2SeqError, match=message):
            evaluate_conditional(texts, None, None, replace(settings, judge=f"{__name__}:{judge}"))
    report, _ = evaluate_conditional(texts, None, None, replace(settings, judge=f"{__name__}:halving"))
    assert any("states no error of its own" in note for note in report["notes"])


def stating(cifs: Sequence[str]) -> list[float]:
    """A judge whose errors a test sets."""
    return [0.5] * len(cifs)


@pytest.mark.parametrize("number", [0.31, 1, np.float32(0.5), np.int64(2)])
def test_an_error_that_a_judge_states_as_a_number_stands_in_the_report(
    number: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interval = {"value": number, "low": None, "high": np.float64(3.0), "n": np.int64(7), "unit": object()}
    monkeypatch.setattr(stating, "errors", {"mae": number, "rmse": interval}, raising=False)
    pd.DataFrame({"cif": [cif_of(metal("Cu", 3.6))]}).to_parquet(tmp_path / "samples.parquet")
    asked = ["evaluate", "conditional", str(tmp_path / "samples.parquet"), "--below", "1", "-o", str(tmp_path / "o")]
    assert main([*asked, "--judge", f"{__name__}:stating"]) == 0
    figures = load_report(tmp_path / "o")["figures"]
    assert figures["mae"] == {"value": pytest.approx(float(number)), "low": None, "high": None, "n": 1}
    assert figures["rmse"] == {"value": pytest.approx(float(number)), "low": None, "high": 3.0, "n": 7}
    assert "| mae |" in (tmp_path / "o" / "report.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "errors",
    [
        {"mae": float("nan")},
        {"mae": "0.31"},
        {"mae": None},
        {"mae": True},
        {"mae": [0.3, 0.4]},
        {"mae": {"value": 0.31}},
        {"mae": {"value": 0.31, "low": None, "high": np.float32("inf"), "n": 3}},
        {"mae": {"value": 0.31, "low": None, "high": None, "n": None}},
        {5: 0.31},
        [0.31],
    ],
)
def test_errors_of_another_form_are_refused_before_any_work(errors: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stating, "errors", errors, raising=False)
    monkeypatch.setattr("mat2seq_hf.evaluation.conditional.examine_all", lambda *_, **__: pytest.fail("work"))
    settings = ConditionalSettings(below=1.0, judge=f"{__name__}:stating", progress=False)
    key = f"errors[{next(iter(errors))!r}] of" if isinstance(errors, dict) else "the errors of"
    with pytest.raises(Mat2SeqError, match=f"{re.escape(key)} the judge {__name__}:stating must be .*a finite number"):
        evaluate_conditional(texts_of([metal("Cu", 3.6)]), None, None, settings)


def test_the_default_judge_learns_and_says_how_well() -> None:
    pytest.importorskip("sklearn")
    rng = np.random.default_rng(0)
    references = []
    for index in range(240):
        cation, anion = rng.choice(["Li", "Na", "K", "Rb", "Cs"]), rng.choice(["F", "Cl", "Br", "I", "S"])
        a = float(rng.uniform(4.0, 7.0))
        salt = Structure(Lattice.rhombohedral(a / 2**0.5, 60), [cation, anion], [[0.0, 0.0, 0.0], [0.5, 0.5, 0.5]])
        gap = 0.0 if anion == "S" else 9.0 - a
        references.append(Reference(str(index), cif_of(salt), f'{{"band_gap": {gap}}}'))
    judge = train_judge(references, "band_gap", lambda values: values > 3.0, progress=False)
    error, baseline = (judge.errors[name]["value"] for name in ("judge_error", "judge_baseline_error"))
    assert error is not None
    assert baseline is not None
    assert error < 0.5 * baseline
    predicted = judge([references[0].cif, "broken"])
    assert predicted[0] >= 0
    assert np.isnan(predicted[1])
    with pytest.raises(Mat2SeqError, match="needs 100"):
        train_judge(references[:50], "band_gap", lambda values: values > 3.0, progress=False)


@pytest.mark.parametrize("labels", [1200, 12000])
def test_the_judge_is_as_large_as_the_models_whose_error_is_stated(
    labels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    ensemble = pytest.importorskip("sklearn.ensemble")
    made = []
    fit = ensemble.HistGradientBoostingClassifier.fit

    def noting(self: Any, *given: Any) -> Any:
        made.append(fit(self, *given))
        return made[-1]

    monkeypatch.setattr(ensemble.HistGradientBoostingClassifier, "fit", noting)
    references = [
        Reference(str(n), f"_chemical_formula_sum 'Na1 Cl{n + 1}'\n", json.dumps({"gap": float(n % 60 == 0)}))
        for n in range(labels)
    ]
    noise = np.random.default_rng(0).normal(size=(labels, 1))
    monkeypatch.setattr("mat2seq_hf.evaluation.judges._cached_features", lambda *_: noise)
    train_judge(references, "gap", lambda values: values > 0.5, progress=False)
    assert [model.n_iter_ for model in made] == [200] * 6


def test_a_label_that_occurs_once_does_not_end_the_judge() -> None:
    pytest.importorskip("sklearn")
    features = np.random.default_rng(0).normal(size=(10001, 1))
    labels = np.zeros(10001)
    labels[3] = 1.0
    model = _TwoSteps(features, labels, large=False)
    assert set(model.predict(features).tolist()) <= {0.0, 1.0}


def test_kept_descriptors_survive_what_broke_and_try_again_what_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = [Reference(str(index), cif_of(metal("Cu", 3 + index))) for index in range(3)]
    cache = tmp_path / "kept.npz"
    options: dict[str, object] = {"progress": False}

    def fail_for_the_last(cif: str) -> list[float]:
        if cif == kept[-1].cif:
            raise ValueError
        return [1.0, 2.0]

    monkeypatch.setattr("mat2seq_hf.evaluation.judges.describe_cif", fail_for_the_last)
    assert np.isnan(_cached_features(kept, cache, options)).tolist() == [[False] * 2] * 2 + [[True] * 2]
    whole = cache.read_bytes()
    asked: list[str] = []

    def describe_all(cif: str) -> list[float]:
        asked.append(cif)
        return [3.0, 4.0]

    monkeypatch.setattr("mat2seq_hf.evaluation.judges.describe_cif", describe_all)
    for content, again in ((whole, 1), (whole[:200], 3), (b"", 3)):
        cache.write_bytes(content)
        asked.clear()
        assert np.isfinite(_cached_features(kept, cache, options)).all()
        assert len(asked) == again
        assert np.isfinite(_cached_features(kept, cache, options)).all()
        assert len(asked) == again
    assert [file.name for file in tmp_path.iterdir()] == ["kept.npz"]


def test_kept_descriptors_are_computed_anew_by_other_descriptors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = [Reference("0", cif_of(metal("Cu", 3.6)))]
    asked: list[str] = []

    def describe_one(cif: str) -> list[float]:
        asked.append(cif)
        return [float(len(asked))]

    monkeypatch.setattr("mat2seq_hf.evaluation.judges.describe_cif", describe_one)

    def kept_or_new() -> float:
        return float(_cached_features(kept, tmp_path / "kept.npz", {"progress": False})[0, 0])

    assert [kept_or_new(), kept_or_new()] == [1, 1]
    monkeypatch.setattr("mat2seq_hf.evaluation.descriptors.DESCRIPTORS_VERSION", 0)
    assert [kept_or_new(), kept_or_new()] == [2, 2]
    monkeypatch.setattr("mat2seq_hf.evaluation.store.metadata.version", lambda _: "another")
    assert [kept_or_new(), kept_or_new()] == [3, 3]


def test_the_default_judge_knows_labels_below_zero() -> None:
    pytest.importorskip("sklearn")
    rng = np.random.default_rng(0)
    references = []
    for index in range(120):
        a = float(rng.uniform(4.0, 7.0))
        cation = ("Li", "Na", "K", "Rb", "Cs")[index % 5]
        salt = Structure(Lattice.rhombohedral(a / 2**0.5, 60), [cation, "Cl"], [[0.0, 0.0, 0.0], [0.5, 0.5, 0.5]])
        text = cif_of(salt) if index % 2 else json.dumps(salt.as_dict())
        references.append(Reference(str(index), text, json.dumps({"formation_energy": 1.0 - a})))
    judge = train_judge(references, "formation_energy", lambda values: values < -4.0, progress=False)
    predicted = np.array(judge([item.cif for item in references]))
    labels = np.array([json.loads(item.facts)["formation_energy"] for item in references])
    assert np.abs(predicted - labels).mean() < 0.3
    recall = judge.errors["judge_recall"]["value"]
    assert recall is not None
    assert recall > 0.5
    alone = [replace(item, cif=references[0].cif) for item in references]
    with pytest.raises(Mat2SeqError, match="one formula"):
        train_judge(alone, "formation_energy", lambda values: values < -4.0, progress=False)


def test_descriptors_do_not_depend_on_the_cell(crystals: dict[str, Structure]) -> None:
    rng = np.random.default_rng(3)
    for structure in crystals.values():
        own, other = describe(structure), describe(random_equivalent(structure, rng))
        np.testing.assert_allclose(own, other, rtol=1e-6, atol=1e-6)


def shifting(structure: Structure) -> str:
    """A description that notices the origin."""
    return str(np.round(structure.frac_coords[0], 3))


def test_descriptions_tell_methods_apart(crystals: dict[str, Structure]) -> None:
    references = [Reference(name, cif_of(crystals[name])) for name in ("NaCl", "rutile", "triclinic")]
    methods = ("mat2seq_hf", "cif", f"{__name__}:shifting")
    settings = DescriptionSettings(methods=methods, equivalents=2, progress=False)
    report, rows = evaluate_descriptions(references, settings)
    figures = report["figures"]
    assert figures["same text: mat2seq_hf, all"]["value"] == 1
    assert figures["same text: cif, all"]["value"] == 0
    assert figures[f"same text: {methods[2]}, translation"]["value"] == 0
    assert figures[f"same text: {methods[2]}, rotation"]["value"] == 1
    assert len(rows) == 3 * 6 * 3
    assert set(METHODS) == {"mat2seq_hf", "symmetrised_cif", "cif"}


def disordered() -> str:
    half = Structure(Lattice.cubic(4.0), [{"Na": 0.5, "K": 0.5}, {"Cl": 1}], [[0.0, 0.0, 0.0], [0.5, 0.5, 0.5]])
    return str(CifWriter(half))


def test_crystals_that_cannot_be_read_are_no_fault_of_a_method(crystals: dict[str, Structure]) -> None:
    salts = [Reference(name, cif_of(crystals[name])) for name in ("NaCl", "rutile")]
    bad = [Reference("half", disordered()), Reference("text", "broken")]
    settings = DescriptionSettings(methods=("mat2seq_hf", "cif"), equivalents=1, progress=False)
    report, rows = evaluate_descriptions([bad[0], *salts, bad[1]], settings)
    assert report["figures"]["same text: mat2seq_hf, all"]["value"] == 1
    assert report["figures"]["same text: mat2seq_hf, all"]["n"] == report["counts"]["crystals"] == 2
    assert report["counts"]["unreadable"] == 2
    assert report["counts"]["errors"] == 0
    assert report["reasons"]["partially occupied sites"] == 1
    assert sum(report["reasons"].values()) == 2
    assert {row["prompt_id"] for row in rows} == {"NaCl", "rutile"}
    assert any("left out: half, text" in note for note in report["notes"])
    with pytest.raises(Mat2SeqError, match=r"none of the 2 .* half: partially occupied sites"):
        evaluate_descriptions(bad, settings)


def test_coverage_asks_for_nearness_in_both_structure_and_composition() -> None:
    first = (np.array([[0.0], [0.0], [9.0]]), np.array([[0.0], [50.0], [0.0]]))
    second = (np.array([[0.1], [5.0]]), np.array([[1.0], [1.0]]))
    assert covered(first, second, CoverageCutoffs(0.4, 10.0)).tolist() == [True, False, False]


@pytest.mark.skipif(find_spec("matminer") is None, reason="coverage needs the element data of matminer")
def test_kept_fingerprints_give_the_same_coverage_and_are_not_computed_again(
    crystals: dict[str, Structure], tmp_path: Path
) -> None:
    samples, references = [cif_of(crystals["NaCl"]), "broken", None], [cif_of(crystals[n]) for n in ("NaCl", "rutile")]
    kept = tmp_path / "new" / "cache.jsonl"
    options = {"processes": 1, "timeout": 60.0, "progress": False}
    figures, note = coverage(samples, references, CoverageCutoffs(), kept, **options)
    assert figures["coverage_recall"]["value"] == 1 / 2
    assert figures["coverage_precision"]["value"] == pytest.approx(1 / 3)
    assert "1 of 3 samples and 2 of 2 references" in note
    assert coverage(samples, references, CoverageCutoffs(), None, **options) == (figures, note)
    lines = kept.read_text(encoding="utf-8").splitlines()
    assert len(lines) == 2  # salt is in both, and what is broken is tried again
    moved = [json.loads(line) for line in lines]
    moved[0]["value"]["structure"] = [1e3] * 61  # if these were computed again, salt would be near itself
    kept.write_text("".join(json.dumps(line) + "\n" for line in moved[:1]) + lines[1][:100], encoding="utf-8")
    again, _ = coverage(samples, references[1:], CoverageCutoffs(), kept, **options)
    assert again["coverage_precision"]["value"] == 0
    assert kept.read_text(encoding="utf-8").splitlines()[-1] == lines[1]  # the one that was cut off


def test_fingerprints_know_octahedra_and_do_not_depend_on_the_cell(crystals: dict[str, Structure]) -> None:
    salt = structure_fingerprint(crystals["NaCl"])
    assert salt.shape == (61,)
    wt6 = 5 + (1 + 5 + 3 + 5 + 3)  # five weights and seventeen order parameters stand before that of six
    assert salt[wt6 : wt6 + 4] == pytest.approx([1, salt[wt6 + 1], 1, salt[wt6 + 3]], abs=0.05)
    other = structure_fingerprint(random_equivalent(crystals["NaCl"], np.random.default_rng(4)))
    np.testing.assert_allclose(salt, other, atol=1e-3)


def test_efficiency_counts_parameters_and_seconds(crystals: dict[str, Structure], tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = GPT2LMHeadModel(gpt2_config("tiny", n_embd=16, n_layer=1, n_head=2, n_positions=128))
    model = str(save_model_folder(network, build_tokenizer(), tmp_path / "model", with_code=False))
    settings = EfficiencySettings(model, samples=2, threads=1, progress=False)
    report, rows = evaluate_efficiency([Reference("a", cif_of(crystals["NaCl"]))], settings)
    assert report["figures"]["parameters"]["value"] == sum(p.numel() for p in network.parameters())
    assert report["figures"]["seconds_per_prompt"]["value"] > 0
    assert len(rows) == 2


def test_efficiency_leaves_out_crystals_that_cannot_be_read(crystals: dict[str, Structure], tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = GPT2LMHeadModel(gpt2_config("tiny", n_embd=16, n_layer=1, n_head=2, n_positions=128))
    model = str(save_model_folder(network, build_tokenizer(), tmp_path / "model", with_code=False))
    settings = EfficiencySettings(model, samples=2, threads=1, progress=False)
    salts = [Reference(name, cif_of(crystals[name])) for name in ("NaCl", "rutile")]
    bad = Reference("half", disordered())
    report, rows = evaluate_efficiency([bad, *salts], settings)
    assert [row["prompt_id"] for row in rows] == ["NaCl"] * 2 + ["rutile"] * 2
    assert (report["counts"]["prompts"], report["counts"]["unreadable_references"]) == (2, 1)
    assert report["ids"] == evaluate_efficiency(salts, settings)[0]["ids"]
    assert any("left out: half (the first: partially occupied sites)" in note for note in report["notes"])
    groups = [[row["valid"] for row in rows[:2]], [row["valid"] for row in rows[2:]]]
    assert report["figures"]["valid"] == clustered_share(groups)
    with pytest.raises(Mat2SeqError, match=r"none of the 1 .* half: partially occupied sites"):
        evaluate_efficiency([bad], settings)


def test_the_interval_of_efficiency_knows_that_samples_of_a_prompt_resemble_each_other() -> None:
    groups = [[{"valid": prompt < 3}] * 20 for prompt in range(6)]
    figures = _figures(groups, [1.0] * 6, 1)
    assert figures["valid"]["value"] == 0.5
    assert figures["valid"] == clustered_share([[row["valid"] for row in group] for group in groups])
    assert figures["seconds_per_sample"]["value"] == pytest.approx(6 / 120)
    assert figures["seconds_per_valid"]["value"] == pytest.approx(6 / 60)


def test_efficiency_says_that_a_model_cannot_be_loaded(
    crystals: dict[str, Structure], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pd.DataFrame({"id": ["a"], "cif": [cif_of(crystals["NaCl"])]}).to_parquet(tmp_path / "one.parquet")
    broken = shutil.copytree(DEFAULT_MODEL, tmp_path / "broken")
    (broken / "model.safetensors").write_bytes((DEFAULT_MODEL / "model.safetensors").read_bytes()[:1000])
    asked = ["evaluate", "efficiency", "--reference", str(tmp_path / "one.parquet"), "-o", str(tmp_path / "o")]
    assert main([*asked, "--model", str(broken)]) == 2
    assert f"{broken} cannot be loaded: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "wrong"),
    [
        (CspSettings, {"samples": 0}),
        (CspSettings, {"samples": -1}),
        (CspSettings, {"stol": -1.0}),
        (CspSettings, {"ltol": float("nan")}),
        (CspSettings, {"processes": 0}),
        (DenovoSettings, {"symprec": 0.0}),
        (DenovoSettings, {"timeout": float("inf")}),
        (StabilitySettings, {"steps": 0}),
        (StabilitySettings, {"metastable": -0.1}),
        (ConditionalSettings, {"below": 1.0, "above": 2.0}),
        (ConditionalSettings, {"below": float("nan")}),
        (ConditionalSettings, {"above": float("inf")}),
        (LiteratureSettings, {"angle_tol": 0.0}),
        (DescriptionSettings, {"equivalents": 0}),
        (DescriptionSettings, {"crystals": -1}),
        (EfficiencySettings, {"prompts": 0}),
        (EfficiencySettings, {"samples": 0}),
    ],
)
def test_settings_out_of_range_are_refused_by_name(settings: Callable[..., object], wrong: dict[str, float]) -> None:
    settings()
    with pytest.raises(Mat2SeqError, match=rf"{next(iter(wrong))} must be|nothing is above"):
        settings(**wrong)


@pytest.mark.parametrize(("task", "seconds"), [("csp", "60"), ("stability", "600"), ("descriptions", "300")])
def test_help_states_the_time_limit_of_the_task(task: str, seconds: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["evaluate", task, "--help"])
    assert f"(default: {seconds})" in " ".join(capsys.readouterr().out.split())


def test_a_task_takes_the_options_that_it_uses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for option in ("--processes", "--timeout"):
        with pytest.raises(SystemExit, match="2"):
            main(["evaluate", "efficiency", "--reference", "x", "-o", str(tmp_path), option, "1"])
        assert f"unrecognized arguments: {option}" in capsys.readouterr().err
        assert main(["evaluate", "csp", "x", "--reference", "x", "-o", str(tmp_path), option, "0"]) == 2
        assert f"{option[2:]} must be" in capsys.readouterr().err


def test_every_task_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    for task in ("csp", "denovo", "stability", "conditional", "literature", "descriptions", "efficiency"):
        with pytest.raises(SystemExit, match="0"):
            main(["evaluate", task, "--help"])
        assert "--output" in capsys.readouterr().out


def test_the_command_for_stability_needs_no_more_than_its_options(corpus: Path, tmp_path: Path) -> None:
    pd.DataFrame({"prompt_id": ["x"], "cif": [cif_of(metal("Cu", 3.65))]}).to_parquet(tmp_path / "s.parquet")
    asked = ["evaluate", "stability", str(tmp_path / "s.parquet"), "--corpus", str(corpus), "-o", str(tmp_path / "o")]
    assert main([*asked, "--calculator", "ase.calculators.emt:EMT", "--processes", "1", "--quiet"]) == 0
    assert load_report(tmp_path / "o")["figures"]["converged"]["value"] == 1


def test_a_range_and_a_judge_have_to_be_given(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["evaluate", "conditional", str(tmp_path), "-o", str(tmp_path / "o")]
    assert main(asked) == 2
    assert "--below or --above" in capsys.readouterr().err
    assert main([*asked, "--below", "0.5"]) == 2
    assert "--labels" in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert main([*asked, "-o", str(tmp_path / "file"), "--below", "0.5"]) == 2
    assert "at or below a file: -o names the folder" in capsys.readouterr().err
