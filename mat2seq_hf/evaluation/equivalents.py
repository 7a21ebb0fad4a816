"""Other descriptions of the same crystal: what a unique canonical form must not notice."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from pymatgen.core import Structure

__all__ = ["KINDS", "mirror_image", "random_equivalent"]

#: The changes of description, in the order in which they are applied.
KINDS = ("supercell", "basis", "translation", "permutation", "rotation")


def _random_supercell(rng: np.random.Generator, limit: int) -> NDArray[np.int64]:
    """Hermite normal form of a random determinant from 2 to ``limit``."""
    determinant = int(rng.integers(2, limit + 1))
    divisors = [d for d in range(1, determinant + 1) if determinant % d == 0]
    a = int(rng.choice(divisors))
    b = int(rng.choice([d for d in divisors if (determinant // a) % d == 0]))
    c = determinant // (a * b)
    below = [int(rng.integers(0, size)) for size in (b, c, c)]
    return np.array([[a, 0, 0], [below[0], b, 0], [below[1], below[2], c]], dtype=np.int64)


def _random_unimodular(rng: np.random.Generator, limit: int) -> NDArray[np.int64]:
    """Random integer matrix with entries up to ``limit`` in size and determinant +1 or -1."""
    while True:
        matrix = rng.integers(-limit, limit + 1, (3, 3))
        if abs(round(float(np.linalg.det(matrix)))) == 1:
            return matrix


def _random_rotation(rng: np.random.Generator) -> NDArray[np.float64]:
    """Rotation matrix, uniform over SO(3) (orthogonal factor of a Gaussian matrix)."""
    q, r = np.linalg.qr(rng.normal(size=(3, 3)))
    q = q * np.sign(np.diag(r))
    return q if np.linalg.det(q) > 0 else -q


def _rebased(structure: Structure, matrix: NDArray[np.int64]) -> Structure:
    """The crystal in the basis ``matrix @ lattice``, atoms repeated as often as its volume grows."""
    from pymatgen.core import Lattice, Structure

    inverse = np.linalg.inv(matrix)
    size = abs(round(float(np.linalg.det(matrix))))
    reach = int(np.abs(matrix).sum())
    # The lattice points inside the new cell: cosets of the integer vectors modulo the rows of the matrix.
    grid = np.stack(np.meshgrid(*[np.arange(reach + 1)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    cosets = np.unique(np.rint((grid @ inverse) * size).astype(np.int64) % size, axis=0)
    shifts = cosets @ matrix / size
    coords = ((structure.frac_coords[:, None, :] + shifts[None, :, :]) @ inverse).reshape(-1, 3)
    species = [site.species for site in structure for _ in range(size)]
    return Structure(Lattice(matrix @ structure.lattice.matrix), species, coords % 1.0)


def random_equivalent(
    structure: Structure,
    rng: np.random.Generator,
    kinds: tuple[str, ...] = KINDS,
    max_supercell: int = 4,
    max_entry: int = 2,
) -> Structure:
    """The same crystal, described differently.

    Args:
        structure: an ordered pymatgen Structure.
        kinds: which of :data:`KINDS` to apply.
        max_supercell: largest supercell; each has from 2 to this many cells.
        max_entry: largest entry of the unimodular change of basis (left-handed bases occur).
    """
    from pymatgen.core import Lattice, Structure

    if "supercell" in kinds:
        structure = _rebased(structure, _random_supercell(rng, max_supercell))
    if "basis" in kinds:
        structure = _rebased(structure, _random_unimodular(rng, max_entry))
    lattice, species, coords = structure.lattice.matrix, [site.species for site in structure], structure.frac_coords
    if "translation" in kinds:
        coords = coords + rng.uniform(-3, 3, 3)
    if "permutation" in kinds:
        order = rng.permutation(len(species))
        species, coords = [species[index] for index in order], coords[order]
    if "rotation" in kinds:
        lattice = lattice @ _random_rotation(rng).T
    return Structure(Lattice(lattice), species, coords)


def mirror_image(structure: Structure) -> Structure:
    """The crystal reflected in the plane x = 0."""
    from pymatgen.core import Lattice, Structure

    lattice = structure.lattice.matrix * np.array([-1.0, 1.0, 1.0])
    return Structure(Lattice(lattice), [site.species for site in structure], structure.frac_coords)
