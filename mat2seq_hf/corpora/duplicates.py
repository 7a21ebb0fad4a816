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
from numpy.typing import NDArray

from ..grid import ANGLE_UNIT, COORDINATE_GRID, LENGTH_UNIT
from ..sequence import parse_text
from .schema import check_schemes, check_whole, needed_shards, read_shard, scheme_of

__all__ = [
    "Overlap",
    "crystal_numbers",
    "first_of_each",
    "largest_difference",
    "leakage",
    "near_groups",
    "read_columns",
    "text_digests",
]

Integers = NDArray[np.int64]

_ROUNDING = 1e-9  # angstrom: 5.7 - 5.6 is a little more than 0.1


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
        Mat2SeqError: there are no shards, or one is damaged.
    """
    for path in needed_shards(folder):
        yield read_shard(path, names)


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


def crystal_numbers(text: str) -> NDArray[np.float64]:
    """The numbers of a canonical text, which :func:`largest_difference` compares.

    Returns:
        Cell lengths in angstrom, angles in radians, coordinates in angstrom along the cell vectors; (6 + 3 sites,).

    Raises:
        DecodeError: it is no canonical text.
    """
    return _key_and_numbers(text)[1]


def _key_and_numbers(text: str) -> tuple[bytes, NDArray[np.float64]]:
    """What must be equal (formula, group, elements on Wyckoff positions) and what may differ a little."""
    crystal = parse_text(text)
    sites = [(site.element, site.wyckoff) for site in crystal.sites]
    key = hashlib.blake2b(repr((crystal.formula, crystal.number, sites)).encode(), digest_size=16).digest()
    lengths = np.array(crystal.lattice[:3]) * LENGTH_UNIT
    angles = np.radians(np.array(crystal.lattice[3:]) * ANGLE_UNIT)
    coords = np.array([site.coords for site in crystal.sites]) / COORDINATE_GRID * lengths
    return key, np.concatenate([lengths, angles, coords.ravel()])


def largest_difference(one: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    """By how much two crystals with the same positions differ in the number in which they differ most, in angstrom.

    Angles that differ count as what the difference moves the end of a vector of the mean length of the six cell
    vectors of both, so that equal angles never differ.

    Args:
        one, other: from :func:`crystal_numbers`; shape (..., 6 + 3 sites).

    Returns:
        Shape (...).

    Example:
        >>> salt = "Na1 Cl1 [Fm-3m] {0} {0} {0} 90 90 90 Na 4a 0 0 0 Cl 4b 1/2 1/2 1/2"
        >>> one, other = (crystal_numbers(salt.format(length)) for length in ("5.6000", "5.6500"))
        >>> round(float(largest_difference(one, other)), 4)
        0.05
    """
    apart = np.abs(one - other)
    apart[..., 3:6] *= (one[..., :3] + other[..., :3]).mean(axis=-1, keepdims=True) / 2
    largest: NDArray[np.float64] = apart.max(axis=-1)
    return largest


def _near_pairs(numbers: NDArray[np.float64], tolerance: float) -> Integers:
    """The pairs of rows that differ by at most ``tolerance``; shape (pairs, 2)."""
    from scipy.spatial import cKDTree

    tolerance += _ROUNDING
    # with the shortest lengths of all for its angles, the tree finds every pair that is near, and some that are not
    scaled = numbers.copy()
    scaled[:, 3:6] *= numbers[:, :3].mean(axis=1).min()
    pairs: Integers = cKDTree(scaled).query_pairs(tolerance, p=np.inf, output_type="ndarray")
    return pairs[largest_difference(numbers[pairs[:, 0]], numbers[pairs[:, 1]]) <= tolerance]


def near_groups(texts: Sequence[str], tolerance: float) -> Integers:
    """For each text the index of the first of its group of near-duplicates; shape (texts,).

    Two crystals are near if formula, space group and the elements on each Wyckoff position agree, and the
    :func:`largest_difference` of their canonical forms is at most ``tolerance`` (angstrom). Groups are what is
    connected by such pairs. Only crystals with the same key are compared, through a k-d tree: no step is quadratic
    unless nearly all crystals are near.

    A canonical form can jump where two of its choices are equally good, so that a few crystals closer than the
    tolerance stay apart; none that are farther than it are joined directly.

    Raises:
        DecodeError: a text is no canonical text.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    keys, numbers = zip(*map(_key_and_numbers, texts), strict=True) if texts else ((), ())
    members: dict[bytes, list[int]] = {}
    for index, key in enumerate(keys):
        members.setdefault(key, []).append(index)
    first = np.arange(len(texts))
    for indices in members.values():
        if len(indices) == 1:
            continue
        pairs = _near_pairs(np.array([numbers[index] for index in indices]), tolerance)
        ones = np.ones(len(pairs), dtype=np.int8)
        graph = coo_matrix((ones, (pairs[:, 0], pairs[:, 1])), shape=(len(indices), len(indices)))
        _, component = connected_components(graph, directed=False)
        rows = np.array(indices)
        _, where = np.unique(component, return_index=True)  # rows ascend, so the first of a component is its lowest
        first[rows] = rows[where[component]]
    return first
