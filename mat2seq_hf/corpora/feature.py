"""The ``Crystal`` feature of datasets: a crystal as plain Arrow columns, decoded to a pymatgen Structure when read."""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa
from datasets import Dataset, DatasetDict, Features, IterableDataset, IterableDatasetDict, List, Value
from datasets.features.features import get_nested_type, register_feature
from datasets.table import array_cast

from ..cell import read_cell
from ..elements import SYMBOL_OF
from ..errors import CrystalError, Mat2SeqError
from .texts import checked_columns, crystal_of

if TYPE_CHECKING:
    from pymatgen.core import Structure

__all__ = ["CRYSTAL_COLUMNS", "Crystal", "is_crystal_struct", "plain_columns", "with_crystals"]

#: What a crystal is in Arrow, and in parquet for whoever has not installed this package: cell vectors as rows
#: (angstrom, 3 x 3), atomic numbers (n), fractional coordinates (n x 3), and the source text or null.
CRYSTAL_COLUMNS: dict[str, Any] = {
    "lattice": List(List(Value("float64"))),
    "numbers": List(Value("int16")),
    "frac_coords": List(List(Value("float64"))),
    "text": Value("string"),
}
_NEEDED = ("lattice", "numbers", "frac_coords")


@dataclass
class Crystal:
    """A feature of ``datasets`` for ordered, periodic crystals.

    Stored as a struct of plain columns (:data:`CRYSTAL_COLUMNS`); read as a pymatgen ``Structure``, only when a row is
    accessed. Written from a ``Structure``, ``ase.Atoms``, CIF or POSCAR text, JSON text of ``Structure.as_dict()``, a
    path to a file of one of these, or a dict of the columns. Elements, lattice and coordinates are kept to the last
    bit; oxidation states, site properties and magnetic moments are not stored.

    Attributes:
        decode: give structures; otherwise the dict of columns.
        keep_text: store the source text, too, where a crystal comes as text or file.

    Raises:
        CrystalError: at writing, where the value is no ordered, periodic crystal.

    Example:
        >>> from datasets import Dataset, Features, Value
        >>> features = Features({"id": Value("string"), "structure": Crystal()})
        >>> cif = open("quartz.cif").read()  # doctest: +SKIP
        >>> Dataset.from_list([{"id": "quartz", "structure": cif}], features=features)[0]["structure"]  # doctest: +SKIP
    """

    decode: bool = True
    keep_text: bool = False
    id: str | None = field(default=None, repr=False)

    dtype: ClassVar[str] = "pymatgen.core.Structure"
    pa_type: ClassVar[Any] = get_nested_type(CRYSTAL_COLUMNS)
    _type: str = field(default="Crystal", init=False, repr=False)

    def __call__(self) -> pa.DataType:
        """The Arrow type."""
        return self.pa_type

    def encode_example(self, value: Any) -> dict[str, Any]:
        """The columns of one crystal. A string of one line that is no JSON is the path of a file.

        Raises:
            CrystalError: the value is no ordered, periodic crystal, or a file cannot be read.
        """
        if isinstance(value, dict) and set(_NEEDED) <= value.keys():
            lattice, numbers, coords = (array.tolist() for array in checked_columns(value))
            text = value.get("text")
            kept = text if isinstance(text, str) else None
            return {"lattice": lattice, "numbers": numbers, "frac_coords": coords, "text": kept}
        if isinstance(value, dict):
            return self.encode_text(json.dumps(value))
        if isinstance(value, Path) or (isinstance(value, str) and _is_path(value)):
            return self.encode_text(_read(Path(value)))
        return self.encode_text(value) if isinstance(value, str) else self._columns(value, None)

    def encode_text(self, text: str) -> dict[str, Any]:
        """The columns of a crystal that comes as text: never a path, so that no text of a file opens another file.

        Args:
            text: CIF, POSCAR or JSON.

        Raises:
            CrystalError: the text is no ordered, periodic crystal.
        """
        return self._columns(crystal_of(text), text if self.keep_text else None)

    def _columns(self, value: Any, text: str | None) -> dict[str, Any]:
        cell = read_cell(value)
        lattice, positions = cell.lattice, cell.positions
        if hasattr(value, "frac_coords"):  # as given: not wrapped into the cell, not turned right-handed
            lattice, positions = value.lattice.matrix, value.frac_coords
        return {
            "lattice": np.asarray(lattice, dtype=np.float64).tolist(),
            "numbers": cell.numbers.tolist(),
            "frac_coords": np.asarray(positions, dtype=np.float64).tolist(),
            "text": text,
        }

    def decode_example(self, value: dict[str, Any], token_per_repo_id: dict[str, Any] | None = None) -> Structure:
        """The structure that a dict of columns describes."""
        from pymatgen.core import Lattice, Structure

        symbols = [SYMBOL_OF[int(number)] for number in value["numbers"]]
        positions = np.asarray(value["frac_coords"], dtype=np.float64).reshape(-1, 3)
        return Structure(Lattice(value["lattice"]), symbols, positions)

    def flatten(self) -> Crystal | dict[str, Any]:
        """The feature itself, or its columns where it is not decoded."""
        return self if self.decode else dict(CRYSTAL_COLUMNS)

    def cast_storage(self, storage: pa.Array) -> pa.StructArray:
        """Arrow columns from a struct that has them, or from texts, which are parsed."""
        if pa.types.is_string(storage.type) or pa.types.is_large_string(storage.type):
            rows = [None if text is None else self.encode_text(text) for text in storage.to_pylist()]
            return pa.array(rows, type=self.pa_type)
        if pa.types.is_null(storage.type):
            return pa.nulls(len(storage), self.pa_type)
        if not is_crystal_struct(storage.type):
            raise CrystalError(
                f"a column of type {storage.type} holds no crystals; give texts, or a struct of {', '.join(_NEEDED)}"
            )
        nothing = pa.nulls(len(storage), pa.string())
        text = storage.field("text") if storage.type.get_field_index("text") >= 0 else nothing
        fields = [*(storage.field(name) for name in _NEEDED), text]
        array = pa.StructArray.from_arrays(fields, [*_NEEDED, "text"], mask=storage.is_null())
        return array_cast(array, self.pa_type)


