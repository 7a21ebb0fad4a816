"""``load_crystals``: one line from files, folders, archives, databases or a published corpus to a dataset."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import datasets

from ..errors import Mat2SeqError
from .benchmarks import BENCHMARKS, check_rows, find_benchmark
from .builder import CrystalCorpus
from .feature import with_crystals

__all__ = ["SAMPLE_CORPUS", "load_crystals", "split_paths"]

#: A few hundred crystals of MP-20 that come with the package.
SAMPLE_CORPUS = Path(__file__).parent / "sample" / "mp_20_sample.parquet"

_SPLITS = {"train": "train", "training": "train", "test": "test"} | dict.fromkeys(("val", "valid", "validation"), "val")


def split_paths(given: Any) -> dict[str, list[str]]:
    """Paths by split: as given, or by the names in a folder (train.csv, val/ ...), or all of them as ``train``."""
    if isinstance(given, Mapping):
        return {split: [str(path) for path in _listed(paths)] for split, paths in given.items()}
    paths = [Path(path) for path in _listed(given)]
    if len(paths) == 1 and paths[0].is_dir():
        named: dict[str, list[str]] = {}
        for entry in sorted(paths[0].iterdir()):
            if (split := _SPLITS.get(entry.name.split(".")[0].lower())) is not None:
                named.setdefault(split, []).append(str(entry))
        if named:
            return {split: named[split] for split in ("train", "val", "test") if split in named}
    return {"train": [str(path) for path in paths]}


def _listed(paths: Any) -> list[Any]:
    return [paths] if isinstance(paths, (str, Path)) else list(paths)


def _from_hub(name: str, split: str | None, streaming: bool, cache_dir: str | None) -> Any:
    try:
        loaded = with_crystals(datasets.load_dataset(name, split=split, streaming=streaming, cache_dir=cache_dir))
    except (OSError, ValueError) as error:
        raise Mat2SeqError(
            f"{name!r} is no path here, none of the corpora {', '.join(BENCHMARKS)}, and cannot be loaded from the Hub "
            f"({type(error).__name__}: {error})"
        ) from error
    return next(iter(loaded.values())) if isinstance(loaded, dict) and len(loaded) == 1 else loaded


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
            of a benchmark corpus (``"mp_20"``), ``"sample"`` (shipped with the package), or a dataset on the Hub
            (``"org/name"``). A folder with ``train.csv``, ``val/`` and the like gives these splits, anything else the
            split ``train``.
        split: the split wanted; without it a dict of them, unless there is just one.
        streaming: read while iterating; nothing is written to disk.
        num_proc: processes that read; files and row groups of parquet files are dealt out to them.
        data_dir: folder with local copies of the benchmark corpora, in place of a download.
        properties: names and types (``"float64"``, ``"string"`` ...) of the columns to carry along, in place of what
            the first rows suggest.
        keep_text: keep the source texts.
        on_error: one of :data:`~.builder.ON_ERROR`.
        on_disorder: ``"set_aside"`` (treated as ``on_error`` says), ``"order"`` or ``"error"``.
        cache_dir: of datasets. A changed file is read anew.

    Returns:
        ``Dataset`` or ``DatasetDict``; with ``streaming`` their iterable counterparts.

    Raises:
        Mat2SeqError: nothing is found, a file is broken as a whole, a property does not have its type, or a row is bad
            and ``on_error`` is ``"raise"``.

    Example:
        >>> load_crystals("my_cifs/")[0]["structure"]  # doctest: +SKIP
        >>> load_crystals("sample")[0]["structure"].composition.reduced_formula
        'TmMgHg2'
        >>> load_crystals("mp_20", data_dir="../shared/data", split="val")  # doctest: +SKIP
    """
    directory = None if cache_dir is None else str(cache_dir)
    if source == "sample" and not Path("sample").exists():
        source = SAMPLE_CORPUS
    benchmark = BENCHMARKS.get(source) if isinstance(source, str) else None
    if benchmark is not None and not Path(str(source)).exists():
        inputs = {name: [str(path)] for name, path in find_benchmark(benchmark, data_dir, split).items()}
    elif isinstance(source, str) and not Path(source).exists() and source.count("/") == 1 and "." not in source:
        return _from_hub(source, split, streaming, directory)
    else:
        benchmark, inputs = None, split_paths(source)
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
    try:
        builder.download_and_prepare(num_proc=num_proc)
    except datasets.exceptions.DatasetGenerationError as error:
        if isinstance(error.__cause__, Mat2SeqError):
            raise error.__cause__ from None
        raise
    dataset = builder.as_dataset(split=wanted)
    if benchmark is not None:
        check_rows(benchmark, {wanted: dataset} if wanted in inputs else dataset if wanted is None else {})
    return dataset
