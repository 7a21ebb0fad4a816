"""The symmetry operations of a CIF: those it lists, or else those of the one setting that its group's name can mean.

Both readers of CIFs take them from here: a reader that looks up a name itself guesses origin and axes.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from functools import cache, lru_cache
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from .errors import CrystalError, DecodeError
from .lattice import lattice_vectors

try:
    import gemmi as _gemmi
except ImportError:  # code loaded from a Hub repo reads CIFs with pymatgen alone, slower
    gemmi: Any = None
else:
    gemmi = _gemmi

__all__ = [
    "CELL_TAGS",
    "check_metric",
    "cif_lattice",
    "cif_operations",
    "cif_string",
    "cif_tags",
    "gemmi",
    "is_magnetic",
    "stated_group",
    "unknown_group",
    "with_operations",
    "without_half_pairs",
]

Floats = NDArray[np.float64]

#: Tags of the lengths and angles of the cell.
CELL_TAGS = tuple(
    f"_cell_{name}" for name in ("length_a", "length_b", "length_c", "angle_alpha", "angle_beta", "angle_gamma")
)
# As _plain writes them, which covers the spellings of the old, the new and the dotted dictionary.
_LISTED = ("_symmetry_equiv_pos_as_xyz", "_space_group_symop_operation_xyz")
_HALL_NAMES = ("_space_group_name_hall", "_symmetry_space_group_name_hall")
_NAMES = ("_space_group_name_h_m_alt", "_symmetry_space_group_name_h_m")
_NUMBERS = ("_space_group_it_number", "_symmetry_int_tables_number")
_GROUP = re.compile(r"_(symmetry_)?space_group_(name_(h_m|hall)\w*|it_number)|_symmetry_int_tables_number")
_OPERATION = re.compile(r"[xyzXYZ+\-, ]*(?:\d/(?:2|3|4|6|8|12)[xyzXYZ+\-, ]*)*")
# Older files write the origin choices 1 and 2 as S and Z.
_SETTING = re.compile(r"(.+?)(?::?([hrsz])|:([12]))?")
_ORIGINS = {"s": "1", "z": "2"}

# Eight times those of the largest conventional cell; all pairs of images are compared.
_MAX_OPERATIONS = 1536
# What operations may change of a cell that relaxed or was rounded: 1 % of a length, half a degree of an angle.
_STRAIN = 0.02
# A cell with less than this is as symmetric as written, and decides between settings.
_EXACT = 1e-5

_REMEDY = "list its operations as _space_group_symop_operation_xyz, each as 'x, y, z'"


@lru_cache(1024)
def _plain(tag: str) -> str:
    return re.sub(r"[.\-]", "_", tag.lower()).rstrip("_")


def without_half_pairs(text: str) -> str:
    """The text with ``?`` for each half of a surrogate pair, which is no UTF-8 and which C++ and files refuse."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def cif_tags(block: Any) -> list[str]:
    """All tags of a block, of pairs and of loops."""
    tags: list[str] = []
    for item in block:
        if item.pair is not None:
            tags.append(item.pair[0])
        elif item.loop is not None:
            tags += item.loop.tags
    return tags


def cif_string(block: Any, tag: str) -> str:
    """The value of a tag without quotes, ``""`` where there is none."""
    return str(gemmi.cif.as_string(block.find_value(tag) or "?")).strip()


def cif_lattice(block: Any) -> Floats | None:
    """Lattice of a block, rows in angstrom; None where it gives none."""
    values = [gemmi.cif.as_number(block.find_value(tag) or "?") for tag in CELL_TAGS]
    if not np.isfinite(values).all() or min(values) <= 0:
        return None
    try:
        return lattice_vectors(tuple(values))
    except DecodeError:
        return None


def is_magnetic(tags: Iterable[str]) -> bool:
    """Whether the tags of a block are of magnetic symmetry, which pymatgen alone reads."""
    return any("magn" in tag.lower() for tag in tags)


def stated_group(values: Mapping[str, list[str]]) -> tuple[str, bool]:
    """Name or number of the group (``""`` for none or P1), and whether operations are listed; unquoted values."""
    stated = [(_plain(tag), value.strip()) for tag, column in values.items() for value in column]
    stated = [(tag, value) for tag, value in stated if value not in ("", "?", ".")]
    names = [value for tag, value in stated if _GROUP.fullmatch(tag) and value.replace(" ", "") not in ("P1", "1")]
    return names[0] if names else "", any(tag in _LISTED for tag, _ in stated)


