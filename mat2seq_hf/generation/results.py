"""What is made of the samples of a finished job: CIF files, a summary."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq

__all__ = ["summary", "write_cifs"]


def _file_stem(prompt_id: str) -> str:
    """A prompt's name as part of a file name: no separators, no leading dot, not too long."""
    return re.sub(r"[^A-Za-z0-9_.+-]", "-", prompt_id).lstrip(".")[:100] or "prompt"


def write_cifs(samples: str | Path, folder: str | Path) -> int:
    """Write a CIF for each valid sample as ``PROMPT__INDEX.cif``, and return how many there are.

    Args:
        samples: samples.parquet.
        folder: made if it does not exist.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    owners: dict[str, str] = {}
    written = 0
    for batch in pq.ParquetFile(samples).iter_batches(columns=["prompt_id", "sample_index", "cif", "valid"]):
        for row in batch.to_pylist():
            if not row["valid"]:
                continue
            stem = _file_stem(row["prompt_id"])
            while owners.setdefault(stem.lower(), row["prompt_id"]) != row["prompt_id"]:
                stem += "+"  # two names that differ only in what a file name cannot hold, or in capitals
            (folder / f"{stem}__{row['sample_index']}.cif").write_text(row["cif"], encoding="utf-8")
            written += 1
    return written


def summary(folder: str | Path) -> str:
    """What a finished job holds, in a few lines."""
    folder = Path(folder)
    table = pq.read_table(folder / "samples.parquet", columns=["prompt_id", "finished", "valid", "duplicate_of"])
    count = len(table)
    columns = {name: table[name].to_pylist() for name in ("finished", "valid")}
    lines = [
        f"{count} samples of {len(set(table['prompt_id'].to_pylist()))} prompts in {folder / 'samples.parquet'}",
        f"  finished   {sum(columns['finished']):8d}  {100 * sum(columns['finished']) / count:6.2f} %",
        f"  valid      {sum(columns['valid']):8d}  {100 * sum(columns['valid']) / count:6.2f} %",
        f"  duplicates {count - table['duplicate_of'].null_count:8d}  (the same crystal as an earlier sample)",
    ]
    rejected = folder / "rejected.parquet"
    if rejected.is_file():
        reasons = Counter(pq.read_table(rejected)["reason"].to_pylist())
        lines.append(f"{sum(reasons.values())} prompts cannot be fulfilled ({rejected}):")
        lines += [f"  {number:6d}  {reason}" for reason, number in reasons.most_common(5)]
    return "\n".join(lines)
