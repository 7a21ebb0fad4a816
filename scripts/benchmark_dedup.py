"""Duplicates by canonical sequence beside pymatgen's StructureMatcher, and why they differ where they do.

python scripts/benchmark_dedup.py --data ../shared/data --mp 5000 --carbon 500
"""

from __future__ import annotations

import argparse
import random
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Structure
from rich.console import Console
from rich.progress import track
from rich.table import Table

from mat2seq_hf.canonical import CanonicalCrystal, canonicalize
from mat2seq_hf.corpora.duplicates import (
    crystal_numbers,
    first_of_each,
    largest_difference,
    near_groups,
    text_digests,
)
from mat2seq_hf.corpora.feature import Crystal
from mat2seq_hf.evaluation.equivalents import mirror_image

console = Console(width=140)


def _read(path: Path, count: int) -> list[tuple[str, Structure]]:
    rows = pq.read_table(path, columns=["material_id", "cif"]).to_pylist()
    chosen = sorted(random.Random(0).sample(range(len(rows)), min(count, len(rows))))
    feature = Crystal()
    return [(rows[i]["material_id"], feature.decode_example(feature.encode_example(rows[i]["cif"]))) for i in chosen]


def _matched(structures: Sequence[Structure]) -> tuple[list[int], float]:
    """First of each StructureMatcher group (default tolerances, grouped by composition), and processor time."""
    matcher = StructureMatcher()
    start = time.process_time()
    by_formula: dict[str, list[int]] = defaultdict(list)
    for index, structure in enumerate(structures):
        by_formula[structure.composition.reduced_formula].append(index)
    first = list(range(len(structures)))
    for indices in track(by_formula.values(), "StructureMatcher", console=console, disable=not console.is_terminal):
        heads: list[int] = []
        for index in indices:
            same = next((head for head in heads if matcher.fit(structures[head], structures[index])), None)
            if same is None:
                heads.append(index)
            else:
                first[index] = same
    return first, time.process_time() - start


def _canonical(structures: Sequence[Structure], symprec: float) -> tuple[list[CanonicalCrystal], list[int], float]:
    start = time.process_time()
    crystals = [canonicalize(structure, symprec) for structure in structures]
    first = first_of_each(text_digests(crystal.text for crystal in crystals)).tolist()
    return crystals, first, time.process_time() - start


def _partners(first: Sequence[int]) -> set[tuple[int, int]]:
    """Every pair within a group."""
    groups: dict[int, list[int]] = defaultdict(list)
    for index, head in enumerate(first):
        groups[head].append(index)
    return {(a, b) for members in groups.values() for i, a in enumerate(members) for b in members[i + 1 :]}


def _why(one: CanonicalCrystal, other: CanonicalCrystal, first: Structure, second: Structure, symprec: float) -> str:
    if canonicalize(mirror_image(first), symprec).text == other.text:
        return "mirror images"
    if one.space_group_number != other.space_group_number:
        return "space groups differ"
    if [(s.element, s.wyckoff) for s in one.sites] != [(s.element, s.wyckoff) for s in other.sites]:
        return "same group, other Wyckoff positions"
    ratio = abs(np.log(first.volume / len(first) / (second.volume / len(second))))
    if ratio > 0.03:
        return "same positions, volumes differ by more than 3 %"
    distance = float(largest_difference(crystal_numbers(one.text), crystal_numbers(other.text)))
    edge = next((limit for limit in (0.001, 0.01, 0.05, 0.1) if distance < limit), None)
    return f"same positions, numbers within {edge} angstrom" if edge else "same positions, numbers farther apart"


def _compare(name: str, entries: list[tuple[str, Structure]], near: float, symprec: float) -> None:
    structures = [structure for _, structure in entries]
    crystals, canonical, ours = _canonical(structures, symprec)
    start = time.process_time()
    coarse = [canonicalize(structure, min(near, 0.2)).text for structure in structures]
    nearby = near_groups(coarse, near).tolist()
    near_time = time.process_time() - start
    matched, theirs = _matched(structures)
    table = Table(
        "", "groups", "pairs", "processor time (s)", "crystals a second", title=f"{name}, {len(entries)} crystals"
    )
    for label, first, seconds in (
        ("canonical sequence", canonical, ours),
        (f"near-duplicates, {near:g} angstrom, symprec {min(near, 0.2):g}", nearby, near_time),
        ("StructureMatcher, defaults, by formula", matched, theirs),
    ):
        pairs = len(_partners(first))
        table.add_row(label, str(len(set(first))), str(pairs), f"{seconds:.1f}", f"{len(entries) / seconds:.0f}")
    console.print(table)
    console.print(f"StructureMatcher takes {theirs / ours:.2f} times the processor time")
    exact, loose, close = _partners(canonical), _partners(matched), _partners(nearby)
    console.print(
        f"pairs: both {len(exact & loose)}, canonical alone {len(exact - loose)}, matcher alone {len(loose - exact)}"
    )
    reasons: Counter[str] = Counter()
    found: Counter[str] = Counter()
    examples: dict[str, str] = {}
    for a, b in sorted(loose - exact):
        reason = _why(crystals[a], crystals[b], structures[a], structures[b], symprec)
        reasons[reason] += 1
        found[reason] += (a, b) in close
        examples.setdefault(reason, f"{entries[a][0]} {entries[b][0]}")
    for a, b in sorted(exact - loose):
        reasons["same sequence, no match"] += 1
        examples.setdefault("same sequence, no match", f"{entries[a][0]} {entries[b][0]}")
    table = Table("pairs on which they differ", "pairs", "near joins", "example")
    for reason, count in reasons.most_common():
        table.add_row(reason, str(count), str(found[reason]), examples[reason])
    console.print(table)


def _growth(structures: list[Structure], symprec: float) -> None:
    """Time for growing parts of one corpus: linear beside quadratic."""
    table = Table("crystals", "canonical (s)", "StructureMatcher (s)", title="growth")
    for count in (len(structures) // 4, len(structures) // 2, len(structures)):
        table.add_row(
            str(count), f"{_canonical(structures[:count], symprec)[2]:.1f}", f"{_matched(structures[:count])[1]:.1f}"
        )
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--mp", type=int, default=5000)
    parser.add_argument("--carbon", type=int, default=500)
    parser.add_argument("--near", type=float, default=0.1, help="tolerance of near-duplicates in angstrom")
    parser.add_argument("--symprec", type=float, default=0.01)
    parser.add_argument("--growth", action="store_true", help="also parts of the carbon crystals")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    carbon = _read(args.data / "carbon_24" / "val.parquet", args.carbon)
    canonicalize(carbon[0][1])  # imports and tables are not counted
    _compare("MP-20", _read(args.data / "mp_20" / "val.parquet", args.mp), args.near, args.symprec)
    _compare("Carbon-24", carbon, args.near, args.symprec)
    if args.growth:
        _growth([structure for _, structure in carbon], args.symprec)


if __name__ == "__main__":
    main()