def unknown_group(group: str) -> NoReturn:
    """Raise :class:`CrystalError`: the group that a CIF states cannot be read."""
    install = "install gemmi, which knows the names, or " if gemmi is None else ""
    raise CrystalError(
        f"the CIF names the space group {group!r}, but neither this name nor a list of operations can be read; "
        f"{install}{_REMEDY}"
    )


def cif_operations(block: Any, tags: list[str], lattice: Floats | None) -> tuple[Floats, Floats] | None:
    """Rotations (g, 3, 3) and translations (g, 3), each once; None where no group is given or a list is not plain.

    Args:
        tags: those of the block, of :func:`cif_tags`.
        lattice: rows (angstrom), or None, of :func:`cif_lattice`.

    Raises:
        CrystalError: the name can mean several settings, none that fits the cell, or is not known; operations change
            the cell; there are too many.
    """
    found = _operations(block, tags, lattice)
    return None if found is None else _arrays(found)


def with_operations(text: str) -> str:
    """The text for a reader other than this one: operations listed plainly, nothing that names the group instead.

    Raises:
        CrystalError: as :func:`cif_operations`.
    """
    if gemmi is None:
        return text
    try:
        document = gemmi.cif.read_string(without_half_pairs(text), 0)
    except (ValueError, RuntimeError):
        return text
    for block in document:
        tags = cif_tags(block)
        mixed = any(" + " in symbol for symbol in block.find_values("_atom_site_type_symbol"))
        # pymatgen removes the rows of mixed sites from every loop, of operations, too
        if mixed or is_magnetic(tags) or not len(block.find_values("_atom_site_fract_x")):
            continue
        found = _operations(block, tags, cif_lattice(block))
        for tag in tags:
            if _GROUP.fullmatch(_plain(tag)) or (found is not None and _plain(tag) in _LISTED):
                block.find_values(tag).erase()
        if found is not None:
            column = block.init_loop("_symmetry_equiv_pos_", ["as_xyz"])
            for operation in found:
                column.add_row([operation.triplet()])
    return str(document.as_string())


def _arrays(found: list[Any]) -> tuple[Floats, Floats]:
    rotations, shifts = zip(*((operation.rot, operation.tran) for operation in found), strict=True)
    return np.array(rotations) / gemmi.Op.DEN, np.array(shifts) / gemmi.Op.DEN


def _values(block: Any, tags: list[str], names: tuple[str, ...]) -> list[list[str]]:
    """Unquoted values of the tags of these names, in the order of the names."""
    columns = [block.find_values(tag) for name in names for tag in tags if _plain(tag) == name]
    values = [[gemmi.cif.as_string(value).strip() for value in column] for column in columns]
    return [kept for column in values if (kept := [value for value in column if value])]


def _operations(block: Any, tags: list[str], lattice: Floats | None) -> list[Any] | None:
    listed = next(iter(_values(block, tags, _LISTED)), [])
    found = _read_operations(listed) if listed else _named_operations(block, tags, lattice)
    if found is None:
        return None
    rotations, _ = _arrays(found)
    if not np.isclose(np.abs(np.linalg.det(rotations)), 1.0).all():
        return None
    if lattice is not None and len(found) > 1:
        check_metric(rotations, lattice)
    return found


def _read_operations(texts: list[str]) -> list[Any] | None:
    distinct: dict[tuple[Any, ...], Any] = {}
    different = dict.fromkeys(texts)
    for text in different:
        operation = _operation(text)
        if operation is None:
            _check_count(len(different))
            return None
        shifts = (shift % gemmi.Op.DEN for shift in operation.tran)
        distinct.setdefault((*map(tuple, operation.rot), *shifts), operation)
    _check_count(len(distinct))
    return list(distinct.values())


def _check_count(count: int) -> None:
    if count > _MAX_OPERATIONS:
        raise CrystalError(
            f"the CIF lists {count} symmetry operations, at most {_MAX_OPERATIONS} are read; list those of its "
            "conventional cell, at most 192"
        )


def _operation(text: str) -> Any:
    if text.count(",") != 2 or not _OPERATION.fullmatch(text):
        return None
    try:
        return gemmi.Op(text)
    except (ValueError, RuntimeError):
        return None


