r"""What the choices of this package are worth on equal compute: a small model, a fixed number of tokens, some seeds.

    python scripts/ablations.py run --data ../shared/data --prepared prepared/mp_20 --work runs/ablations
    python scripts/ablations.py table

Arms: ``canonical`` (the default: canonical form, two-digit chunks, GPT-2), ``digits`` (each digit a token), ``random``
(every training crystal in a random equivalent description), ``llama`` (a Llama of equal size), and on the raw rows of
MP-20 alone ``raw_0.01`` and ``raw_0.1`` (tolerance of the symmetry search). Each finished arm and seed is one line of
``results/ablations/arms.jsonl``; killed at any moment, the same command goes on from the last checkpoint and passes
over what is finished.

Judged by bits for each validation crystal, which can be compared between ways of splitting a text into tokens, and by
structure prediction: one sample for the composition of each of some random validation crystals, drawn under the grammar
by the same loop for every arm, against the corpus's own structure (StructureMatcher ltol 0.3, stol 0.5, angle_tol 10).
Bits of ``random`` are those of random descriptions, and bits of ``raw_0.1`` those of crystals at that tolerance.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Arm:
    """One way to do it: the writing of the corpus, the architecture, the tolerance."""

    writing: str = "canonical"
    architecture: str = "gpt2"
    symprec: float = 0.01
    raw: bool = False


ARMS = {
    "canonical": Arm(),
    "digits": Arm(writing="digits"),
    "random": Arm(writing="random"),
    "llama": Arm(architecture="llama"),
    "raw_0.01": Arm(raw=True),
    "raw_0.1": Arm(raw=True, symprec=0.1),
}


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=("run", "table"))
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder with mp_20/*.parquet")
    parser.add_argument("--prepared", type=Path, help="folder with train and val, prepared at 0.01 angstrom")
    parser.add_argument("--work", type=Path, default=Path("runs/ablations"), help="corpora and checkpoints")
    parser.add_argument("--output", type=Path, default=Path("results/ablations"))
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--tokens", type=float, default=8e6, help="tokens each arm is trained on")
    parser.add_argument("--raw-tokens", type=float, default=2e6, help="the same for arms of raw rows")
    parser.add_argument("--width", type=int, default=192, help="channels of the model (of 4 layers)")
    parser.add_argument("--formulas", type=int, default=400, help="validation formulas to draw a sample for")
    parser.add_argument("--eval-crystals", type=int, default=1000)
    parser.add_argument("--temperature", type=float, default=0.5)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def write_corpus(folder: Path, sequences: list[list[int]], scheme: str) -> Path:
    """A prepared corpus of these token ids; complete or not there."""
    import pyarrow as pa

    from mat2seq_hf.corpora.encode import write_table
    from mat2seq_hf.corpora.schema import METADATA_KEY

    folder.mkdir(parents=True, exist_ok=True)
    table = pa.table({"input_ids": pa.array(sequences, type=pa.list_(pa.int16()))})
    write_table(
        table.replace_schema_metadata({METADATA_KEY: json.dumps({"scheme": scheme})}), folder / "part-00000.parquet"
    )
    report = json.dumps({"encoded": len(sequences), "scheme": scheme})
    (folder / "report.json").write_text(report + "\n", encoding="utf-8")
    return folder


def texts_of(folder: Path, raw: bool) -> list[str]:
    """Texts of a prepared corpus, of the rows as the Materials Project has them if ``raw``."""
    import pyarrow.parquet as pq

    from mat2seq_hf.corpora.schema import shard_paths

    found = []
    for path in shard_paths(folder):
        rows = pq.read_table(path, columns=["text", "properties"]).to_pylist()
        found += [row["text"] for row in rows if not raw or json.loads(row["properties"])["coordinates"] == "raw"]
    return found


def loose_texts(options: argparse.Namespace, split: str, symprec: float) -> list[str]:
    """Texts of the raw rows of training, or of some validation crystals, at another tolerance."""
    import pandas as pd

    from mat2seq_hf.corpora.prepare import prepare

    source, folder = options.work / f"{split}_rows.parquet", options.work / f"{split}_{symprec}"
    if not source.is_file():
        table = pd.read_parquet(options.data / "mp_20" / f"{split}.parquet")
        chosen = table[table.coordinates == "raw"] if split == "train" else table.sample(1000, random_state=0)
        chosen[["material_id", "cif"]].to_parquet(unfinished := source.with_suffix(".tmp"))
        unfinished.replace(source)
    prepare([source], folder, symprec=symprec, num_proc=options.threads)
    return texts_of(folder, raw=False)


def corpus_of(options: argparse.Namespace, arm: Arm, split: str) -> Path:
    """The folder with an arm's training or validation crystals, written if it is not there."""
    import numpy as np
    from tqdm import tqdm

    from mat2seq_hf.sequence import scheme_fingerprint
    from mat2seq_hf.training.variants import digit_spelling, random_description, spell
    from mat2seq_hf.vocabulary import BOS, EOS, TOKEN_IDS, tokenize

    folder: Path = options.work / "corpora" / f"{arm.writing}_{arm.symprec}{'_raw' * arm.raw}" / split
    if (folder / "report.json").is_file():
        return folder
    if arm.symprec == 0.01:
        texts = texts_of(options.prepared / split, arm.raw and split == "train")
    else:
        texts = loose_texts(options, split, arm.symprec)
    rng = np.random.default_rng(0)
    sequences = []
    for text in tqdm(texts, desc=f"{folder.parent.name} {split}", mininterval=5):
        written = random_description(text, rng) if arm.writing == "random" else text
        ids = [TOKEN_IDS[BOS], *tokenize(written), TOKEN_IDS[EOS]]
        sequences.append(spell(ids, digit_spelling() if arm.writing == "digits" else {}))
    return write_corpus(folder, sequences, scheme_fingerprint(arm.symprec))


