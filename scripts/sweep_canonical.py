"""The laws of the canonical form on every crystal of whole corpora, resumable.

Each crystal is encoded, and with it random equivalents (rotation, translation, permutation, change of basis with
entries to +-3, left-handed ones too, supercells to 8 cells, coordinates far outside the cell), its mirror image and
its decoded form. Finished parts are kept as parquet files and not repeated; ``report`` sums them up.

    python scripts/sweep_canonical.py run --data ../shared/data --output sweep
    python scripts/sweep_canonical.py report --output sweep --results results/canonical_form
    python scripts/sweep_canonical.py collisions --data ../shared/data --output sweep --results results/canonical_form
    python scripts/sweep_canonical.py chirality --output sweep --results results/canonical_form
"""

from __future__ import annotations

import argparse
import json
import signal
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from math import gcd
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

SPLITS = [
    *(f"{corpus}/{split}" for split in ("test", "val", "train") for corpus in ("mp_20", "perov_5", "carbon_24")),
    "mpts_52/val",
]
ENANTIOMORPHS = dict(
    pair
    for a, b in (
        (76, 78),
        (91, 95),
        (92, 96),
        (144, 145),
        (151, 153),
        (152, 154),
        (169, 170),
        (171, 172),
        (178, 179),
        (180, 181),
        (212, 213),
    )
    for pair in ((a, b), (b, a))
)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="measure; goes on where it was stopped")
    run.add_argument("--data", type=Path, required=True, help="folder with CORPUS/SPLIT.parquet (material_id, cif)")
    run.add_argument("--splits", nargs="+", default=SPLITS)
    run.add_argument("--symprec", type=float, nargs="+", default=[0.01, 0.1, 0.001])
    run.add_argument("--detector", default="spglib", choices=("spglib", "moyopy"))
    run.add_argument("--equivalents", type=int, default=3)
    run.add_argument("--crystals", type=int, default=0, help="random crystals of each split; 0: all")
    run.add_argument("--part", type=int, default=500, help="crystals in one part")
    run.add_argument("--processes", type=int, default=2)
    run.add_argument("--timeout", type=float, default=120.0, help="seconds for one crystal; more counts as a failure")
    run.add_argument("--seed", type=int, default=0)
    run.add_argument("--output", type=Path, required=True)
    report = commands.add_parser("report", help="sum up what is there")
    report.add_argument("--output", type=Path, required=True)
    report.add_argument("--results", type=Path, required=True, help="folder for summary.json, failures.jsonl, table.md")
    collisions = commands.add_parser("collisions", help="superpose all crystals that share a text")
    collisions.add_argument("--data", type=Path, required=True)
    chirality = commands.add_parser("chirality", help="superpose the chiral crystals with their mirror images")
    for command in (collisions, chirality):
        command.add_argument("--output", type=Path, required=True, help="folder of the sweep")
        command.add_argument("--results", type=Path, required=True)
        command.add_argument("--symprec", type=float, default=0.01)
    return parser.parse_args()


