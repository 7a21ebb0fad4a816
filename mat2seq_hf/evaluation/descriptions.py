"""Does a text stay the same when the crystal is described differently? For this package, CIF, and any callable."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ..canonical import canonicalize
from ..errors import Mat2SeqError
from ..sequence import scheme_fingerprint
from . import pool
from .crystals import kinds_of_reasons, read_structure
from .equivalents import KINDS, random_equivalent
from .left_out import none_readable, note_of_unreadable
from .plugins import load_function
from .ranges import check_ranges
from .schema import Figure, digest, share
from .sources import Reference

if TYPE_CHECKING:
    from pymatgen.core import Structure

__all__ = ["METHODS", "DescriptionSettings", "evaluate_descriptions", "load_method"]

_COMBINED = "all"


def _mat2seq(structure: Structure) -> str:
    return canonicalize(structure).text


def _plain_cif(structure: Structure) -> str:
    from pymatgen.io.cif import CifWriter

    return str(CifWriter(structure))


def _symmetrised_cif(structure: Structure) -> str:
    from pymatgen.io.cif import CifWriter

    return str(CifWriter(structure, symprec=0.1))


#: Descriptions that are always there.
METHODS: dict[str, Callable[[Any], str]] = {
    "mat2seq_hf": _mat2seq,
    "symmetrised_cif": _symmetrised_cif,
    "cif": _plain_cif,
}


@dataclass(frozen=True)
class DescriptionSettings:
    """What is tried.

    Attributes:
        methods: names of :data:`METHODS` or ``"module:function"``, a function from a pymatgen Structure to a text.
        crystals: how many, drawn at random; None takes all.
        equivalents: other descriptions of each kind of each crystal.
        max_supercell, max_entry: see :func:`.equivalents.random_equivalent`.
        seed: of the choice of crystals and of the transformations.
        processes, timeout, progress: see :func:`.pool.run`; the time is for all descriptions of one crystal.
    """

    methods: tuple[str, ...] = tuple(METHODS)
    crystals: int | None = 500
    equivalents: int = 5
    max_supercell: int = 4
    max_entry: int = 2
    seed: int = 0
    processes: int = 1
    timeout: float = 300.0
    progress: bool = True

    def __post_init__(self) -> None:
        check_ranges(
            self,
            above_0=["timeout"],
            from_0=["seed"],
            from_1=["crystals", "equivalents", "max_supercell", "max_entry", "processes"],
        )


@cache
def load_method(name: str) -> Callable[[Any], str]:
    """A function from a pymatgen Structure to a text.

    Raises:
        Mat2SeqError: it cannot be found.
    """
    if name in METHODS:
        return METHODS[name]
    return load_function(name, kind="method", others=f"one of {', '.join(METHODS)}")


def _unreadable(cif: str) -> str | None:
    """Why a crystal cannot be read, None if it can."""
    try:
        read_structure(cif)
    except Mat2SeqError as error:
        return str(error)
    return None


def _try(task: tuple[int, str], settings: DescriptionSettings) -> dict[tuple[str, str], bool | str]:
    """For each kind and method: whether all descriptions of one crystal gave one text, or the method's error."""
    number, cif = task
    rng = np.random.default_rng([settings.seed, number])
    limits = {"max_supercell": settings.max_supercell, "max_entry": settings.max_entry}
    found: dict[tuple[str, str], bool | str] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        structure = read_structure(cif)
        own: dict[str, str] = {}
        for kind in (*KINDS, _COMBINED):
            kinds = KINDS if kind == _COMBINED else (kind,)
            others = [random_equivalent(structure, rng, kinds, **limits) for _ in range(settings.equivalents)]
            for name in settings.methods:
                method = load_method(name)
                try:
                    if name not in own:
                        own[name] = method(structure)
                    found[kind, name] = all(method(other) == own[name] for other in others)
                except Exception as error:  # noqa: BLE001 - a failure of a method is a result, with its cause
                    found[kind, name] = f"error: {type(error).__name__}: {error}"[:300]
    return found


def evaluate_descriptions(
    references: Sequence[Reference], settings: DescriptionSettings | None = None
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Describe crystals in other ways, by kind of transformation, and compare the texts of each method.

    Args:
        references: crystals, see :func:`.sources.read_references`; those that cannot be read are counted and left out.
        settings: see :class:`DescriptionSettings`.

    Returns:
        counts, figures, reasons, tables and notes of the report, and the rows of per_sample.parquet.

    Raises:
        Mat2SeqError: a method cannot be found, or none of the drawn crystals can be read.
    """
    settings = settings or DescriptionSettings()
    for name in settings.methods:
        load_method(name)
    chosen = list(references)
    if settings.crystals is not None and settings.crystals < len(chosen):
        rng = np.random.default_rng(settings.seed)
        chosen = [chosen[place] for place in sorted(rng.choice(len(chosen), settings.crystals, replace=False).tolist())]
    options = pool.options(settings)
    read = pool.run(_unreadable, [reference.cif for reference in chosen], label="reading", **options)
    # the number of a crystal decides its transformations: it counts what is left out, too
    tasks, kept, unreadable = [], [], {}
    for number, (reference, outcome) in enumerate(zip(chosen, read, strict=True)):
        reason = outcome.value if outcome.kind == "ok" else f"{outcome.kind} while reading"
        if reason is None:
            tasks.append((number, reference.cif))
            kept.append(reference)
        else:
            unreadable[reference.id] = reason
    if not kept:
        raise Mat2SeqError(none_readable(unreadable))
    outcomes = pool.run(partial(_try, settings=settings), tasks, label="describing", **options)
    rows: list[dict[str, Any]] = []
    for reference, outcome in zip(kept, outcomes, strict=True):
        for kind in (*KINDS, _COMBINED):
            for name in settings.methods:
                answer = outcome.value[kind, name] if outcome.value is not None else outcome.kind
                rows.append(
                    {
                        "prompt_id": reference.id,
                        "kind": kind,
                        "method": name,
                        "same": answer is True,
                        "outcome": answer if isinstance(answer, str) else "ok",
                    }
                )
    figures: dict[str, Figure] = {}
    table = []
    for kind in (_COMBINED, *KINDS):
        line: dict[str, Any] = {"transformation": kind}
        for name in settings.methods:
            figure = share(row["same"] for row in rows if row["kind"] == kind and row["method"] == name)
            figures[f"same text: {name}, {kind}"] = figure
            line[name + " (%)"] = round(100 * (figure["value"] or 0), 2)
        table.append(line)
    report = {
        "settings": asdict(settings),
        "scheme": scheme_fingerprint(),
        "ids": {"crystals": digest(reference.id for reference in kept)},
        "counts": {
            "crystals": len(kept),
            "unreadable": len(unreadable),
            "errors": sum(row["outcome"].startswith("error") for row in rows),
            "timeouts": sum(outcome.kind == "timeout" for outcome in outcomes),
            "crashes": sum(outcome.kind == "crash" for outcome in outcomes),
        },
        "figures": figures,
        "reasons": kinds_of_reasons([{"reason": reason} for reason in unreadable.values()]),
        "tables": {"same_text": table},
        "notes": [
            f"A crystal counts where its text and those of {settings.equivalents} other descriptions are equal.",
            *note_of_unreadable(unreadable),
        ],
    }
    return report, rows