def fresh_model(arm: Arm, width: int, seed: int, folder: Path) -> Path:
    """A new model of this many channels."""
    import torch
    from transformers import AutoModelForCausalLM, PretrainedConfig

    from mat2seq_hf.presets import gpt2_config, llama_config

    heads = max(1, width // 64)
    config: PretrainedConfig
    if arm.architecture == "llama":
        shape = {"hidden_size": width, "intermediate_size": round(8 * width / 3), "num_attention_heads": heads}
        config = llama_config("tiny", symprec=arm.symprec, **shape)
    else:
        config = gpt2_config("tiny", dropout=0.0, symprec=arm.symprec, n_embd=width, n_head=heads)
    torch.manual_seed(seed)
    unfinished = folder.with_suffix(".tmp")
    AutoModelForCausalLM.from_config(config).save_pretrained(unfinished)
    unfinished.rename(folder)
    return folder


def train_arm(options: argparse.Namespace, name: str, seed: int) -> tuple[dict[str, Any], Path]:
    """Train, or go on; the run record and the folder of the weights."""
    from mat2seq_hf.sequence import scheme_fingerprint
    from mat2seq_hf.training.config import parse_config
    from mat2seq_hf.training.data import load_corpus
    from mat2seq_hf.training.packing import BatchPlan
    from mat2seq_hf.training.trainer import train

    arm = ARMS[name]
    data = {split: corpus_of(options, arm, split) for split in ("train", "val")}
    corpus = load_corpus(data["train"], max_length=512, scheme=scheme_fingerprint(arm.symprec))
    plan = BatchPlan(corpus.lengths, batch_tokens=2048)
    budget = options.raw_tokens if arm.raw else options.tokens
    folder: Path = options.work / f"{name}_{options.width}_{budget:.0f}_seed{seed}"  # another budget is another run
    steps = max(1, round(budget / (2 * len(corpus.ids) / len(plan))))
    if not (folder / "start").is_dir():
        fresh_model(arm, options.width, seed, folder / "start")
    settings = {
        "recipe": "tiny",
        "train_data": data["train"],
        "eval_data": data["val"],
        "init_from": folder / "start",
        "output_dir": folder,
        "resume_from_checkpoint": "auto",
        "symprec": arm.symprec,
        "seed": seed,
        "max_steps": steps,
        "gradient_accumulation_steps": 2,
        "eval_crystals": options.eval_crystals,
        "eval_steps": 500,
        "save_steps": 500,
        "save_total_limit": 1,
        "load_best_model_at_end": False,
        "cpu_threads": options.threads,
        "report_to": "none",
    }
    return train(parse_config([f"--{key}={value}" for key, value in settings.items()])), folder


def predict(options: argparse.Namespace, arm: Arm, folder: Path, seed: int) -> dict[str, float]:
    """Structure prediction: shares of samples that finish and that match, and the RMSE of the matches."""
    import pandas as pd
    from pymatgen.analysis.structure_matcher import StructureMatcher
    from pymatgen.core import Structure
    from tqdm import tqdm
    from transformers import AutoModelForCausalLM

    from mat2seq_hf.canonical import CanonicalCrystal
    from mat2seq_hf.errors import Mat2SeqError
    from mat2seq_hf.evaluation.crystals import composition_prompt
    from mat2seq_hf.tokenizer import text_of_tokens
    from mat2seq_hf.training.variants import digit_spelling, draw_spelled
    from mat2seq_hf.vocabulary import EOS, TOKEN_IDS
    from mat2seq_hf.wishes import Prompt

    table = pd.read_parquet(options.data / "mp_20" / "val.parquet", columns=["cif"])
    truths = [Structure.from_str(cif, fmt="cif") for cif in table.sample(options.formulas, random_state=1).cif]
    prompts = [Prompt(**composition_prompt(truth)) for truth in truths]
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    spelling = digit_spelling() if arm.writing == "digits" else {}
    drawn: list[list[int]] = []
    for first in tqdm(range(0, len(prompts), 100), desc="sampling"):
        drawn += draw_spelled(model, prompts[first : first + 100], spelling, options.temperature, 1000 * seed + first)
    matcher, distances = StructureMatcher(ltol=0.3, stol=0.5, angle_tol=10), []
    for ids, truth in zip(tqdm(drawn, desc="matching"), truths, strict=True):
        try:
            sample = CanonicalCrystal.from_text(text_of_tokens(ids)).to_structure()
        except Mat2SeqError:
            continue
        if (found := matcher.get_rms_dist(truth, sample)) is not None:  # in this order for all rows of the table
            distances.append(float(found[0]))
    share = len(distances) / len(truths)
    return {
        "formulas": len(truths),
        "finished": sum(TOKEN_IDS[EOS] in ids for ids in drawn) / len(drawn),
        "match": share,
        "match_standard_error": (share * (1 - share) / len(truths)) ** 0.5,
        "rmse": statistics.fmean(distances) if distances else float("nan"),
    }


def read_rows(output: Path) -> list[dict[str, Any]]:
    """Lines of finished arms; a line that a kill cut short is passed over, so its arm is evaluated again."""
    path, rows = output / "arms.jsonl", []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            rows.append({"eval_crystals": 1000, "temperature": 0.5} | json.loads(line))  # the first rows lack them
        except json.JSONDecodeError:
            continue
    return rows


def run(options: argparse.Namespace) -> None:
    """Every arm and seed that is not finished."""
    import torch

    if options.prepared is None:
        sys.exit("--prepared missing: a folder with train and val, from `mat2seq prepare`")
    options.output.mkdir(parents=True, exist_ok=True)
    options.work.mkdir(parents=True, exist_ok=True)
    for seed in options.seeds:
        for name in options.arms:
            arm = ARMS[name]
            key = {"arm": name, "seed": seed, "tokens": options.raw_tokens if arm.raw else options.tokens}
            key |= {name: getattr(options, name) for name in ("width", "formulas", "eval_crystals", "temperature")}
            if any(key.items() <= row.items() for row in read_rows(options.output)):
                print(f"{name}, seed {seed}: finished before")
                continue
            start = time.process_time()
            record, folder = train_arm(options, name, seed)
            torch.set_num_threads(options.threads)
            figures = predict(options, arm, folder, seed)
            row = key | {
                **{name: record["results"][name] for name in ("bits_per_structure", "unigram_bits_per_structure")},
                **figures,
                **{name: record[name] for name in ("parameters", "steps", "epochs", "git_commit")},
                "training_seconds": record["training_seconds"],
                "processor_seconds_of_this_process": time.process_time() - start,
            }
            with (options.output / "arms.jsonl").open("a", encoding="utf-8") as file:
                file.write(f"\n{json.dumps(row)}\n" if file.tell() else f"{json.dumps(row)}\n")
            print(json.dumps(row))


def _mean(values: list[float], digits: int) -> str:
    """Mean over seeds, with its standard error from their spread."""
    spread = f" ± {statistics.stdev(values) / len(values) ** 0.5:.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.{digits}f}{spread}"


def table(output: Path) -> str:
    """Means over seeds as markdown.

    Processor times are in the rows alone: arms that ran on a busier machine cannot be compared by them. The error of
    the match is that of a share of so many formulas, which are the same for all.
    """
    rows = read_rows(output)
    lines = [
        "| arm | million parameters | million tokens | seeds | bits per structure | match, % | RMSE |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in ARMS:
        for width, tokens in sorted({(row["width"], row["tokens"]) for row in rows if row["arm"] == name}):
            found = [r for r in rows if (r["arm"], r["width"], r["tokens"]) == (name, width, tokens)]
            match = statistics.fmean(r["match"] for r in found)
            error = (match * (1 - match) / found[0]["formulas"]) ** 0.5
            cells = [
                name,
                f"{found[0]['parameters'] / 1e6:.2f}",
                f"{tokens / 1e6:g}",
                str(len(found)),
                _mean([r["bits_per_structure"] for r in found], 1),
                f"{100 * match:.1f} ± {100 * error:.1f}",
                _mean([r["rmse"] for r in found], 3),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run, or print the table."""
    options = parse_arguments()
    warnings.simplefilter("ignore")
    if options.task == "run":
        run(options)
    text = table(options.output)
    (options.output / "table.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
