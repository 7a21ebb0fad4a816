"""The builder of datasets from crystal files.

datasets replaces ``open``, ``os`` and ``Path`` in the module of a builder by versions that read from the network, so
that nothing but the builder stands here.
"""

from __future__ import annotations

import json
import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain
from typing import Any

import datasets
import pyarrow as pa

from ..errors import CrystalError, Mat2SeqError
from .columns import announced_properties, check_properties, column_of, property_of, unit_batches
from .feature import Crystal
from .rows import InputRow, cut
from .sources import Unit, list_units, shards_of, unit_rows
from .texts import ON_DISORDER, is_disordered, ordered

__all__ = ["ON_ERROR", "CrystalCorpus", "CrystalCorpusConfig"]

logger = logging.getLogger(__name__)

#: What to do with a row that is no crystal: leave it out and count it, keep it with a column ``error``, or stop.
ON_ERROR = ("skip", "keep", "raise")

_READER_VERSION = "5"  # raised when the same files give other rows, so that no cache serves the old ones
_Shard = tuple[tuple[Any, ...], ...]  # the fields of units

_SAMPLED_UNITS = 50
_SAMPLED_ROWS = 200
_FURTHER_ROWS = 20_000  # of all files, where columns that their heads name are empty in the first rows


@dataclass
class CrystalCorpusConfig(datasets.BuilderConfig):  # type: ignore[misc]  # datasets has no annotations
    """Settings of :class:`CrystalCorpus`; see ``load_crystals``."""

    inputs: dict[str, list[str]] = field(default_factory=dict)
    properties: dict[str, str] | None = None
    keep_text: bool = False
    on_error: str = "skip"
    on_disorder: str = "set_aside"
    state: str = ""


def _state(units: Iterable[Unit]) -> str:
    """Names, sizes and times of all files: a changed file is another corpus to the cache."""
    # one relative path is another file in another working directory
    facts = [
        (os.path.abspath(path), (status := os.stat(path)).st_size, status.st_mtime_ns)  # noqa: PTH100, PTH116
        for path in sorted({unit.path for unit in units})
    ]
    return str(datasets.fingerprint.Hasher.hash([_READER_VERSION, facts]))


def _merged(kinds: set[type]) -> str:
    if kinds <= {bool}:
        return "bool"
    if kinds <= {int}:
        return "int64"
    return "float64" if kinds <= {int, float} else "string"


def _property_types(units: Sequence[Unit]) -> dict[str, str]:
    """Columns beside the crystal and their types: from the schema of parquet files, else from the first rows."""
    found: dict[str, set[type]] = {}
    asked: Counter[str] = Counter()
    further = _FURTHER_ROWS
    firsts = {unit.path: unit for unit in reversed(units)}
    for number, path in enumerate(dict.fromkeys(unit.path for unit in units)):
        announced = announced_properties(firsts[path])
        unknown = {name for name in announced.keys() - found.keys() if asked[name] < _SAMPLED_UNITS}
        if number >= _SAMPLED_UNITS and not unknown:
            continue
        asked.update(unknown)
        for name, kind in announced.items():
            if kind is not None:
                found.setdefault(name, set()).add(kind)
        for index, row in enumerate(unit_rows(firsts[path])):
            if index >= _SAMPLED_ROWS:
                further -= 1
                if further < 0 or unknown <= found.keys():
                    break
            for name, value in json.loads(row.properties).items():
                found.setdefault(name, set()).add(announced.get(name) or type(value))
    return {column_of(name): _merged(kinds) for name, kinds in sorted(found.items())}


