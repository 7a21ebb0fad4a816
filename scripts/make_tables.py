"""Generate ``mat2seq_hf/tables.py``: space-group symbols, Hall numbers and Wyckoff positions.

The facts are those of International Tables for Crystallography, Volume A (ITA), standard settings: unique axis b,
cell choice 1, hexagonal axes, origin choice 2. Source of the coordinate triplets: the list that ships with pyxtal
(MIT licence). Every position is checked against spglib's operations before it is written, and
``tests/test_tables.py`` checks the result against moyopy as a second source.

    pip install pyxtal spglib
    python scripts/make_tables.py
"""

from __future__ import annotations

import csv
import sys
from ast import literal_eval
from importlib.util import find_spec
from pathlib import Path

LETTERS = "abcdefghijklmnopqrstuvwxyzA"
TARGET = Path(__file__).resolve().parent.parent / "mat2seq_hf" / "tables.py"
HEADER = '''"""Space groups and Wyckoff positions in the standard settings of ITA (generated, do not edit).

Made by ``scripts/make_tables.py``. Each row: International short symbol, Hall number of the standard setting (as
numbered by spglib), and the Wyckoff positions from letter a upwards as ``multiplicity letter:first triplet``.
Row i describes space group number i + 1.
"""

from __future__ import annotations

__all__ = ["ROWS"]

# fmt: off
ROWS: tuple[tuple[str, int, str], ...] = (
'''


def standard_halls() -> dict[int, tuple[int, str]]:
    """Hall number and short symbol of the ITA standard setting of each space group."""
    import spglib

    found: dict[int, dict[str, tuple[int, str]]] = {}
    for hall in range(1, 531):
        kind = spglib.get_spacegroup_type(hall)
        found.setdefault(kind.number, {}).setdefault(kind.choice, (hall, kind.international_short))
    chosen = {}
    for number, settings in found.items():
        for choice in ("2", "H", "b1", "b", ""):
            if choice in settings:
                chosen[number] = settings[choice]
                break
    return chosen


def pyxtal_positions() -> list[list[list[str]]]:
    """For each space group the Wyckoff positions (general first), each a list of triplets."""
    spec = find_spec("pyxtal")
    if spec is None or spec.origin is None:
        sys.exit("pyxtal is needed to generate the tables: pip install pyxtal")
    path = Path(spec.origin).parent / "database" / "wyckoff_list.csv"
    with path.open() as handle:
        rows = {row[0]: row[1] for row in csv.reader(handle) if row}
    return [literal_eval(rows[str(number)]) for number in range(1, 231)]


def check(symbol: str, hall: int, text: str) -> None:
    """Stop unless each triplet's orbit under spglib's operations has the stated multiplicity."""
    import numpy as np
    import spglib

    from mat2seq_hf.wyckoff import parse_positions

    operations = spglib.get_symmetry_from_database(hall)
    rng = np.random.default_rng(0)
    for position in parse_positions(text):
        parameters = rng.uniform(0.05, 0.45, 3)
        point = position.matrix @ parameters + position.offset
        orbit = operations["rotations"] @ point + operations["translations"]
        orbit = {tuple(np.round(image % 1.0, 6) % 1.0) for image in orbit}
        if len(orbit) != position.multiplicity:
            sys.exit(f"{symbol} {position}: orbit has {len(orbit)} points")


def main() -> None:
    halls = standard_halls()
    lines = [HEADER]
    for number, positions in enumerate(pyxtal_positions(), start=1):
        hall, symbol = halls[number]
        words = []
        for letter, triplets in zip(LETTERS, reversed(positions), strict=False):
            words.append(f"{len(triplets)}{letter}:{triplets[0].replace(' ', '')}")
        text = " ".join(words)
        check(symbol, hall, text)
        lines.append(f'    ("{symbol}", {hall}, "{text}"),\n')
    lines.append(")\n")
    TARGET.write_text("".join(lines))


if __name__ == "__main__":
    main()
