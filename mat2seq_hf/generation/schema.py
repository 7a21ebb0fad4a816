"""Columns of the tables that sampling at scale writes."""

from __future__ import annotations

import pyarrow as pa

__all__ = ["REJECTED_PROMPTS", "SAMPLES"]

#: One row a sample. ``prompt`` is a JSON object of the fields of :class:`~mat2seq_hf.Prompt`; ``sample_index`` counts
#: the samples of a prompt, the best first where there were more candidates than samples. The other columns are
#: described in :class:`~mat2seq_hf.samples.Sample`; ``n_tokens`` counts begin, prompt and end.
SAMPLES = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("prompt", pa.string()),
        ("sample_index", pa.int32()),
        ("seed", pa.int64()),
        ("text", pa.string()),
        ("canonical_text", pa.string()),
        ("cif", pa.string()),
        ("formula", pa.string()),
        ("space_group", pa.string()),
        ("log_prob", pa.float64()),
        ("log_prob_raw", pa.float64()),
        ("finished", pa.bool_()),
        ("valid", pa.bool_()),
        ("reason", pa.string()),
        ("min_distance", pa.float64()),
        ("volume_per_atom", pa.float64()),
        ("charge_neutral", pa.bool_()),
        ("duplicate_of", pa.int32()),
        ("n_tokens", pa.int32()),
        ("model", pa.string()),
        ("scheme", pa.string()),
    ]
)

#: One row a prompt that cannot be fulfilled.
REJECTED_PROMPTS = pa.schema([(name, pa.string()) for name in ("prompt_id", "prompt", "reason")])