class CrystalCorpus(datasets.ArrowBasedBuilder):  # type: ignore[misc]  # datasets has no annotations
    """A builder of ``datasets``: columns ``id``, ``structure`` (:class:`Crystal`), ``source``, and one a property.

    Takes the settings of :class:`CrystalCorpusConfig` as keyword arguments; ``load_crystals`` is the short way.

    Example:
        >>> builder = CrystalCorpus(inputs={"train": ["cifs/"]})  # doctest: +SKIP
        >>> builder.download_and_prepare(num_proc=4)  # doctest: +SKIP
        >>> dataset = builder.as_dataset(split="train")  # doctest: +SKIP
    """

    BUILDER_CONFIG_CLASS = CrystalCorpusConfig
    VERSION = datasets.Version(f"{_READER_VERSION}.0.0")

    def __init__(self, **settings: Any) -> None:
        for name, choices in (("on_error", ON_ERROR), ("on_disorder", ON_DISORDER)):
            if (value := settings.get(name, choices[0])) not in choices:
                raise Mat2SeqError(f"{name} is one of {', '.join(choices)}, not {value!r}")
        inputs = settings.get("inputs") or {}
        self._chosen = settings.get("properties") is not None  # what the caller wants, and nothing else
        if self._chosen:
            check_properties(settings["properties"])
            settings["properties"] = {column_of(name): kind for name, kind in settings["properties"].items()}
        self._units = {split: list_units(paths) for split, paths in inputs.items()}
        every = [unit for units in self._units.values() for unit in units]
        if "state" not in settings and inputs:
            settings["state"] = _state(every)
        if not self._chosen and inputs:
            settings["properties"] = _property_types(every)
        super().__init__(**settings)
        self._late: set[str] = set()

    def _info(self) -> datasets.DatasetInfo:
        properties = {name: datasets.Value(kind) for name, kind in (self.config.properties or {}).items()}
        features = {
            "id": datasets.Value("string"),
            "structure": Crystal(keep_text=self.config.keep_text),
            "source": datasets.Value("string"),
            **properties,
        }
        if self.config.on_error == "keep":
            features["error"] = datasets.Value("string")
        return datasets.DatasetInfo(features=datasets.Features(features))

    def _split_generators(self, dl_manager: Any) -> list[datasets.SplitGenerator]:
        splits = []
        for split, units in self._units.items():
            if not units:
                raise Mat2SeqError(f"no files of crystals in {', '.join(self.config.inputs[split])}")
            # lists of plain tuples are what datasets deals out to processes and workers
            shards = [tuple(tuple(asdict(unit).values()) for unit in shard) for shard in shards_of(units)]
            splits.append(datasets.SplitGenerator(name=split, gen_kwargs={"shards": shards}))
        return splits

    def _generate_shards(self, shards: list[_Shard]) -> Iterator[str]:
        for shard in shards:
            yield str(shard[0][0])

    def _generate_tables(self, shards: list[_Shard]) -> Iterator[tuple[tuple[int, int], pa.Table]]:
        schema = self.info.features.arrow_schema
        read = kept = 0
        first = ""
        for number, part in enumerate(chain.from_iterable(shards)):
            for index, batch in enumerate(unit_batches(Unit(*part), schema, self.config.keep_text)):
                read += len(batch)
                if isinstance(batch, pa.Table):
                    kept += len(batch)
                    yield (number, index), batch
                    continue
                entries = [self._entry(row) for row in batch]
                if self.config.on_error == "skip":
                    first = first or next((f"{e['source']}: {e['error']}" for e in entries if e["error"]), "")
                    entries = [entry for entry in entries if not entry["error"]]
                kept += len(entries)
                yield (number, index), self._table(entries, schema)
        if kept < read:
            logger.warning(
                "left out %d of %d rows that are no crystals; on_error='keep' shows them. %s", read - kept, read, first
            )

    def _table(self, entries: list[dict[str, Any]], schema: pa.Schema) -> pa.Table:
        return pa.Table.from_arrays([self._array(entries, item) for item in schema], schema=schema)

    def _array(self, entries: list[dict[str, Any]], item: pa.Field) -> pa.Array:
        try:
            return _as_typed([entry.get(item.name) for entry in entries], item.type)
        except (pa.ArrowException, OverflowError) as error:  # an integer above 64 bits is the latter
            kind = self.config.properties.get(item.name)
            if kind is None:
                raise
            first = next((entry for entry in entries if not _fits(entry.get(item.name), item.type)), entries[0])
            better = "float64" if _fits(first.get(item.name), pa.float64()) else "string"
            raise Mat2SeqError(
                f"column {item.name!r} was taken for {kind}, which does not hold for {first['source']}: {error}; "
                f"give the type, for instance properties={{{item.name!r}: {better!r}}}"
            ) from error

    def why_empty(self, split: str) -> str:
        """Why a split has no rows: what its first row says."""
        for unit in self._units[split]:
            for row in unit_rows(unit):
                return "none of the rows is a crystal; the first is {source}: {error}".format(**self._entry(row))
        return "there are no rows"

    def _property(self, column: str, kind: str, values: Mapping[str, Any], written: Mapping[str, str]) -> Any:
        name = property_of(column, values)
        value = values.get(name)
        if kind in ("string", "large_string"):
            return written.get(name, None if value is None else str(value))
        missing = kind.startswith("float") and isinstance(value, str) and value.lower() == "nan"
        return None if missing else value

    def _warn_late(self, row: InputRow, names: Iterable[str]) -> None:
        """Say once that a property is left out, because the first rows did not have it."""
        new = {name for name in names if column_of(name) not in self.config.properties} - self._late
        self._late |= new
        for name in new:
            logger.warning(
                "the property %r of %s is left out, as the first rows of the files do not have it; give all of them, "
                "for instance properties={%r: 'float64'}", name, row.source, name
            )  # fmt: skip

    def _entry(self, row: InputRow) -> dict[str, Any]:
        entry: dict[str, Any] = {"id": row.id, "structure": None, "source": row.source, "error": row.problem or None}
        values, written = json.loads(row.properties), json.loads(row.written)
        for name, kind in self.config.properties.items():
            entry[name] = self._property(name, kind, values, written)
        if not self._chosen:
            self._warn_late(row, values)
        if not row.problem:
            try:
                entry["structure"] = self._crystal(row)
            except CrystalError as error:
                entry["error"] = str(error)
            except Mat2SeqError:  # the caller wants to stop at disorder
                raise
            except Exception as error:  # noqa: BLE001 - a parser's surprise must not end a run over millions
                entry["error"] = f"unexpected {type(error).__name__}: {error}"
        entry["error"] = entry["error"] and cut(entry["error"])
        if entry["error"] and self.config.on_error == "raise":
            raise Mat2SeqError(f"{row.source} ({row.id}): {entry['error']}; mend it, or set on_error to skip or keep")
        return entry

    def _crystal(self, row: InputRow) -> dict[str, Any]:
        feature = self.info.features["structure"]
        try:
            plain = _plain(row.text)
            columns: dict[str, Any] = feature.encode_text(row.text) if plain is None else feature.encode_example(plain)
            if not self.config.keep_text:
                columns["text"] = None
        except CrystalError as error:
            if self.config.on_disorder == "set_aside" or not is_disordered(row.text):
                raise
            if self.config.on_disorder == "error":
                raise Mat2SeqError(f"{row.source} ({row.id}): {error}") from error
            columns = feature.encode_example(ordered(row.text))
        return columns


def _as_typed(values: list[Any], kind: pa.DataType) -> pa.Array:
    """The values as an Arrow array.

    Raises:
        pa.ArrowException, OverflowError: one of them is not of the type.
    """
    if not pa.types.is_floating(kind):  # pyarrow cuts decimals off without a word
        for value in values:
            if isinstance(value, float) and not value.is_integer():
                raise pa.ArrowInvalid(f"{value!r} is no whole number")
    return pa.array(values, kind)


def _fits(value: Any, kind: pa.DataType) -> bool:
    try:
        _as_typed([value], kind)
    except (pa.ArrowException, OverflowError):
        return False
    return True


def _plain(text: str) -> dict[str, Any] | None:
    """Columns of a crystal that comes as such, for which no Structure need be built: ten times faster."""
    if not text.startswith('{"lattice":[') and not text.startswith('{"lattice": ['):
        return None
    try:
        data: dict[str, Any] = json.loads(text)
    except (ValueError, RecursionError):
        return None  # the slow way says what is wrong
    return data if {"numbers", "frac_coords"} <= data.keys() else None
