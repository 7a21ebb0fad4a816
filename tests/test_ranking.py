"""Candidates are ranked by what most of them agree on."""

from __future__ import annotations

from mat2seq_hf.ranking import best_of, consensus_order
from mat2seq_hf.sampling import Drawn
from mat2seq_hf.vocabulary import TOKEN_IDS, tokenize

SALT = "Na1 Cl1 [Fm-3m] {0:.4f} {0:.4f} {0:.4f} 90 90 90 Na 4a 0 0 0 Cl 4b 1/2 1/2 1/2"
CESIUM = "Na1 Cl1 [Pm-3m] {0:.4f} {0:.4f} {0:.4f} 90 90 90 Na 1a 0 0 0 Cl 1b 1/2 1/2 1/2"
ZINC = "Na1 Cl1 [F-43m] {0:.4f} {0:.4f} {0:.4f} 90 90 90 Na 4a 0 0 0 Cl 4c 1/4 1/4 1/4"


def drawn(text: str, log_prob: float, *, finished: bool = True) -> Drawn:
    ids = [TOKEN_IDS["<s>"], *tokenize(text), *([TOKEN_IDS["</s>"]] if finished else [])]
    return Drawn(ids, 3, finished, log_prob, log_prob)


def test_frequent_before_likely_and_one_of_each_before_seconds() -> None:
    salt, cesium, zinc = SALT.format(5.7), CESIUM.format(3.5), ZINC.format(6.1)
    samples = [
        drawn(cesium, -1.0),
        drawn(salt, -9.0),
        drawn(zinc, -2.0),
        drawn(SALT.format(5.6), -7.0),
        drawn(SALT.format(5.8), -8.0),
    ]
    ranked = best_of(samples, 5)
    assert [sample.log_prob for sample in ranked] == [-7.0, -1.0, -2.0, -8.0, -9.0]
    assert best_of(samples, 2) == ranked[:2]


def test_overlapping_atoms_and_unfinished_samples_have_no_vote_and_come_last() -> None:
    overlap = SALT.format(0.6)  # 0.3 angstrom apart
    samples = [
        drawn(SALT.format(5.7), -0.1, finished=False),
        drawn(overlap, -0.2),
        drawn(overlap, -0.3),
        drawn(CESIUM.format(3.5), -5.0),
        drawn("Na1 Cl1 [Fm-3m]", -0.05),
    ]
    assert [sample.log_prob for sample in best_of(samples, 5)] == [-5.0, -0.05, -0.2, -0.3, -0.1]


def test_equally_frequent_prototypes_go_by_probability() -> None:
    assert consensus_order(["a", "b", "b", "a"], [-4.0, -3.0, -2.0, -1.0]) == [3, 2, 1, 0]
    assert consensus_order([], []) == []


def test_a_crystal_that_is_drawn_again_comes_behind_all_other_valid_ones() -> None:
    salt, cesium = SALT.format(5.7), CESIUM.format(3.5)
    samples = [*(drawn(salt, -1.0) for _ in range(3)), drawn(cesium, -8.0), drawn(SALT.format(5.8), -9.0)]
    assert [sample.log_prob for sample in best_of(samples, 5)] == [-1.0, -8.0, -9.0, -1.0, -1.0]
