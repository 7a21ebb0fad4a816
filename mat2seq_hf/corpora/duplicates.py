"""Crystals that are there more than once, by their canonical sequence: in time linear in their number."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ..grid import ANGLE_UNIT, COORDINATE_GRID, LENGTH_UNIT
from ..sequence import parse_text
from .schema import check_schemes, check_whole, needed_shards, scheme_of

__all__ = ["Overlap", "first_of_each", "leakage", "near_groups", "read_columns", "text_digests"]

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Overlap:
    """Two prepared corpora and the canonical sequences they share.

    Attributes:
        first, second: names.
        sequences: distinct sequences that are in both.
        rows_of_first, rows_of_second: crystals with one of these.
    """

    first: str
    second: str
    sequences: int
    rows_of_first: int
    rows_of_second: int


def text_digests(texts: Iterable[str]) -> pa.Array:
    """Hashes of texts, 16 bytes each: a hundred million of them fit into 1.6 GB, and none coincide by chance."""
    return pa.array((hashlib.blake2b(text.encode(), digest_size=16).digest() for text in texts), pa.binary(16))


def _codes(digests: pa.Array | pa.ChunkedArray) -> Integers:
    """The number of each value in the order of first appearance (a hash table, so linear)."""
    encoded = digests.dictionary_encode()
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.unify_dictionaries().combine_chunks()
    if isinstance(encoded, pa.ChunkedArray):
        return np.concatenate([chunk.indices.to_numpy() for chunk in encoded.chunks] or [np.zeros(0)]).astype(np.int64)
    return encoded.indices.to_numpy().astype(np.int64)  # type: ignore[no-any-return]


def first_of_each(digests: pa.Array | pa.ChunkedArray) -> Integers:
    """For each row the index of the first row with the same value; shape (rows,)."""
    codes = _codes(digests)
    first = np.zeros(int(codes.max()) + 1 if len(codes) else 0, dtype=np.int64)
    first[codes[::-1]] = np.arange(len(codes))[::-1]
    return first[codes]


def read_columns(folder: str | Path, names: Sequence[str]) -> Iterator[pa.Table]:
    """Columns of a prepared corpus, one table a shard.

    Raises:
        Mat2SeqError: there are no shards.
    """
    for path in needed_shards(folder):
        yield pq.read_table(path, columns=list(names))


def _folder_digests(folder: str | Path) -> pa.ChunkedArray:
    chunks = [text_digests(table.column("text").to_pylist()) for table in read_columns(folder, ["text"])]
    return pa.chunked_array(chunks, pa.binary(16))


def leakage(folders: Mapping[str, str | Path]) -> list[Overlap]:
    """What each two prepared corpora (such as training and validation) have in common.

    Args:
        folders: folder by name.

    Raises:
        SchemeMismatchError: two were prepared with different canonical forms.
        Mat2SeqError: a folder holds no prepared corpus, or one that is not complete.

    Example:
        >>> leakage({"train": "prepared/mp_20/train", "val": "prepared/mp_20/val"})  # doctest: +SKIP
        [Overlap(first='train', second='val', sequences=3, rows_of_first=3, rows_of_second=4)]
    """
    check_whole(folders.values())
    check_schemes({name: scheme_of(folder) for name, folder in folders.items()})
    digests = {name: _folder_digests(folder) for name, folder in folders.items()}
    found = []
    for one, other in combinations(digests, 2):
        in_first = pa.compute.is_in(digests[one], value_set=digests[other].unique())
        in_second = pa.compute.is_in(digests[other], value_set=digests[one].unique())
        shared = len(digests[one].filter(in_first).unique())
        found.append(Overlap(one, other, shared, _count(in_first), _count(in_second)))
    return found


def _count(mask: Any) -> int:
    return int(pa.compute.sum(mask).as_py() or 0)


def _key_and_vector(text: str) -> tuple[bytes, NDArray[np.float64]]:
    """What must be equal (formula, group, elements on Wyckoff positions) and what may differ a little, in angstrom."""
    crystal = parse_text(text)
    sites = [(site.element, site.wyckoff) for site in crystal.sites]
    key = hashlib.blake2b(repr((crystal.formula, crystal.number, sites)).encode(), digest_size=16).digest()
    lengths = np.array(crystal.lattice[:3]) * LENGTH_UNIT
    # an angle by what it moves the end of a cell vector of mean length
    angles = np.radians(np.array(crystal.lattice[3:]) * ANGLE_UNIT) * lengths.mean()
    coords = np.array([site.coords for site in crystal.sites]) / COORDINATE_GRID * lengths
    return key, np.concatenate([lengths, angles, coords.ravel()])


def near_groups(texts: Sequence[str], tolerance: float) -> Integers:
    """For each text the index of the first of its group of near-duplicates; shape (texts,).

    Two crystals are near if formula, space group and the elements on each Wyckoff position agree, and lattice and
    coordinates of their canonical forms differ by at most ``tolerance`` (angstrom) in each number. Groups are what
    is connected by such pairs. Only crystals with the same key are compared, through a k-d tree: no step is quadratic
    unless nearly all crystals are near.

    A canonical form can jump where two of its choices are equally good, so that a few crystals closer than the
    tolerance stay apart; none that are farther than it are joined directly.

    Raises:
        DecodeError: a text is no canonical text.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components
    from scipy.spatial import cKDTree

    keys, vectors = zip(*map(_key_and_vector, texts), strict=True) if texts else ((), ())
    members: dict[bytes, list[int]] = {}
    for index, key in enumerate(keys):
        members.setdefault(key, []).append(index)
    first = np.arange(len(texts))
    for indices in members.values():
        if len(indices) == 1:
            continue
        tree = cKDTree(np.array([vectors[index] for index in indices]))
        pairs = tree.query_pairs(tolerance, p=np.inf, output_type="ndarray")
        ones = np.ones(len(pairs), dtype=np.int8)
        graph = coo_matrix((ones, (pairs[:, 0], pairs[:, 1])), shape=(len(indices), len(indices)))
        _, component = connected_components(graph, directed=False)
        rows = np.array(indices)
        _, where = np.unique(component, return_index=True)  # rows ascend, so the first of a component is its lowest
        first[rows] = rows[where[component]]
    return first
