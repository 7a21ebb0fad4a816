"""How far decoding moves atoms, measured, and how far it can."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mat2seq_hf.grid import ANGLE_UNIT, COORDINATE_GRID, LENGTH_UNIT

if TYPE_CHECKING:
    from pymatgen.core import Structure

    from mat2seq_hf.canonical import CanonicalCrystal

__all__ = ["displacement_bound", "maximal_displacement"]


def maximal_displacement(original: Structure, decoded: Structure) -> float:
    """Largest distance (angstrom) between an atom and its partner after the best superposition; nan without one.

    The lattices are superposed as they are (not scaled to equal volume), the origin is the one that makes the mean
    displacement zero.
    """
    from pymatgen.analysis.structure_matcher import StructureMatcher

    matcher = StructureMatcher(ltol=0.05, stol=0.3, angle_tol=2, scale=False)
    distances = matcher.get_rms_dist(original, decoded)
    if distances is None:
        return float("nan")
    # the matcher's unit is the cube root of the volume of an atom
    return float(distances[1] * (decoded.volume / len(decoded)) ** (1 / 3))


def displacement_bound(crystal: CanonicalCrystal, symprec: float) -> float:
    """Upper bound (angstrom) of how far an atom may lie from its place in the original crystal.

    Sum of: symmetrisation, at most 2 symprec (an atom and the origin each move by up to symprec); rounding of the
    coordinates, half a grid step along each axis, twice that where a coordinate is tied to another; rounding of
    lengths and angles over one cell diagonal.
    """
    a, b, c = crystal.lattice[:3]
    coordinates = 2 * 0.52 / COORDINATE_GRID * (a + b + c)
    lengths = 3 * 0.52 * LENGTH_UNIT
    angles = 2 * np.radians(0.52 * ANGLE_UNIT) * (a + b + c)
    return float(2 * symprec + coordinates + lengths + angles)