def _is_path(text: str) -> bool:
    return "\n" not in text and not text.lstrip().startswith("{") and len(text) < 4096


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise CrystalError(f"{path}: {error.strerror or error}; give a path to a crystal file, or its text") from error
    except UnicodeDecodeError as error:
        raise CrystalError(f"{path} is not a text file (UTF-8); give a CIF, POSCAR or JSON file") from error


def is_crystal_struct(kind: pa.DataType) -> bool:
    """Whether an Arrow type is a struct with the columns of a crystal."""
    return pa.types.is_struct(kind) and all(kind.get_field_index(name) >= 0 for name in _NEEDED)


def _is_plain(feature: Any) -> bool:
    return isinstance(feature, dict) and set(_NEEDED) <= feature.keys() <= CRYSTAL_COLUMNS.keys()


def _cast(dataset: Any, choose: Any, target: Any) -> Any:
    if isinstance(dataset, dict):
        return type(dataset)({name: _cast(split, choose, target) for name, split in dataset.items()})
    if dataset.features is None:
        raise Mat2SeqError("the columns of this stream are not known yet; call dataset.cast_column(name, Crystal())")
    for name, feature in dataset.features.items():
        if choose(feature):
            dataset = dataset.cast_column(name, target)
    return dataset


def plain_columns(dataset: Dataset | IterableDataset | DatasetDict | IterableDatasetDict) -> Any:
    """The dataset with plain structs in place of :class:`Crystal` columns: what to publish.

    A dataset that is pushed or written to parquet as it is names the feature in its metadata, and cannot be opened
    without this package; one with plain columns can. :func:`with_crystals` is the way back.

    Example:
        >>> plain_columns(dataset).push_to_hub("me/crystals")  # doctest: +SKIP
        >>> with_crystals(load_dataset("me/crystals"))  # doctest: +SKIP
    """
    return _cast(dataset, lambda feature: isinstance(feature, Crystal), Features(CRYSTAL_COLUMNS))


def with_crystals(dataset: Dataset | IterableDataset | DatasetDict | IterableDatasetDict) -> Any:
    """The dataset with every struct of the columns of a crystal read as :class:`Crystal`."""
    return _cast(dataset, _is_plain, Crystal())


with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # datasets warns that registering may change; a test watches over it
    register_feature(Crystal, "Crystal")
