"""How small displacements of all atoms change the canonical text.

Every atom is moved by the same length in a random direction. Counted are crystals whose text stays the same, stays the
same up to the last digit of its numbers, and keeps its space group and Wyckoff positions.

    python scripts/benchmark_noise.py --data ../shared/data/mp_20/test.parquet --crystals 300
    python scripts/benchmark_noise.py --data ../shared/data/mp_20/test.parquet --crystals 300 --symprec 0.1
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="parquet with a column cif")
    parser.add_argument("--crystals", type=int, default=300)
    parser.add_argument("--symprec", type=float, default=0.01)
    parser.add_argument("--noise", type=float, nargs="+", default=[1e-6, 1e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the figures here, too")
    return parser.parse_args()


def displaced(crystal: Any, length: float, rng: np.random.Generator) -> Any:
    """The crystal with each atom moved by ``length`` (angstrom) in a direction of its own."""
    lattice, coords, numbers = crystal
    moves = rng.normal(size=coords.shape)
    moves *= length / np.linalg.norm(moves, axis=1, keepdims=True)
    return lattice, coords + moves @ np.linalg.inv(lattice), numbers


def near(first: Any, second: Any) -> tuple[bool, bool]:
    """Whether two canonical crystals have the same space group and Wyckoff positions; and numbers one step apart."""
    same = first.space_group_number == second.space_group_number and [
        (site.element, site.wyckoff) for site in first.sites
    ] == [(site.element, site.wyckoff) for site in second.sites]
    if not same:
        return False, False
    lattice = np.abs(np.subtract(first.lattice, second.lattice)) / np.repeat([1e-4, 1e-2], 3)
    coords = np.subtract([site.coords for site in first.sites], [site.coords for site in second.sites]) * 9600
    coords = np.abs((coords + 4800) % 9600 - 4800)
    return True, bool(lattice.max() < 1.5 and coords.max() < 1.5)


def main() -> None:
    import pandas as pd

    from mat2seq_hf.canonical import canonicalize
    from mat2seq_hf.cell import read_cell

    options = parse_arguments()
    cifs = pd.read_parquet(options.data, columns=["cif"]).cif.sample(options.crystals, random_state=options.seed)
    cells = [read_cell(cif) for cif in cifs]
    crystals = [(cell.lattice, cell.positions, cell.numbers) for cell in cells]
    originals = [canonicalize(crystal, options.symprec) for crystal in crystals]
    rng = np.random.default_rng(options.seed)
    rows = []
    print(f"{len(crystals)} crystals of {options.data.parent.name}/{options.data.stem}, symprec {options.symprec:g} A")
    print(f"  {'noise (A)':>10s} {'same text':>10s} {'last digit':>11s} {'same space group and positions':>31s}")
    for length in options.noise:
        counts = np.zeros(3)
        for crystal, original in zip(tqdm(crystals, leave=False, desc=f"{length:g}"), originals, strict=True):
            other = canonicalize(displaced(crystal, length, rng), options.symprec)
            kept, digits = near(original, other)
            counts += [other.text == original.text, digits, kept]
        shares = (100 * counts / len(crystals)).tolist()
        rows.append(dict(zip(("noise", "same_text", "last_digit", "same_positions"), (length, *shares), strict=True)))
        print(f"  {length:10.0e} {shares[0]:9.1f}% {shares[1]:10.1f}% {shares[2]:30.1f}%")
    if options.json:
        record = {"data": f"{options.data.parent.name}/{options.data.stem}", "symprec": options.symprec, "rows": rows}
        options.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