def reduced(numbers: Any) -> tuple[tuple[int, int], ...]:
    """Reduced composition as sorted (atomic number, count)."""
    counts = Counter(int(number) for number in numbers)
    divisor = gcd(*counts.values())
    return tuple(sorted((number, count // divisor) for number, count in counts.items()))


def density(lattice: Any, numbers: Any) -> float:
    """Atoms in a cubic angstrom: with equal compositions this compares mass densities, too."""
    return float(len(numbers) / abs(np.linalg.det(lattice)))


def measure(identifier: str, cif: str, symprec: float, seed: list[int], options: argparse.Namespace) -> dict[str, Any]:
    """All figures of one crystal; what fails is kept as text."""
    row: dict[str, Any] = {"id": identifier, "symprec": symprec, "error": None}
    signal.setitimer(signal.ITIMER_REAL, options.timeout)
    start = time.process_time()
    try:
        row.update(figures(cif, symprec, np.random.default_rng(seed), options))
    except Exception as error:  # noqa: BLE001 - every failure is a row of the report
        row["error"] = f"{type(error).__name__}: {error}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
    row["seconds"] = time.process_time() - start
    return row


def figures(cif: str, symprec: float, rng: np.random.Generator, options: argparse.Namespace) -> dict[str, Any]:
    import moyopy

    from mat2seq_hf.canonical import canonicalize
    from mat2seq_hf.cell import read_cell
    from mat2seq_hf.evaluation.displacement import displacement_bound, superposition
    from mat2seq_hf.evaluation.equivalents import equivalent_arrays
    from mat2seq_hf.fixed_point import TIGHT
    from mat2seq_hf.reduction import primitive_cell

    def encode(crystal: Any) -> Any:
        return canonicalize(crystal, symprec, options.detector)

    cell = read_cell(cif)
    given = cell.lattice, cell.positions, cell.numbers
    crystal = encode(cif)
    others = [
        encode(equivalent_arrays(given, rng, max_supercell=8, max_entry=3)).text for _ in range(options.equivalents)
    ]
    structure = crystal.to_structure()
    decoded = structure.lattice.matrix, structure.frac_coords, np.array(structure.atomic_numbers)
    mirror = encode((given[0] * np.array([-1.0, 1.0, 1.0]), given[1], given[2]))
    found = moyopy.MoyoDataset(moyopy.Cell(*(np.asarray(part).tolist() for part in decoded)), symprec=1e-4)
    bound = displacement_bound(crystal, symprec)
    primitive = primitive_cell(cell, TIGHT)  # the superposition tries fewer cells then
    smallest = primitive.lattice, primitive.positions, primitive.numbers
    return {
        "text": crystal.text,
        "atoms_given": len(primitive),
        "atoms": len(decoded[2]),
        "equal": sum(other == crystal.text for other in others),
        "other": next((other for other in others if other != crystal.text), None),
        "idempotent": encode(decoded) == crystal,
        "composition": reduced(given[2]) == reduced(decoded[2]),
        "density_ratio": density(decoded[0], decoded[2]) / density(given[0], given[2]),
        "number": crystal.space_group_number,
        "redetected": found.number,
        "mirror_number": mirror.space_group_number,
        "mirror_same": mirror.text == crystal.text,
        "displacement": superposition(smallest, decoded, bound / 4, slack=0.02 + symprec),
        "bound": bound,
    }


def part_of(task: tuple[Path, list[tuple[str, str, int]], float, argparse.Namespace]) -> int:
    """Measure one part and write it; returns how many crystals it had."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    def too_long(*_: Any) -> None:
        raise TimeoutError(f"more than {options.timeout:g} s")

    path, rows, symprec, options = task
    signal.signal(signal.SIGALRM, too_long)
    measured = [measure(name, cif, symprec, [options.seed, number], options) for name, cif, number in rows]
    partial = path.with_suffix(".partial")
    pq.write_table(pa.Table.from_pylist(measured), partial, compression="zstd")
    partial.replace(path)
    return len(rows)


def run(options: argparse.Namespace) -> None:
    import pandas as pd

    tasks = []
    for symprec in options.symprec:
        for split in options.splits:
            table = pd.read_parquet(options.data / f"{split}.parquet", columns=["material_id", "cif"])
            if 0 < options.crystals < len(table):
                table = table.sample(options.crystals, random_state=options.seed)
            folder = options.output / f"{split.replace('/', '-')}-{symprec:g}"
            folder.mkdir(parents=True, exist_ok=True)
            rows = [(str(name), cif, int(number)) for number, name, cif in table.itertuples()]
            for start in range(0, len(rows), options.part):
                path = folder / f"{start:06d}.parquet"
                if not path.exists():
                    tasks.append((path, rows[start : start + options.part], symprec, options))
    total = sum(len(rows) for _, rows, _, _ in tasks)
    with ProcessPoolExecutor(options.processes) as pool, tqdm(total=total, unit="crystal", smoothing=0.05) as bar:
        for count in pool.map(part_of, tasks):
            bar.update(count)


def summary_of(rows: list[dict[str, Any]]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Figures of one split at one symprec, and the rows that break a law, with the law's name."""
    from mat2seq_hf.operations import is_sohncke

    failures, good = [], []
    for row in rows:
        if row["error"]:
            failures.append({"law": "encoded", **row})
            continue
        good.append(row)
        chiral = row["mirror_same"] is False
        expected = ENANTIOMORPHS.get(row["number"], row["number"])
        laws = {
            "unique": row["other"] is None,
            "idempotent": row["idempotent"],
            "composition": row["composition"],
            "density": abs(row["density_ratio"] - 1) < 0.01 + 3 * row["symprec"],
            "space group": row["redetected"] == row["number"],
            "handedness": row["mirror_number"] == expected and chiral == is_sohncke(row["number"]),
            "displacement": row["displacement"] <= row["bound"],
        }
        failures += [{"law": law, **row} for law, holds in laws.items() if not holds]
    count = Counter(failure["law"] for failure in failures)
    moved = [row["displacement"] for row in good]
    summary = {
        "crystals": len(rows),
        "failures": {law: count[law] for law in LAWS},
        "chiral": sum(not row["mirror_same"] for row in good),
        "shrunk": sum(row["atoms"] < row["atoms_given"] for row in good),
        "largest_displacement": float(np.nanmax(moved)) if moved else None,
        "largest_density_change": max((abs(row["density_ratio"] - 1) for row in good), default=None),
        "encodings": sum(6 for _ in good),
        "slowest_seconds": max(row["seconds"] for row in rows),
    }
    return summary, failures


LAWS = ("encoded", "unique", "idempotent", "composition", "density", "space group", "handedness", "displacement")


def rows_at(folder: Path, symprec: float) -> list[dict[str, Any]]:
    """All rows of the sweep at one symprec, each with its split."""
    import pyarrow.parquet as pq

    rows = []
    for part in sorted(folder.glob(f"*-{symprec:g}")):
        split = part.name.removesuffix(f"-{symprec:g}").replace("-", "/")
        for path in sorted(part.glob("*.parquet")):
            rows += [{"split": split, **row} for row in pq.read_table(path).to_pylist()]
    return rows


def collisions(options: argparse.Namespace) -> None:
    """Crystals with one text: is it the same crystal, and how far apart are the atoms of the two originals?"""
    import pandas as pd

    from mat2seq_hf.canonical import CanonicalCrystal
    from mat2seq_hf.cell import read_cell
    from mat2seq_hf.evaluation.displacement import superposition
    from mat2seq_hf.fixed_point import TIGHT
    from mat2seq_hf.reduction import primitive_cell

    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows_at(options.output, options.symprec):
        if not row["error"]:
            groups.setdefault(row["text"], []).append(row)
    shared = [members for members in groups.values() if len(members) > 1]
    splits = {row["split"] for members in shared for row in members}
    cifs = {
        (split, str(name)): cif
        for split in splits
        for name, cif in pd.read_parquet(options.data / f"{split}.parquet", columns=["material_id", "cif"]).to_numpy()
    }

    def arrays(row: dict[str, Any]) -> Any:
        cell = primitive_cell(read_cell(cifs[row["split"], row["id"]]), TIGHT)
        return cell.lattice, cell.positions, cell.numbers

    def apart(row: dict[str, Any], other: dict[str, Any]) -> float:
        slack = 0.02 + options.symprec
        if row["atoms_given"] == other["atoms_given"] == row["atoms"]:
            return superposition(arrays(row), arrays(other), (row["bound"] + other["bound"]) / 4, slack)
        # Symprec makes the cell smaller, so both are held against the crystal that the text describes.
        structure = CanonicalCrystal.from_text(row["text"]).to_structure()
        decoded = structure.lattice.matrix, structure.frac_coords, np.array(structure.atomic_numbers)
        return sum(superposition(arrays(side), decoded, side["bound"] / 4, slack) for side in (row, other))

    pairs, distances, others = 0, [], []
    for members in tqdm(shared, unit="text"):
        for row in members[1:]:
            pairs += 1
            bound = members[0]["bound"] + row["bound"]
            distance = apart(members[0], row)
            if distance <= bound:
                distances.append(distance)
            else:
                others.append({"first": members[0]["id"], "second": row["id"], "distance": distance, "bound": bound})
    record = {
        "crystals": sum(map(len, groups.values())),
        "texts": len(groups),
        "pairs_with_one_text": pairs,
        "the_same_crystal": len(distances),
        "largest_distance": max(distances, default=None),
        "other_pairs": others,
    }
    write_record(options, "collisions", record)


def chirality(options: argparse.Namespace) -> None:
    """Crystals whose mirror image has another text: can the two be superposed after all?"""
    from mat2seq_hf.canonical import CanonicalCrystal
    from mat2seq_hf.evaluation.displacement import superposition

    chiral = [row for row in rows_at(options.output, options.symprec) if not row["error"] and not row["mirror_same"]]
    congruent, misfits = [], []
    for row in tqdm(chiral, unit="crystal"):
        structure = CanonicalCrystal.from_text(row["text"]).to_structure()
        crystal = structure.lattice.matrix, structure.frac_coords, np.array(structure.atomic_numbers)
        mirrored = crystal[0] * np.array([-1.0, 1.0, 1.0]), crystal[1], crystal[2]
        misfit = superposition(crystal, mirrored, within=1e-3)
        misfits.append(misfit)
        if misfit <= 1e-3:
            congruent.append({"id": row["id"], "text": row["text"], "misfit": misfit})
    record = {
        "crystals_with_another_mirror_image": len(chiral),
        "no_superposition_at_all": int(np.isnan(misfits).sum()),
        "smallest_misfit": float(np.nanmin(misfits)) if misfits else None,
        "congruent_all_the_same": congruent,
    }
    write_record(options, "chirality", record)


def write_record(options: argparse.Namespace, name: str, record: dict[str, Any]) -> None:
    options.results.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"symprec": options.symprec, **record}, indent=1)
    (options.results / f"{name}.json").write_text(text + "\n")
    print(text[:3000])


def report(options: argparse.Namespace) -> None:
    import pyarrow.parquet as pq

    options.results.mkdir(parents=True, exist_ok=True)
    summaries, failures = {}, []
    for folder in sorted(path for path in options.output.iterdir() if path.is_dir()):
        rows = [row for path in sorted(folder.glob("*.parquet")) for row in pq.read_table(path).to_pylist()]
        if rows:
            summaries[folder.name], failed = summary_of(rows)
            failures += [{"part": folder.name, **row} for row in failed]
    (options.results / "summary.json").write_text(json.dumps(summaries, indent=1) + "\n")
    with (options.results / "failures.jsonl").open("w") as stream:
        stream.writelines(json.dumps(row) + "\n" for row in failures)
    lines = [
        "| split and symprec | crystals | "
        + " | ".join(LAWS)
        + " | chiral | cells made smaller | largest displacement (A) |"
    ]
    lines.append("|---" * (len(LAWS) + 5) + "|")
    for name, item in summaries.items():
        laws = [f"{100 * (1 - item['failures'][law] / item['crystals']):.4g} %" for law in LAWS]
        largest = "" if item["largest_displacement"] is None else f"{item['largest_displacement']:.4f}"
        cells = [name, item["crystals"], *laws, item["chiral"], item["shrunk"], largest]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    (options.results / "table.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
    for failure in failures[:20]:
        print(failure["law"], failure["part"], failure["id"], failure["error"] or "")


def main() -> None:
    options = parse_arguments()
    {"run": run, "report": report, "collisions": collisions, "chirality": chirality}[options.command](options)


if __name__ == "__main__":
    main()
