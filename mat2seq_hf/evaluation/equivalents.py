"""Other descriptions of the same crystal: what a unique canonical form must not notice."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from pymatgen.core import Structure

__all__ = ["KINDS", "Arrays", "equivalent_arrays", "mirror_image", "random_equivalent"]

#: The changes of description, in the order in which they are applied.
KINDS = ("supercell", "basis", "translation", "permutation", "rotation")


Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Arrays = tuple[Floats, Floats, Integers]


def _random_supercell(rng: np.random.Generator, limit: int) -> Integers:
    """Hermite normal form of a random determinant from 2 to ``limit``."""
    determinant = int(rng.integers(2, limit + 1))
    divisors = [d for d in range(1, determinant + 1) if determinant % d == 0]
    a = int(rng.choice(divisors))
    b = int(rng.choice([d for d in divisors if (determinant // a) % d == 0]))
    c = determinant // (a * b)
    below = [int(rng.integers(0, size)) for size in (b, c, c)]
    return np.array([[a, 0, 0], [below[0], b, 0], [below[1], below[2], c]], dtype=np.int64)


def _random_unimodular(rng: np.random.Generator, limit: int) -> Integers:
    """Random integer matrix with entries up to ``limit`` in size and determinant +1 or -1."""
    while True:
        matrices = rng.integers(-limit, limit + 1, (64, 3, 3))
        unimodular = matrices[np.abs(np.rint(np.linalg.det(matrices))) == 1]
        if len(unimodular):
            return np.asarray(unimodular[0], dtype=np.int64)


def _random_rotation(rng: np.random.Generator) -> Floats:
    """Rotation matrix, uniform over SO(3) (orthogonal factor of a Gaussian matrix)."""
    q, r = np.linalg.qr(rng.normal(size=(3, 3)))
    q = q * np.sign(np.diag(r))
    return q if np.linalg.det(q) > 0 else -q


def equivalent_arrays(
    crystal: Arrays,
    rng: np.random.Generator,
    kinds: tuple[str, ...] = KINDS,
    max_supercell: int = 4,
    max_entry: int = 2,
) -> Arrays:
    """The same crystal, described differently.

    Args:
        crystal: lattice (rows, angstrom, shape (3, 3)), fractional coordinates (n, 3), atomic numbers (n,).
        kinds: which of :data:`KINDS` to apply.
        max_supercell: largest supercell; each has from 2 to this many cells.
        max_entry: largest entry of the unimodular change of basis (left-handed bases occur).
    """
    lattice, coords, numbers = crystal
    if "supercell" in kinds:
        matrix = _random_supercell(rng, max_supercell)
        # The matrix is triangular: lattice points of the old cell in one new cell are those below its diagonal.
        points = np.stack(np.meshgrid(*map(np.arange, np.diag(matrix)), indexing="ij"), axis=-1).reshape(-1, 3)
        coords = ((coords[:, None, :] + points) @ np.linalg.inv(matrix)).reshape(-1, 3) % 1.0
        lattice, numbers = matrix @ lattice, np.repeat(numbers, len(points))
    if "basis" in kinds:
        matrix = _random_unimodular(rng, max_entry)
        lattice, coords = matrix @ lattice, coords @ np.linalg.inv(matrix) % 1.0
    if "translation" in kinds:
        coords = coords + rng.uniform(-3, 3, 3)
    if "permutation" in kinds:
        order = rng.permutation(len(numbers))
        numbers, coords = numbers[order], coords[order]
    if "rotation" in kinds:
        lattice = lattice @ _random_rotation(rng).T
    return lattice, coords, numbers


def random_equivalent(
    structure: Structure,
    rng: np.random.Generator,
    kinds: tuple[str, ...] = KINDS,
    max_supercell: int = 4,
    max_entry: int = 2,
) -> Structure:
    """Like :func:`equivalent_arrays`, for an ordered pymatgen Structure."""
    from pymatgen.core import Lattice, Structure

    arrays = structure.lattice.matrix, structure.frac_coords, np.arange(len(structure))
    lattice, coords, sites = equivalent_arrays(arrays, rng, kinds, max_supercell, max_entry)
    return Structure(Lattice(lattice), [structure[int(site)].species for site in sites], coords)


def mirror_image(structure: Structure) -> Structure:
    """The crystal reflected in the plane x = 0."""
    from pymatgen.core import Lattice, Structure

    lattice = structure.lattice.matrix * np.array([-1.0, 1.0, 1.0])
    return Structure(Lattice(lattice), [site.species for site in structure], structure.frac_coords)
