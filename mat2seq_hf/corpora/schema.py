"""Columns and metadata of prepared corpora."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

__all__ = ["DUPLICATES", "METADATA_KEY", "PREPARED", "REJECTED", "shard_paths"]

#: Key of the parquet schema metadata whose value is JSON: scheme, scheme_version, symprec, input.
METADATA_KEY = b"mat2seq"

#: One row a crystal. ``input_ids`` is ``<s> ... </s>``, ``prompt_length`` its tokens up to the end of the formula;
#: ``properties`` is a JSON object of the other columns of the input; ``source`` is file name and row.
PREPARED = pa.schema(
    [
        ("id", pa.string()),
        ("text", pa.string()),
        ("input_ids", pa.list_(pa.int16())),
        ("prompt_length", pa.int16()),
        ("n_tokens", pa.int16()),
        ("properties", pa.string()),
        ("source", pa.string()),
    ]
)

#: One row a crystal that could not be encoded.
REJECTED = pa.schema([("id", pa.string()), ("source", pa.string()), ("reason", pa.string())])

#: One row a crystal whose sequence an earlier row has, and that row.
DUPLICATES = pa.schema([(name, pa.string()) for name in ("id", "source", "first_id", "first_source")])


def shard_paths(folder: str | Path) -> list[Path]:
    """The shards of a prepared corpus, in order."""
    return sorted(Path(folder).glob("part-*.parquet"))
