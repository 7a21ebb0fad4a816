"""Structure prediction with the shipped model (or another) on random crystals of a corpus: a plain, readable loop.

The prompt is the composition of the given crystal's primitive cell at 1e-4 angstrom and nothing else. No sample is
filtered or picked: "one sample" is the mean over all samples, "any of k" says whether at least one of them matched.

    python scripts/evaluate_generation.py --data ../shared/data/mp_20/val.parquet --crystals 50 --samples 4
    python scripts/evaluate_generation.py --data ../shared/data/mp_20/val.parquet --crystals 500 --samples 1
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="parquet with the columns material_id and cif")
    parser.add_argument("--model", help="model folder or repository; without it the shipped model")
    parser.add_argument("--crystals", type=int, default=50, help="random crystals; 0 takes all")
    parser.add_argument("--samples", type=int, default=4, help="samples of each formula")
    parser.add_argument("--temperature", type=float)
    parser.add_argument("--top-k", type=int)
    parser.add_argument("--batch-size", type=int, default=16, help="prompts sampled together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="write one JSON line for each sample here")
    parser.add_argument("--report", type=Path, help="write the figures as JSON here")
    return parser.parse_args()


def prompt_of(structure: Any) -> dict[str, Any]:
    """Reduced formula and number of formula units of the primitive cell."""
    composition = structure.get_primitive_structure(tolerance=1e-4).composition
    reduced, units = composition.get_reduced_composition_and_factor()
    return {"formula": reduced.formula.replace(" ", ""), "formula_units": int(units)}


def judge(sample: dict[str, Any], truth: Any, prompt: dict[str, Any], matcher: Any) -> dict[str, Any]:
    """What became of one sample; the composition is compared here again, independently of the pipeline."""
    structure = sample["structure"]
    row = {key: sample[key] for key in ("text", "finished", "valid", "reason", "log_prob", "space_group")}
    row["decoded"] = structure is not None
    row["composition"] = structure is not None and (
        structure.composition.get_reduced_composition_and_factor()
        == truth.get_primitive_structure(tolerance=1e-4).composition.get_reduced_composition_and_factor()
    )
    rms = matcher.get_rms_dist(truth, structure) if structure is not None else None
    return row | {"prompt": prompt, "match": rms is not None, "rms": None if rms is None else float(rms[0])}


def mean_and_error(groups: list[list[bool]]) -> tuple[float, float]:
    """Share and its standard error; the samples of one formula resemble each other and are one group."""
    groups = [group for group in groups if group]
    count = max(sum(map(len, groups)), 1)
    share = sum(map(sum, groups)) / count
    squares = sum((sum(group) - share * len(group)) ** 2 for group in groups)
    return share, (squares * len(groups) / max(len(groups) - 1, 1)) ** 0.5 / count


def command(arguments: list[str]) -> str:
    """The command that gives these figures: without where they were written."""
    kept: list[str] = []
    for argument in arguments:
        if kept and kept[-1] in {"--report", "--output"}:
            kept.pop()
        else:
            kept.append(argument)
    return " ".join(["python", *kept])


def kind_of(reason: str) -> str:
    """A reason without its particulars."""
    return "atoms nearer than 0.5 angstrom" if "angstrom apart" in reason else reason.split(":", maxsplit=1)[0]


def summarize(groups: list[list[dict[str, Any]]]) -> dict[str, Any]:
    """All figures of a run."""
    rows = [row for group in groups for row in group]
    matched = [row["rms"] for row in rows if row["match"]]
    return {
        "crystals": len(groups),
        "samples": len(groups[0]),
        **{
            key: mean_and_error([[row[key] for row in group] for group in groups])
            for key in ("finished", "decoded", "valid", "match")
        },
        "composition": mean_and_error([[row["composition"] for row in group if row["finished"]] for group in groups]),
        "match_any": mean_and_error([[any(row["match"] for row in group)] for group in groups]),
        "rmse": sum(matched) / len(matched) if matched else None,
        "reasons": dict(Counter(kind_of(row["reason"]) for row in rows if row["reason"]).most_common()),
    }


def report(figures: dict[str, Any]) -> None:
    """Print the figures."""
    samples = figures["samples"]
    print(f"{figures['crystals']} formulas x {samples} samples, {figures['seconds']:.1f} s of sampling")
    for key, label in {
        "finished": "finished",
        "decoded": "decoded",
        "composition": "asked composition, of the finished",
        "valid": "valid (finished, composition, no atoms within 0.5 angstrom)",
        "match": "match, one sample",
        "match_any": f"match, any of {samples}",
    }.items():
        share, error = figures[key]
        print(f"  {label:62s} {100 * share:6.2f} % +- {100 * error:.2f}")
    print(f"  {'RMSE of the matched, units of (V/N)^(1/3)':62s} {figures['rmse'] or float('nan'):.4f}")
    for reason, count in figures["reasons"].items():
        print(f"  not valid, {count} times: {reason}")


def main() -> None:
    """Sample, match, print."""
    import pandas as pd
    import torch
    from pymatgen.analysis.structure_matcher import StructureMatcher
    from pymatgen.core import Structure
    from tqdm import tqdm
    from transformers import pipeline

    import mat2seq_hf

    # Its overloads know the tasks of transformers only.
    make: Any = pipeline
    options = parse_arguments()
    warnings.simplefilter("ignore")
    torch.set_num_threads(2)
    table = pd.read_parquet(options.data, columns=["material_id", "cif"])
    if options.crystals:
        table = table.sample(options.crystals, random_state=options.seed)
    truths = [Structure.from_str(cif, fmt="cif") for cif in tqdm(table.cif, desc="reading", file=sys.stderr)]
    prompts = [prompt_of(truth) for truth in truths]
    pipe = make("crystal-generation", **({"model": options.model} if options.model else {}))
    settings = {key: getattr(options, key) for key in ("temperature", "top_k") if getattr(options, key) is not None}
    # Prompts of one length together, so that little is padded.
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]["formula"]))
    samples: dict[int, Any] = {}
    start = time.perf_counter()
    for first in tqdm(range(0, len(order), options.batch_size), desc="sampling", file=sys.stderr):
        chosen = order[first : first + options.batch_size]
        asked = [prompts[i] for i in chosen]
        results = pipe(
            asked, num_return_sequences=options.samples, batch_size=len(asked), seed=options.seed + first, **settings
        )
        samples |= dict(zip(chosen, results, strict=True))
    seconds = time.perf_counter() - start
    matcher = StructureMatcher(ltol=0.3, stol=0.5, angle_tol=10)
    groups = [
        [judge(sample, truths[i], prompts[i], matcher) for sample in samples[i]]
        for i in tqdm(range(len(truths)), desc="matching", file=sys.stderr)
    ]
    print(f"mat2seq_hf {mat2seq_hf.__version__}, {options.data.parent.name}/{options.data.stem}, seed {options.seed}")
    figures = summarize(groups)
    figures |= {
        "corpus": f"{options.data.parent.name} {options.data.stem}",
        "seconds": seconds,
        "model": options.model or "the shipped model",
        "scheme": pipe.tokenizer.scheme,
        "command": command(sys.argv),
    }
    report(figures)
    if options.report:
        options.report.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    if options.output:
        lines = (json.dumps({"id": str(table.material_id.iloc[i])} | row) for i, g in enumerate(groups) for row in g)
        options.output.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
