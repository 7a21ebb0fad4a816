"""Small models, corpora and runs for the tests of the training."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from mat2seq_hf.corpora.schema import METADATA_KEY
from mat2seq_hf.presets import gpt2_config, llama_config
from mat2seq_hf.sequence import scheme_fingerprint
from mat2seq_hf.training.data import TokenCorpus
from mat2seq_hf.vocabulary import BOS, EOS, TOKEN_IDS, tokenize

SCHEME = scheme_fingerprint()
SCRIPT = Path(__file__).parent.parent / "scripts" / "train.py"
TEXTS = (
    "Na1 Cl1 [Fm-3m] 5.6402 5.6402 5.6402 90 90 90 Na 4a 0 0 0 Cl 4b 1/2 1/2 1/2",
    "Cs1 Cl1 [Pm-3m] 4.1200 4.1200 4.1200 90 90 90 Cs 1a 0 0 0 Cl 1b 1/2 1/2 1/2",
    "C2 [Fd-3m] 3.5670 3.5670 3.5670 90 90 90 C 8a 1/8 1/8 1/8",
)
GAPS: tuple[float | None, ...] = (5.0, None, 5.474)


def random_sequences(count: int, seed: int = 0) -> list[list[int]]:
    generator = np.random.default_rng(seed)
    return [[1, *generator.integers(20, 60, generator.integers(5, 40)).tolist(), 2] for _ in range(count)]


def small_corpus(count: int = 40, seed: int = 0) -> TokenCorpus:
    sequences = random_sequences(count, seed)
    offsets = np.cumsum([0, *map(len, sequences)], dtype=np.int64)
    return TokenCorpus(np.concatenate(sequences).astype(np.int16), offsets, SCHEME)


def write_report(folder: Path, crystals: int, scheme: str = SCHEME) -> Path:
    """What `mat2seq prepare` writes last; a folder of shards without it is only half prepared."""
    report = {"read": crystals, "encoded": crystals, "rejected": 0, "scheme": scheme}
    (folder / "report.json").write_text(json.dumps(report) + "\n", encoding="utf-8")
    return folder


def write_sequences(folder: Path, sequences: list[list[int]], scheme: str = SCHEME) -> Path:
    folder.mkdir(parents=True)
    table = pa.table({"input_ids": pa.array(sequences, type=pa.list_(pa.int16()))})
    table = table.replace_schema_metadata({METADATA_KEY: json.dumps({"scheme": scheme})})
    pq.write_table(table, folder / "part-00000.parquet")
    return write_report(folder, len(sequences), scheme)


def write_crystals(folder: Path, gaps: tuple[float | None, ...] = GAPS) -> Path:
    folder.mkdir()
    ids = [[TOKEN_IDS[BOS], *tokenize(text), TOKEN_IDS[EOS]] for text in TEXTS]
    prompts = [1 + len(tokenize(text.split(" [")[0])) for text in TEXTS]
    table = pa.table(
        {
            "id": [str(number) for number in range(len(TEXTS))],
            "text": list(TEXTS),
            "input_ids": pa.array(ids, type=pa.list_(pa.int16())),
            "prompt_length": pa.array(prompts, type=pa.int16()),
            "properties": [json.dumps({"band_gap": gap}) for gap in gaps],
        }
    ).replace_schema_metadata({METADATA_KEY: json.dumps({"scheme": scheme_fingerprint()})})
    pq.write_table(table, folder / "part-00000.parquet")
    return write_report(folder, len(TEXTS))


def write_shards(folder: Path, parts: Sequence[Path]) -> Path:
    """One corpus of the single shards of others, which are no longer there."""
    folder.mkdir(exist_ok=True)
    rows = 0
    for number, part in enumerate(parts):
        rows += pq.read_metadata(part / "part-00000.parquet").num_rows
        (part / "part-00000.parquet").rename(folder / f"part-{number:05d}.parquet")
        shutil.rmtree(part)
    return write_report(folder, rows)


def small_model(model_type: str = "gpt2", dropout: float = 0.0) -> PreTrainedModel:
    torch.manual_seed(0)
    config: PretrainedConfig
    if model_type == "llama":
        shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
        config = llama_config("tiny", max_position_embeddings=64, **shape)
    else:
        config = gpt2_config("tiny", dropout=dropout, n_embd=32, n_layer=2, n_head=2, n_positions=64)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    return model


def small_run(folder: Path, crystals: int, dropout: float, **options: object) -> list[str]:
    """Write models and corpora into a folder; the arguments of a run with them."""
    small_model("gpt2", dropout).save_pretrained(folder / "start")
    small_model("llama").save_pretrained(folder / "start_llama")
    write_sequences(folder / "train", random_sequences(crystals))
    write_sequences(folder / "val", random_sequences(10, seed=1))
    options = {
        "init_from": folder / "start",
        "train_data": folder / "train",
        "eval_data": folder / "val",
        "row_length": 64,
        "batch_tokens": 64,
        "gradient_accumulation_steps": 2,
        "cpu_threads": 1,
        "report_to": "none",
        "dropout": dropout,
        **options,
    }
    return ["--use_cpu", "--disable_tqdm=true", *(f"--{name}={value}" for name, value in options.items())]
