"""The chemical elements in the order in which they stand in a sequence.

Order: Pauling electronegativity ascending, as tabulated by pymatgen (``Element.X``); equal values, and the elements
without one, which come last, by atomic number.
"""

from __future__ import annotations

__all__ = ["ATOMIC_NUMBERS", "ELEMENTS", "ORDER", "SYMBOL_OF"]

# fmt: off
ELEMENTS: tuple[str, ...] = (
    "Fr", "Cs", "K", "Rb", "Ba", "Ra", "Na", "Sr", "Li", "Ca", "La", "Tb", "Yb", "Ac", "Ce", "Pr", "Pm", "Nd",
    "Sm", "Eu", "Gd", "Y", "Dy", "Ho", "Er", "Tm", "Lu", "Pu", "Hf", "Th", "Am", "Cm", "Bk", "Cf", "Es", "Fm",
    "Md", "No", "Lr", "Mg", "Zr", "Sc", "Np", "U", "Ta", "Pa", "Ti", "Mn", "Be", "Nb", "Al", "Tl", "V", "Zn", "Cr",
    "Cd", "In", "Ga", "Fe", "Co", "Si", "Cu", "Tc", "Re", "Ni", "Ag", "Sn", "Hg", "Po", "Ge", "Bi", "B", "Sb",
    "Te", "Mo", "As", "P", "H", "Ru", "Pd", "Os", "Ir", "At", "Rn", "Rh", "Pt", "Pb", "W", "Au", "C", "Se", "S",
    "Xe", "I", "Br", "Kr", "N", "Cl", "O", "F", "He", "Ne", "Ar", "Rf", "Db", "Sg", "Bh", "Hs", "Mt", "Ds", "Rg",
    "Cn", "Nh", "Fl", "Mc", "Lv", "Ts", "Og",
)

_BY_ATOMIC_NUMBER: tuple[str, ...] = (
    "H", "He", "Li", "Be", "B", "C", "N", "O", "F", "Ne", "Na", "Mg", "Al", "Si", "P", "S", "Cl", "Ar", "K",
    "Ca", "Sc", "Ti", "V", "Cr", "Mn", "Fe", "Co", "Ni", "Cu", "Zn", "Ga", "Ge", "As", "Se", "Br", "Kr", "Rb",
    "Sr", "Y", "Zr", "Nb", "Mo", "Tc", "Ru", "Rh", "Pd", "Ag", "Cd", "In", "Sn", "Sb", "Te", "I", "Xe", "Cs",
    "Ba", "La", "Ce", "Pr", "Nd", "Pm", "Sm", "Eu", "Gd", "Tb", "Dy", "Ho", "Er", "Tm", "Yb", "Lu", "Hf", "Ta",
    "W", "Re", "Os", "Ir", "Pt", "Au", "Hg", "Tl", "Pb", "Bi", "Po", "At", "Rn", "Fr", "Ra", "Ac", "Th", "Pa",
    "U", "Np", "Pu", "Am", "Cm", "Bk", "Cf", "Es", "Fm", "Md", "No", "Lr", "Rf", "Db", "Sg", "Bh", "Hs", "Mt",
    "Ds", "Rg", "Cn", "Nh", "Fl", "Mc", "Lv", "Ts", "Og",
)
# fmt: on

#: Rank of a symbol in the sequence.
ORDER: dict[str, int] = {symbol: rank for rank, symbol in enumerate(ELEMENTS)}

#: Atomic number of a symbol.
ATOMIC_NUMBERS: dict[str, int] = {symbol: z for z, symbol in enumerate(_BY_ATOMIC_NUMBER, start=1)}

#: Symbol of an atomic number.
SYMBOL_OF: dict[int, str] = {z: symbol for symbol, z in ATOMIC_NUMBERS.items()}
