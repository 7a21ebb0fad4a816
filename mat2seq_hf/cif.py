"""CIF text of a canonical crystal, written from its exact symmetry.

The file states the space group, its operations and one site for each orbit, so nothing is detected again and nothing
is rounded into another group: a reader that applies the operations gets the crystal of the sequence.
"""

from __future__ import annotations

import math
from fractions import Fraction

from .canonical import CanonicalCrystal
from .cif_reading import CELL_TAGS
from .errors import CrystalError
from .operations import crystal_system, group_operations, points_per_primitive

__all__ = ["cif_text"]


def _term(rotation: list[int], translation: int) -> str:
    """One coordinate of an operation: ``([-1, 0, 0], 12) -> "-x+1/2"``; translations in units of 1/24."""
    text = "".join(
        ("+" if factor > 0 else "-") + (str(abs(factor)) if abs(factor) > 1 else "") + axis
        for factor, axis in zip(rotation, "xyz", strict=True)
        if factor
    )
    return text.removeprefix("+") + (f"+{Fraction(translation, 24)}" if translation else "")


def _operations(number: int) -> list[str]:
    rotations, translations = group_operations(number)
    return [
        ",".join(_term(row, shift) for row, shift in zip(rotation, translation, strict=True))
        for rotation, translation in zip(rotations.tolist(), translations.tolist(), strict=True)
    ]


def _decimal(value: float) -> str:
    """Ten decimals without trailing zeros: a third is written so finely that readers find the special position."""
    return f"{value:.10f}".rstrip("0").rstrip(".")


def _volume(lattice: tuple[float, ...]) -> float:
    a, b, c = lattice[:3]
    x, y, z = (math.cos(math.radians(angle)) for angle in lattice[3:])
    return a * b * c * math.sqrt(1 - x * x - y * y - z * z + 2 * x * y * z)


def cif_text(crystal: CanonicalCrystal) -> str:
    """CIF of a crystal in the conventional cell of the ITA standard setting; lengths in angstrom, angles in degree.

    Args:
        crystal: any crystal, canonical or not.

    Returns:
        text of one data block with all symmetry operations (centring included) and one site for each orbit.

    Raises:
        CrystalError: the argument is something else.

    Example:
        >>> print(cif_text(CanonicalCrystal.from_text(text)).splitlines()[0])
        data_Ba1Ti1O3
    """
    if not isinstance(crystal, CanonicalCrystal):
        raise CrystalError(
            f"cif_text writes a CanonicalCrystal, not {type(crystal).__qualname__}; canonicalize() makes one of a "
            "crystal, CanonicalCrystal.from_text() of a text"
        )
    number = crystal.space_group_number
    primitives = points_per_primitive(number)
    counts = crystal.composition
    sites = [
        f"{site.element}{index} {site.element} {site.wyckoff[:-1]} {site.wyckoff[-1]} "
        + " ".join(_decimal(value) for value in site.coords)
        + " 1"
        for index, site in enumerate(crystal.sites, start=1)
    ]
    lines = [
        f"data_{crystal.formula.replace(' ', '')}",
        # of the conventional cell, elements in alphabetic order as CIF asks
        f"_chemical_formula_sum '{' '.join(f'{name}{count * primitives}' for name, count in sorted(counts.items()))}'",
        *(f"{tag} {_decimal(value)}" for tag, value in zip(CELL_TAGS, crystal.lattice, strict=True)),
        f"_cell_volume {_volume(crystal.lattice):.4f}",
        f"_cell_formula_units_Z {primitives * math.gcd(*counts.values())}",
        f"_space_group_crystal_system {crystal_system(number)}",
        f"_space_group_IT_number {number}",
        f"_symmetry_Int_Tables_number {number}",
        f"_symmetry_space_group_name_H-M '{crystal.space_group}'",
        "loop_",
        "_space_group_symop_id",
        "_space_group_symop_operation_xyz",
        *(f"{index} '{operation}'" for index, operation in enumerate(_operations(number), start=1)),
        "loop_",
        "_atom_site_label",
        "_atom_site_type_symbol",
        "_atom_site_symmetry_multiplicity",
        "_atom_site_Wyckoff_symbol",
        "_atom_site_fract_x",
        "_atom_site_fract_y",
        "_atom_site_fract_z",
        "_atom_site_occupancy",
        *sites,
    ]
    return "\n".join(lines) + "\n"