def _named_operations(block: Any, tags: list[str], lattice: Floats | None) -> list[Any] | None:
    """Operations of the one setting that a block without a list can mean; None where it states no group."""
    for symbol, *_ in _values(block, tags, _HALL_NAMES):
        try:
            return list(gemmi.symops_from_hall(symbol))
        except (ValueError, RuntimeError):  # not a Hall symbol
            continue
    names = [name for name, *_ in _values(block, tags, _NAMES)]
    stated = [(f"names the space group {name!r}", group) for name in names if (group := _settings_of_name(name))]
    if not stated:
        number = next((int(value) for value, *_ in _values(block, tags, _NUMBERS) if value.isdecimal()), 0)
        settings = _settings_of_number(number, standard=not names)
        stated = [(f"gives the space group as number {number}", settings)] if settings else []
    fitting = [_fitting(settings, lattice) for _, settings in stated]
    for settings in fitting:
        if len(settings) == 1:
            return list(settings[0].operations())
    if stated:
        words, meant = stated[0][0], ", ".join(repr(setting.xhm()) for setting in fitting[0])
        if meant:
            raise CrystalError(f"the CIF {words}, which here can mean {meant}; name one of these, or {_REMEDY}")
        cell = " ".join(cif_string(block, tag) for tag in CELL_TAGS)
        raise CrystalError(f"the CIF {words}, which does not go with its cell {cell}; mend one of them, or {_REMEDY}")
    unread, _ = stated_group({tag: [gemmi.cif.as_string(value) for value in block.find_values(tag)] for tag in tags})
    return unknown_group(unread) if unread else None


@cache
def _settings() -> dict[str, list[Any]]:
    """Settings by their names without blanks: of all origins and axes, and short monoclinic ones of all unique axes."""
    settings: dict[str, list[Any]] = defaultdict(list)
    for group in gemmi.spacegroup_table():
        words = group.hm.lower().split()
        short = [word for word in words if word != "1"] if _is_monoclinic(group.number) else words
        for name in {"".join(words), "".join(short)}:
            settings[name].append(group)
    return settings


def _is_monoclinic(number: int) -> bool:
    return 3 <= number <= 15


def _settings_of_name(name: str) -> list[Any]:
    match = _SETTING.fullmatch(re.sub(r"[\s_]", "", name).lower())
    if match is None:
        return []
    choice = _ORIGINS.get(match[2], match[2]) or match[3]
    settings = _settings().get(match[1], [])
    if not settings and (group := gemmi.find_spacegroup_by_name(match[1])) is not None:  # an old name
        settings = _settings()["".join(group.hm.lower().split())]
    return [group for group in settings if choice is None or group.ext.lower() == choice]


def _settings_of_number(number: int, standard: bool) -> list[Any]:
    """Settings of a group: all of them, or the standard one with all its origins, its axes and its unique axes.

    Where b is not the unique axis, no cell choice is the standard one.
    """
    groups = [group for group in gemmi.spacegroup_table() if group.number == number]
    name = next((group.hm for group in groups if group.is_reference_setting()), "")
    turned = [_is_monoclinic(number) and not group.qualifier.startswith("b") for group in groups]
    return [
        group for group, is_turned in zip(groups, turned, strict=True) if not standard or is_turned or group.hm == name
    ]


def _fitting(settings: list[Any], lattice: Floats | None) -> list[Any]:
    """The settings whose operations keep the cell; those that do so exactly, where there are any."""
    if lattice is None:
        return settings
    strains = [_strains(_arrays(list(group.operations()))[0], lattice).max() for group in settings]
    limit = _EXACT if min(strains) <= _EXACT else _STRAIN
    return [group for group, strain in zip(settings, strains, strict=True) if strain <= limit]


def _strains(rotations: Floats, lattice: Floats) -> Floats:
    """How much each rotation (of columns of fractions) changes the metric tensor, relative to the lengths."""
    metric = lattice @ lattice.T
    lengths = np.sqrt(np.diag(metric))
    changes = np.abs(rotations.transpose(0, 2, 1) @ metric @ rotations - metric) / np.outer(lengths, lengths)
    return np.asarray(changes.max(axis=(1, 2)))


def check_metric(rotations: Floats, lattice: Floats) -> None:
    """Raise :class:`CrystalError` where an operation does not map the lattice (rows, angstrom) onto itself."""
    strains = _strains(rotations, lattice)
    if not strains.max() <= _STRAIN:
        place = int(strains.argmax())
        raise CrystalError(
            f"symmetry operation {place + 1} of the CIF, with the rotation {rotations[place].round(4).tolist()}, does "
            "not go with its cell; mend the operations, or the lengths and angles"
        )
