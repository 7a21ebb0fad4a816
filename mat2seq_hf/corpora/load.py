"""``load_crystals``: one line from files, folders, archives, databases or a published corpus to a dataset."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import datasets

from ..errors import Mat2SeqError
from .archives import folder_files, is_visible
from .benchmarks import BENCHMARKS, check_rows, find_benchmark, named_benchmark
from .builder import CrystalCorpus
from .columns import check_properties, column_of
from .feature import Crystal, with_crystals
from .rows import stem_of
from .sources import is_known

__all__ = ["SAMPLE_CORPUS", "load_crystals", "split_paths"]

logger = logging.getLogger(__name__)

#: A few hundred crystals of MP-20 that come with the package.
SAMPLE_CORPUS = Path(__file__).parent / "sample" / "mp_20_sample.parquet"

_SPLITS = {"train": "train", "training": "train", "test": "test"} | dict.fromkeys(("val", "valid", "validation"), "val")


_HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")


def split_paths(given: Any, *, needed: bool = False, output: Path | None = None) -> dict[str, list[str]]:
    """Paths by split: as given, or by the names in a folder (train.csv, val/ ...), or all of them as ``train``.

    The names in a folder make splits if all files and folders of crystals in it have one; a warning names the others.

    Args:
        given: a path, paths, or paths by split.
        needed: there must be splits.
        output: a folder that is left out.

    Raises:
        Mat2SeqError: splits are needed, and there are none or crystals beside them; or a split has files of one name
            and different kinds, such as train.csv and train.parquet.
    """
    if isinstance(given, Mapping):
        return {split: [str(path) for path in _listed(paths)] for split, paths in given.items()}
    paths = [Path(path) for path in _listed(given)]
    named, others = _named(paths[0], output) if len(paths) == 1 and paths[0].is_dir() else ({}, [])
    if named and not others:
        return named
    if needed and not named:
        raise Mat2SeqError(f"--splits: no train, val or test in {', '.join(map(str, paths))}")
    if named:
        beside = ", ".join(others[:5]) + (" ..." if len(others) > 5 else "")
        said = f"{paths[0]} holds {', '.join(named)} and what has the name of no split: {beside}"
        if needed:
            raise Mat2SeqError(f"--splits: {said}; move that away, or name it like a split")
        logger.warning("%s; all of it is the split 'train', give the paths by split to have others", said)
    return {"train": [str(path) for path in paths]}


def _named(folder: Path, output: Path | None) -> tuple[dict[str, list[str]], list[str]]:
    """The entries of a folder by split, and the names of other entries that hold crystals."""
    named: dict[str, list[str]] = {}
    rest: list[Path] = []
    for entry in sorted(folder.iterdir()):
        if not is_visible(entry.name) or not (entry.is_dir() or is_known(entry.name)):
            continue
        if (split := _SPLITS.get(entry.name.split(".")[0].lower())) is not None:
            named.setdefault(split, []).append(str(entry))
        elif output is None or not output.resolve().is_relative_to(entry.resolve()):
            rest.append(entry)
    for paths in named.values():
        _refuse_copies([path for path in map(Path, paths) if not path.is_dir()])
    order = ["train", "val", "test"]
    splits = {split: named[split] for split in order if split in named}
    if not splits:
        return {}, []
    return splits, [
        entry.name for entry in rest if not entry.is_dir() or any(is_known(file.name) for file in folder_files(entry))
    ]


def _refuse_copies(files: Iterable[Path]) -> None:
    seen: dict[str, Path] = {}
    for file in files:
        if (other := seen.setdefault(stem_of(file.name).lower(), file)) is not file:
            raise Mat2SeqError(
                f"{other} and {file.name} would both be read, and each of their crystals twice if one is a copy of the "
                "other: move one away, or give the paths themselves"
            )


def _listed(paths: Any) -> list[Any]:
    return [paths] if isinstance(paths, (str, Path)) else list(paths)


def _is_hub_name(name: str) -> bool:
    """Whether a name can be that of a dataset on the Hub, and not that of a file of crystals."""
    return _HUB_NAME.fullmatch(name) is not None and not is_known(name)


def _from_hub(name: str, split: str | None, **settings: Any) -> Any:
    try:
        loaded = with_crystals(datasets.load_dataset(name, split=split, **settings))
    except (OSError, ValueError) as error:
        raise Mat2SeqError(
            f"{name!r} is no path here, none of the corpora {', '.join(BENCHMARKS)}, and cannot be loaded from the Hub "
            f"({type(error).__name__}: {error})"
        ) from error
    loaded = next(iter(loaded.values())) if isinstance(loaded, dict) and len(loaded) == 1 else loaded
    for part in loaded.values() if isinstance(loaded, dict) else [loaded]:
        if not any(isinstance(feature, Crystal) for feature in (part.features or {}).values()):
            raise Mat2SeqError(
                f"{name!r} has no crystals stored as columns, only {', '.join(part.features or [])}; files and texts "
                f"are read from a copy: load_crystals(huggingface_hub.snapshot_download({name!r}, repo_type='dataset'))"
            )
    return loaded


def _warn_empty(dataset: Any, properties: Iterable[str]) -> None:
    """Say which properties no row of any split has: their names may be those of no column."""
    parts = list(dataset.values()) if isinstance(dataset, dict) else [dataset]
    empty = [
        repr(name)
        for name in properties
        if all(part.data.column(column_of(name)).null_count == len(part) for part in parts)
    ]
    if empty:
        logger.warning("no row has the property %s: the columns are empty; see to the names", ", ".join(empty))


def _built(builder: CrystalCorpus, inputs: Mapping[str, list[str]], wanted: str | None, num_proc: int | None) -> Any:
    """The dataset on disk.

    Raises:
        Mat2SeqError: a file is not what it was taken for, or no row of a split that is wanted is a crystal.
    """
    try:
        builder.download_and_prepare(num_proc=num_proc)
    except datasets.exceptions.DatasetGenerationError as error:
        if isinstance(error.__cause__, Mat2SeqError):
            raise error.__cause__ from None
        raise
    for name in inputs:
        if (wanted is None or name in wanted) and not builder.info.splits[name].num_examples:
            place = ", ".join(inputs[name])
            raise Mat2SeqError(f"{place}: {builder.why_empty(name)}; mend it, or set on_error to keep to see all")
    return builder.as_dataset(split=wanted)


def _check_split(split: str, inputs: Mapping[str, list[str]]) -> None:
    """Refuse a split that is not there, before all is read.

    Args:
        split: as datasets takes it, such as ``"val"``, ``"train[:10%]"``, ``"train+val"`` or ``"all"``.
        inputs: paths by split.

    Raises:
        Mat2SeqError: one of the splits is not there.
    """
    for part in split.split("+"):
        if (name := part.partition("[")[0]) not in {*inputs, "all"}:
            raise Mat2SeqError(
                f"there is no split {name!r}, only {', '.join(inputs)}; name one of them, or none for all"
            )


def load_crystals(
    source: str | Path | Iterable[str | Path] | Mapping[str, Any],
    *,
    split: str | None = None,
    streaming: bool = False,
    num_proc: int | None = None,
    data_dir: str | Path | None = None,
    properties: Mapping[str, str] | None = None,
    keep_text: bool = False,
    on_error: str = "skip",
    on_disorder: str = "set_aside",
    cache_dir: str | Path | None = None,
) -> Any:
    """Crystals as a dataset with the columns ``id``, ``structure``, ``source``, and one for each property.

    Args:
        source: a path or several (files, folders, archives; see :func:`~.sources.read_rows`), paths by split, the name
            of a benchmark corpus (``"mp_20"``; ``"./mp_20"`` is a path), ``"sample"`` (shipped with the package), or a
            dataset on the Hub (``"org/name"``). A folder with ``train.csv``, ``val/`` and the like, and no other
            crystals, gives these splits, anything else the split ``train``.
        split: the split wanted; without it a dict of them, unless there is just one.
        streaming: read while iterating; nothing is written to disk. A corpus of which no row is a crystal is an empty
            stream.
        num_proc: processes that read; files and row groups of parquet files are dealt out to them, small files by the
            hundred.
        data_dir: folder with local copies of the benchmark corpora, in place of a download.
        properties: names and types (``"float64"``, ``"string"`` ...) of the columns to carry along, in place of what
            the first rows suggest; a warning says which no row has, unless ``streaming``.
        keep_text: keep the source texts.
        on_error: one of :data:`~.builder.ON_ERROR`.
        on_disorder: ``"set_aside"`` (treated as ``on_error`` says), ``"order"`` or ``"error"``.
        cache_dir: of datasets. A changed file is read anew.

    Returns:
        ``Dataset`` or ``DatasetDict``; with ``streaming`` their iterable counterparts.

    Raises:
        Mat2SeqError: nothing is found, there is no such ``split``, ``data_dir`` is given and ``source`` is no benchmark
            corpus, or is not given and something here has the name of one, ``properties`` gives no types to names, no
            row is a crystal, a file is broken as a whole, a property does not have its type, a row is bad and
            ``on_error`` is ``"raise"``, or a dataset on the Hub stores no crystals as columns or is given settings
            that are for files.

    Example:
        >>> load_crystals("my_cifs/")[0]["structure"]  # doctest: +SKIP
        >>> load_crystals("sample")[0]["structure"].composition.reduced_formula
        'TmMgHg2'
        >>> load_crystals("mp_20", data_dir="../shared/data", split="val")  # doctest: +SKIP
    """
    check_properties({} if properties is None else properties)
    directory = None if cache_dir is None else str(cache_dir)
    if source == "sample" and not Path("sample").exists():
        source = SAMPLE_CORPUS
    if (benchmark := named_benchmark(source, data_dir)) is not None:
        inputs = {name: [str(path)] for name, path in find_benchmark(benchmark, data_dir, split).items()}
    elif isinstance(source, str) and not Path(source).exists() and _is_hub_name(source):
        given = {"properties": properties is not None, "keep_text": keep_text}
        given |= {"on_error": on_error != "skip", "on_disorder": on_disorder != "set_aside"}
        if asked := [name for name, value in given.items() if value]:
            raise Mat2SeqError(f"{asked[0]} is for files of crystals; {source!r} is taken from the Hub, as it is")
        return _from_hub(source, split, streaming=streaming, cache_dir=directory, num_proc=num_proc)
    else:
        inputs = split_paths(source)
    if isinstance(split, str):
        _check_split(split, inputs)
    if split is not None and split in inputs:
        inputs = {split: inputs[split]}
    builder = CrystalCorpus(
        inputs=inputs,
        cache_dir=directory,
        keep_text=keep_text,
        on_error=on_error,
        on_disorder=on_disorder,
        **({} if properties is None else {"properties": dict(properties)}),
    )
    wanted = split or (next(iter(inputs)) if len(inputs) == 1 else None)
    if streaming:
        return builder.as_streaming_dataset(split=wanted)
    dataset = _built(builder, inputs, wanted, num_proc)
    if wanted is None or wanted in inputs:  # not for a slice of a split
        _warn_empty(dataset, properties or ())
    if benchmark is not None:
        parts = {wanted: dataset} if wanted in inputs else dataset if wanted is None else {}
        check_rows(benchmark, {name: len(part) for name, part in parts.items()})
    return dataset
