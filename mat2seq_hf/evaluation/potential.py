"""Energies and relaxations with a machine-learned potential: CHGNet, or any ASE calculator."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import Mat2SeqError
from .crystals import read_structure
from .plugins import load_function

if TYPE_CHECKING:
    from pymatgen.core import Structure

__all__ = [
    "CHGNET",
    "RelaxSettings",
    "Relaxed",
    "load_calculator",
    "potential_name",
    "relax",
    "single_point",
    "single_points",
]

CHGNET = "chgnet"


@dataclass(frozen=True)
class RelaxSettings:
    """How a crystal is relaxed, atoms and cell.

    Attributes:
        calculator: ``"chgnet"`` or ``"module:function"``, a function without arguments that returns an ASE calculator.
        fmax: forces (eV/angstrom) below which it has converged.
        steps: after which it ends without.
    """

    calculator: str = CHGNET
    fmax: float = 0.1
    steps: int = 200


@dataclass(frozen=True)
class Relaxed:
    """Result of a relaxation: CIF text, energy (eV/atom), whether the forces converged, and after how many steps."""

    cif: str
    energy_per_atom: float
    converged: bool
    steps: int


@cache
def load_calculator(name: str = CHGNET) -> Any:
    """An ASE calculator, loaded once in a process.

    Args:
        name: see :class:`RelaxSettings`.

    Raises:
        Mat2SeqError: it is not installed or cannot be found.

    Example:
        >>> load_calculator("ase.calculators.lj:LennardJones")  # doctest: +SKIP
    """
    if name == CHGNET:
        try:
            from chgnet.model.dynamics import CHGNetCalculator
        except ImportError as error:
            raise Mat2SeqError(f"CHGNet is not installed ({error}): pip install 'mat2seq-hf[stability]'") from error
        import contextlib
        import io

        with contextlib.redirect_stdout(io.StringIO()):  # it announces its version and device
            return CHGNetCalculator()
    return load_function(name, kind="calculator", others=f"{CHGNET!r}")()


def potential_name(name: str) -> str:
    """Name, of CHGNet with its version, under which energies are kept; what it stands for is not looked into."""
    if name != CHGNET:
        return name
    from importlib.metadata import version

    return f"chgnet {version('chgnet')}"


def _atoms(structure: Structure, calculator: str) -> Any:
    from pymatgen.io.ase import AseAtomsAdaptor

    atoms = AseAtomsAdaptor.get_atoms(structure, msonable=False)
    atoms.calc = load_calculator(calculator)
    return atoms


def _one_thread() -> None:
    """Processes share the cores already; threads would only wait for each other."""
    import torch

    torch.set_num_threads(1)


def single_point(cif: str, calculator: str = CHGNET) -> float:
    """Energy (eV/atom) of a crystal as it is."""
    _one_thread()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        structure = read_structure(cif).get_primitive_structure(tolerance=1e-3)  # the same energy, sooner
        energy = float(_atoms(structure, calculator).get_potential_energy()) / len(structure)
    if not np.isfinite(energy):
        raise Mat2SeqError("the energy is not finite")
    return energy


def single_points(cifs: Sequence[str]) -> list[float]:
    """CHGNet's energies (eV/atom) of many crystals, in batches, for a GPU."""
    model = load_calculator(CHGNET).model
    structures = [read_structure(cif).get_primitive_structure(tolerance=1e-3) for cif in cifs]
    results = model.predict_structure(structures, task="e", batch_size=16)
    energies = [float(result["e"]) for result in (results if isinstance(results, list) else [results])]
    if not np.isfinite(energies).all():
        raise Mat2SeqError("an energy is not finite")
    return energies


def relax(cif: str, settings: RelaxSettings) -> Relaxed:
    """Relax atoms and cell.

    Raises:
        Mat2SeqError: the crystal flies apart or collapses.
    """
    from ase.filters import FrechetCellFilter
    from ase.optimize import FIRE
    from pymatgen.io.ase import AseAtomsAdaptor

    _one_thread()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        structure = read_structure(cif).get_primitive_structure(tolerance=1e-3)
        atoms = _atoms(structure, settings.calculator)
        optimizer = FIRE(FrechetCellFilter(atoms), logfile=None)
        converged = bool(optimizer.run(fmax=settings.fmax, steps=settings.steps))
        energy = float(atoms.get_potential_energy()) / len(atoms)
        ratio = float(atoms.get_volume()) / float(structure.volume)
        if not np.isfinite(energy) or not 0.1 < ratio < 10:
            raise Mat2SeqError(f"relaxation left the range of the potential: volume times {ratio:.3g}")
        text = str(AseAtomsAdaptor.get_structure(atoms).to(fmt="cif"))
    return Relaxed(text, energy, converged, int(optimizer.nsteps))
