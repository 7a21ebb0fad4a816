"""Uniqueness and completeness of the canonical form on real crystals, beside plain and symmetrised CIF.

For each crystal, equivalent descriptions are made (rotation, translation, permutation, change of basis, supercell);
"unique" counts the crystals for which all descriptions give one and the same sequence.

    python scripts/benchmark_uniqueness.py --data ../shared/data --corpora mp_20 perov_5 carbon_24 --crystals 500
    python scripts/benchmark_uniqueness.py --data ../shared/data --corpora mp_20 --crystals 100 --symprec 0.1
"""

from __future__ import annotations

import argparse
import json
import warnings
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with CORPUS/SPLIT.parquet (column cif)")
    parser.add_argument("--corpora", nargs="+", default=["mp_20", "perov_5", "carbon_24"])
    parser.add_argument("--split", default="test")
    parser.add_argument("--crystals", type=int, default=500, help="random crystals of each corpus; 0 takes all")
    parser.add_argument("--equivalents", type=int, default=5, help="combined equivalents of each crystal")
    parser.add_argument("--max-supercell", type=int, default=4)
    parser.add_argument("--max-entry", type=int, default=2, help="largest entry of the change of basis")
    parser.add_argument("--symprec", type=float, default=0.01)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--no-baselines", action="store_true", help="leave plain and symmetrised CIF out")
    parser.add_argument("--output", type=Path, help="write one JSON line for each crystal here")
    return parser.parse_args()


def measure(task: tuple[str, str, int, argparse.Namespace]) -> dict[str, Any]:
    """All figures of one crystal; errors are kept as text and count as failures."""
    identifier, cif, number, options = task
    warnings.simplefilter("ignore")
    from pymatgen.core import Structure

    from mat2seq_hf.canonical import canonicalize
    from mat2seq_hf.evaluation.descriptions import METHODS
    from mat2seq_hf.evaluation.equivalents import random_equivalent

    rng = np.random.default_rng([options.seed, number])
    row: dict[str, Any] = {"id": identifier, "error": None}
    try:
        structure = Structure.from_str(cif, fmt="cif")
        limits = {"max_supercell": options.max_supercell, "max_entry": options.max_entry}
        others = [random_equivalent(structure, rng, **limits) for _ in range(options.equivalents)]
        crystal = canonicalize(structure, options.symprec)
        texts = {canonicalize(other, options.symprec).text for other in others}
        row["unique"] = texts == {crystal.text}
        if not row["unique"]:
            row["texts"] = sorted(texts | {crystal.text})
        row |= completeness(structure, crystal, options.symprec)
        if not options.no_baselines:
            for name, method in (("plain_cif", "cif"), ("symmetrised_cif", "symmetrised_cif")):
                row[name] = len({METHODS[method](item) for item in (structure, *others)}) == 1
    except Exception as error:  # noqa: BLE001 - a failure is a figure here, with its cause
        row["error"] = f"{type(error).__name__}: {error}"
    return row


def completeness(structure: Any, crystal: Any, symprec: float) -> dict[str, Any]:
    """Does the decoded crystal equal the original, and encode to the same text?"""
    from pymatgen.analysis.structure_matcher import StructureMatcher

    from mat2seq_hf.canonical import CanonicalCrystal, canonicalize
    from mat2seq_hf.evaluation.displacement import displacement_bound, maximal_displacement
    from mat2seq_hf.vocabulary import tokenize

    decoded = CanonicalCrystal.from_text(crystal.text).to_structure()
    matcher = StructureMatcher(ltol=0.3, stol=0.5, angle_tol=10)
    rms = matcher.get_rms_dist(structure, decoded)
    # The primitive cell as given; at a loose symprec, atoms that were nearly equivalent become so and it shrinks.
    primitive = structure.get_primitive_structure(tolerance=1e-4)
    multiple = len(primitive) / len(decoded)
    return {
        "idempotent": canonicalize(decoded, symprec).text == crystal.text,
        "reduced_composition": structure.composition.reduced_composition.almost_equals(
            decoded.composition.reduced_composition
        ),
        "primitive_composition": multiple.is_integer() and decoded.composition * multiple == primitive.composition,
        "shrunk": multiple > 1,
        "matches": rms is not None,
        "rms": None if rms is None else float(rms[0]),
        "displacement": maximal_displacement(structure, decoded),
        "bound": displacement_bound(crystal, symprec),
        "tokens": len(tokenize(crystal.text)) + 2,
    }


def share(rows: list[dict[str, Any]], key: str) -> str:
    return f"{100 * sum(bool(row.get(key)) for row in rows) / len(rows):6.2f} %"


def report(corpus: str, rows: list[dict[str, Any]], options: argparse.Namespace) -> None:
    print(f"\n{corpus}/{options.split}: {len(rows)} crystals, {options.equivalents} combined equivalents each")
    labels = {
        "unique": "same sequence, this package",
        "symmetrised_cif": "same text, symmetrised CIF (0.1 angstrom)",
        "plain_cif": "same text, plain CIF",
        "idempotent": "encode(decode(x)) == x",
        "reduced_composition": "reduced composition exact",
        "primitive_composition": "primitive composition exact (times the shrinkage)",
        "matches": "StructureMatcher matches the original",
    }
    for key, label in labels.items():
        if not (options.no_baselines and key.endswith("cif")):
            print(f"  {label:48s} {share(rows, key)}")
    good = [row for row in rows if row["error"] is None]
    displacements = np.array([row["displacement"] for row in good])
    within = displacements <= np.array([row["bound"] for row in good])
    tokens = np.array([row["tokens"] for row in good])
    print(f"  largest displacement {displacements.max():.4f} angstrom, within its bound {100 * within.mean():.2f} %")
    print(f"  RMS distance, median {np.median([row['rms'] for row in good if row['matches']]):.1e}")
    print(f"  cells that symmetrising made smaller: {sum(row['shrunk'] for row in good)}")
    print(f"  tokens a crystal: mean {tokens.mean():.1f}, p95 {np.percentile(tokens, 95):.0f}, max {tokens.max()}")
    for row in rows:
        if row["error"] or not row["unique"] or not row["idempotent"] or not row["matches"]:
            reason = row["error"] or {key: row[key] for key in ("unique", "idempotent", "matches")}
            print("  failed:", row["id"], reason)
            for text in row.get("texts", []):
                print("     ", text)


def main() -> None:
    import pandas as pd

    options = parse_arguments()
    for corpus in options.corpora:
        table = pd.read_parquet(options.data / corpus / f"{options.split}.parquet", columns=["material_id", "cif"])
        if options.crystals:
            table = table.sample(min(options.crystals, len(table)), random_state=options.seed)
        tasks = [(str(i), cif, number, options) for number, (i, cif) in enumerate(table.itertuples(index=False))]
        with ProcessPoolExecutor(options.processes) as pool:
            rows = list(tqdm(pool.map(measure, tasks, chunksize=8), total=len(tasks), desc=corpus))
        report(corpus, rows, options)
        if options.output:
            with options.output.open("a") as handle:
                handle.writelines(json.dumps(row) + "\n" for row in rows)


if __name__ == "__main__":
    main()
