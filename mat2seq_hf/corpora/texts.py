"""Crystals as texts: CIF and POSCAR as they are, everything else as JSON; and the ordering of disordered ones.

Rows of a corpus travel between processes and into hashes as text. JSON is read here by hand: a general decoder would
import whatever class a file names.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from ..cell import is_cif
from ..cif_reading import read_plain_cif
from ..cif_symmetry import with_operations
from ..elements import SYMBOL_OF
from ..errors import CrystalError

if TYPE_CHECKING:
    from pymatgen.core import Structure

__all__ = ["ON_DISORDER", "checked_columns", "crystal_of", "is_disordered", "json_text", "ordered", "spans_volume"]

#: What to do with partial occupancy: stop, set the crystal aside with a reason, or let pymatgen order it.
ON_DISORDER = ("error", "set_aside", "order")


def json_text(lattice: Any, numbers: Any, frac_coords: Any) -> str:
    """JSON text of cell vectors (angstrom, rows), atomic numbers and fractional coordinates."""
    columns = {
        "lattice": np.asarray(lattice, dtype=np.float64).tolist(),
        "numbers": np.asarray(numbers, dtype=np.int64).tolist(),
        "frac_coords": np.asarray(frac_coords, dtype=np.float64).tolist(),
    }
    return json.dumps(columns, separators=(",", ":"))


def spans_volume(lattices: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether cell vectors, shape (n, 3, 3), are finite and independent; shape (n,)."""
    with np.errstate(all="ignore"):
        lengths = np.linalg.norm(lattices, axis=2)
        volumes = np.abs(np.linalg.det(lattices))
        flat = (volumes < 1e-9 * lengths.prod(axis=1)) | (lengths.min(axis=1) < 1e-3)
    sound: NDArray[np.bool_] = np.isfinite(lattices).all(axis=(1, 2)) & np.isfinite(volumes) & ~flat
    return sound


def checked_columns(data: Mapping[str, Any]) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.float64]]:
    """Cell vectors (3, 3), atomic numbers (n,) and fractional coordinates (n, 3) of a crystal given as columns.

    Raises:
        CrystalError: they are no finite numbers of these shapes, the cell is flat, or a number is no element's.
    """
    try:
        lattice, numbers, coords = (
            np.array(data[name], dtype=np.float64) for name in ("lattice", "numbers", "frac_coords")
        )
    except (TypeError, ValueError, OverflowError) as error:
        raise CrystalError(f"lattice, numbers and frac_coords are not all arrays of numbers: {error}") from error
    if lattice.shape != (3, 3) or numbers.ndim != 1 or not len(numbers) or coords.shape != (len(numbers), 3):
        raise CrystalError(
            f"lattice {lattice.shape}, numbers {numbers.shape} and frac_coords {coords.shape} are no crystal; "
            "give the shapes (3, 3), (n,) and (n, 3), with at least one atom"
        )
    wrong = ~((numbers >= 1) & (numbers <= 118) & (numbers % 1 == 0))
    if wrong.any():
        raise CrystalError(f"{numbers[wrong][0]:g} is no atomic number of an element; numbers run from 1 to 118")
    if not np.isfinite(coords).all():
        site = int((~np.isfinite(coords)).any(axis=1).argmax())
        raise CrystalError(f"site {site}: non-finite coordinates {coords[site].tolist()}; mend or remove the site")
    if not spans_volume(lattice[None])[0]:
        raise CrystalError(
            f"the cell vectors {lattice.tolist()} span no volume; a crystal needs three independent ones"
        )
    return lattice, numbers.astype(np.int64), coords


def _species(site: Mapping[str, Any]) -> dict[str, float]:
    species: dict[str, float] = {}
    for entry in site["species"]:
        symbol = str(entry["element"])
        species[symbol] = species.get(symbol, 0.0) + float(entry.get("occu", 1.0))
    return species


def _structure(data: Mapping[str, Any]) -> Structure:
    from pymatgen.core import Composition, Lattice, Structure

    if "lattice" in data and "numbers" in data and "frac_coords" in data:
        matrix, numbers, coords = checked_columns(data)
        return Structure(Lattice(matrix), [SYMBOL_OF[number] for number in numbers.tolist()], coords)
    lattice = data["lattice"]
    pbc = tuple(bool(flag) for flag in lattice.get("pbc", (True, True, True)))
    sites = data["sites"]
    compositions = [Composition(_species(site)) for site in sites]
    positions = np.asarray([site["abc"] for site in sites], dtype=np.float64).reshape(-1, 3)
    box = Lattice(np.asarray(lattice["matrix"], dtype=np.float64), (pbc[0], pbc[1], pbc[2]))
    return Structure(box, compositions, positions)


def crystal_of(text: str) -> Any:
    """What ``canonicalize`` takes: JSON as a pymatgen ``Structure``, any other text as it is.

    Args:
        text: CIF, POSCAR, JSON of ``Structure.as_dict()``, or JSON of ``lattice``, ``numbers`` and ``frac_coords``.

    Raises:
        CrystalError: JSON that holds no structure.
    """
    if not text.lstrip().startswith("{"):
        return text
    try:
        data = json.loads(text)
        return _structure(data.get("structure", data))
    except CrystalError:
        raise
    except Exception as error:  # pymatgen and numpy raise nearly every type on nonsense
        raise CrystalError(
            f"the JSON holds no structure ({type(error).__name__}: {error}); give pymatgen's Structure.as_dict(), "
            "or lattice, numbers and frac_coords"
        ) from error


def _parsed(text: str) -> Structure | None:
    """The text as a structure that may be disordered, or None where pymatgen cannot read it."""
    from pymatgen.core import Structure

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            crystal = crystal_of(text)
            if isinstance(crystal, str) and is_cif(crystal):
                read_plain_cif(crystal)  # refuses cells with too many sites, all pairs of which pymatgen compares
                crystal = with_operations(crystal)
            return (
                crystal
                if not isinstance(crystal, str)
                else Structure.from_str(crystal, fmt="cif" if is_cif(crystal) else "poscar")
            )
        except Exception:  # noqa: BLE001 - the parsers raise nearly every type; the caller knows the reason already
            return None


def is_disordered(text: str) -> bool:
    """Whether a text is a crystal with partial occupancy."""
    structure = _parsed(text)
    return structure is not None and not structure.is_ordered


def ordered(text: str) -> Structure:
    """An ordered crystal of a text with partial occupancy: that of lowest Ewald energy in the given cell.

    pymatgen's ``OrderDisorderedStructureTransformation``, with oxidation states guessed where there are none.

    Raises:
        CrystalError: the occupancies do not make whole atoms in this cell, or pymatgen cannot order it.
    """
    from pymatgen.transformations.standard_transformations import OrderDisorderedStructureTransformation

    structure = _parsed(text)
    if structure is None:
        raise CrystalError("pymatgen cannot read the text; mend it")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            if not any(getattr(kind, "oxi_state", None) for kind in structure.composition):
                structure.add_oxidation_state_by_guess()
            result = cast("Structure", OrderDisorderedStructureTransformation().apply_transformation(structure))
            result.remove_oxidation_states()
        except Exception as error:
            raise CrystalError(
                f"pymatgen cannot order it ({type(error).__name__}: {error}); give a supercell in which the "
                "occupancies make whole atoms"
            ) from error
    if not result.is_ordered:
        raise CrystalError("vacancies or occupancies are left after ordering; give an ordered structure")
    return result
