"""Made-up crystals of every space group, with sites on general and special positions."""

from __future__ import annotations

import numpy as np
from pymatgen.core import Lattice, Structure

from mat2seq_hf.operations import crystal_system, group_operations, is_sohncke
from mat2seq_hf.wyckoff import SYMBOLS, wyckoff_positions

#: The 65 groups without mirror planes, inversion or rotoinversions: their crystals can be chiral.
SOHNCKE = tuple(number for number in range(1, 231) if is_sohncke(number))

#: Groups that come in mirror-image pairs.
ENANTIOMORPHIC_PAIRS = (
    (76, 78), (91, 95), (92, 96), (144, 145), (151, 153), (152, 154), (169, 170), (171, 172), (178, 179), (180, 181),
    (212, 213),
)  # fmt: skip


def random_lattice(number: int, rng: np.random.Generator, scale: float = 1.0) -> Lattice:
    """A lattice of the group's crystal system, in the standard setting, without accidental symmetry."""
    a, b, c = scale * rng.uniform(6.0, 7.0), scale * rng.uniform(7.5, 8.5), scale * rng.uniform(9.0, 10.5)
    system = crystal_system(number)
    if system == "triclinic":
        return Lattice.from_parameters(a, b, c, *rng.uniform(70, 85, 3))
    if system == "monoclinic":
        return Lattice.monoclinic(a, b, c, rng.uniform(95, 110))
    if system == "orthorhombic":
        return Lattice.orthorhombic(a, b, c)
    if system == "tetragonal":
        return Lattice.tetragonal(a, c)
    if system in ("trigonal", "hexagonal"):
        return Lattice.hexagonal(a, c)
    return Lattice.cubic(c)


def random_crystal(
    number: int, rng: np.random.Generator, lattice: Lattice | None = None, special: int = 2, apart: float = 0.8
) -> Structure:
    """One orbit on the general position and ``special`` more on random positions, like elements included.

    The general orbit keeps the space group from rising. Orbits nearer than ``apart`` (angstrom) are drawn again.
    """
    rotations, translations = group_operations(number)
    positions = wyckoff_positions(number)
    lattice = lattice or random_lattice(number, rng, scale=1.0 if len(rotations) <= 48 else 1.6)
    for _ in range(500):
        chosen = [positions[-1], *(positions[int(rng.integers(len(positions)))] for _ in range(special))]
        species: list[str] = []
        coords: list[np.ndarray] = []
        for index, position in enumerate(chosen):
            point = position.matrix @ rng.uniform(0.03, 0.97, 3) + position.offset
            images = (rotations @ point + translations / 24) % 1
            images = np.array(sorted({tuple(row) for row in np.round(images, 9) % 1}))
            species += ["Si", "O", "O"][index : index + 1] * len(images) if index < 3 else ["F"] * len(images)
            coords += list(images)
        structure = Structure(lattice, species, coords)
        distances = structure.distance_matrix + np.eye(len(structure)) * 100
        if distances.min() > apart:
            return structure
    raise AssertionError(f"no crystal of {SYMBOLS[number - 1]} without overlaps was found")


def cif_of(structure: Structure) -> str:
    """The text that pymatgen writes."""
    return str(structure.to(fmt="cif"))
