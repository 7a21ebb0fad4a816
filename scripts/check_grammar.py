"""What the grammar guarantees, measured: samples of a model, or of random weights, checked without this package's code.

For each sample: is it finished, does it parse, is the composition of its primitive cell the asked one, has every site
the multiplicity that it states (orbits are spelled out with spglib's table of operations), and which space group do
spglib and moyopy find at a tight tolerance? Killed, the same command goes on.

    python scripts/check_grammar.py --prompts prepared/mp_20/val --count 10000 --random-weights --output runs/random
    python scripts/check_grammar.py --prompts prepared/mp_20/val --count 10000 --output runs/shipped
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

SMALL = 1e-6  # fractions of a cell: points nearer than this are one


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--prompts", type=Path, required=True, help="folder of `mat2seq prepare`, or a file of prompts")
    add("--output", type=Path, required=True, help="folder for samples and report; resumed if it holds some of them")
    add("--model", help="model folder (default: the model in the package)")
    add("--random-weights", action="store_true", help="a tiny GPT-2 that has learnt nothing")
    add("--count", type=int, default=10_000, help="samples; prompts are taken again when they are used up")
    add("--temperature", type=float, help="default: the model's, 1 for random weights")
    add("--symprec", type=float, default=1e-5, help="tolerance of the space group search, angstrom (default: 1e-5)")
    add("--rows", type=int, default=128, help="sequences drawn together")
    add("--seed", type=int, default=0)
    return parser.parse_args()


def load(options: argparse.Namespace) -> tuple[Any, str]:
    """The pipeline and its name."""
    import torch
    from transformers import GPT2LMHeadModel

    from mat2seq_hf import CrystalGenerationPipeline, build_tokenizer, gpt2_config
    from mat2seq_hf.generation import load_pipeline

    if not options.random_weights:
        return load_pipeline(options.model), options.model or "the model in the package"
    torch.manual_seed(options.seed)
    model = GPT2LMHeadModel(gpt2_config("tiny")).eval()
    return CrystalGenerationPipeline(model=model, tokenizer=build_tokenizer(), device="cpu"), "random weights (tiny)"


def standard_operations(number: int) -> tuple[Any, Any]:
    """Operations of a space group in its standard setting, from spglib's database."""
    import spglib

    from mat2seq_hf.tables import ROWS

    found = spglib.get_symmetry_from_database(ROWS[number - 1][1])
    return found["rotations"], found["translations"]


def orbit_size(number: int, point: Any) -> int:
    """Points of an orbit in the conventional cell."""
    rotations, translations = standard_operations(number)
    images = (rotations @ np.array(point) + translations) % 1.0
    differences = images[:, None] - images[None]
    same = (np.abs(differences - np.round(differences)) < SMALL).all(axis=2)
    return len({tuple(np.flatnonzero(row)) for row in same})


def read_words(text: str) -> tuple[dict[str, int], str, list[tuple[str, str, list[float]]]]:
    """Formula, space group and sites of a text, read here once more, independently of the package."""
    head, rest = text.split(" [", 1)
    symbol, body = rest.split("] ", 1)
    formula = {}
    for word in head.split():
        element = word.rstrip("0123456789")
        formula[element] = int(word[len(element) :])
    words = body.split()[6:]
    sites = []
    for start in range(0, len(words), 5):
        # four decimals name a point of the grid of 1/9600
        values = [round(9600 * (eval_fraction(word))) / 9600 for word in words[start + 2 : start + 5]]
        sites.append((words[start], words[start + 1], values))
    return formula, symbol, sites


def eval_fraction(word: str) -> float:
    """Number of a word such as 1/3 or 0.1234."""
    numerator, _, denominator = word.partition("/")
    return float(numerator) / float(denominator or 1)


def judge(row: dict[str, Any], symprec: float) -> dict[str, Any]:
    """All verdicts on one finished sample."""
    from mat2seq_hf import CanonicalCrystal
    from mat2seq_hf.wyckoff import SYMBOLS

    structure = CanonicalCrystal.from_text(row["text"]).to_structure()
    formula, symbol, sites = read_words(row["text"])
    number = SYMBOLS.index(symbol) + 1
    asked = json.loads(row["prompt"])
    units = asked.get("formula_units", 1)
    parts = re.findall(r"([A-Z][a-z]?)(\d*)", asked["formula"])
    divisor = math.gcd(*(int(count or 1) for _, count in parts))
    wanted = {element: int(count or 1) // divisor * units for element, count in parts}
    verdict: dict[str, Any] = {
        "composition": dict(Counter(site.specie.symbol for site in structure)) == wanted == formula,
        "multiplicities": all(orbit_size(number, point) == int(name[:-1]) for _, name, point in sites),
        "distance": row["min_distance"] > 0.5,
        "min_distance": row["min_distance"],
    }
    return verdict | detected(structure, number, symprec)


def detected(structure: Any, number: int, symprec: float) -> dict[str, Any]:
    """How the space group that is found compares with the stated one."""
    import moyopy
    import spglib

    lattice, positions = structure.lattice.matrix, structure.frac_coords
    numbers = [site.specie.Z for site in structure]
    operations = len(standard_operations(number)[0])
    found = spglib.get_symmetry_dataset((lattice, positions, numbers), symprec=symprec)
    cell = moyopy.Cell(lattice.tolist(), positions.tolist(), numbers)
    try:
        by_moyo: int | str = moyopy.MoyoDataset(cell, symprec=symprec).number
    except ValueError as error:
        by_moyo = str(error)
    if found is None:
        return {"spglib": None, "moyopy": by_moyo, "symmetry": "not found", "stated": number}
    # translations of a smaller primitive cell count as operations, too; the given cell has one lattice point
    order = len(found.rotations)
    points = operations // len({tuple(r.ravel()) for r in standard_operations(number)[0]})
    kind = "equal" if found.number == number else "higher" if order * points >= operations else "lower"
    return {"spglib": int(found.number), "moyopy": by_moyo, "symmetry": kind, "stated": number}


def report(rows: list[dict[str, Any]], verdicts: list[dict[str, Any]]) -> dict[str, Any]:
    """All figures."""
    finished = [row for row in rows if row["finished"]]
    cut = [row for row in rows if not row["finished"]]
    figures: dict[str, Any] = {
        "samples": len(rows),
        "finished": len(finished),
        "cut off at the length limit": [f"{row['prompt_id']} {row['prompt']}" for row in cut],
        "parsed, of the finished": len(verdicts),
    }
    for name in ("composition", "multiplicities", "distance"):
        figures[f"{name}, of the finished"] = sum(verdict[name] for verdict in verdicts)
    for kind in ("equal", "higher", "lower", "not found"):
        figures[f"space group {kind}"] = sum(verdict["symmetry"] == kind for verdict in verdicts)
    figures["spglib and moyopy agree"] = sum(verdict["spglib"] == verdict["moyopy"] for verdict in verdicts)
    strange = [v for v in verdicts if v["symmetry"] in ("lower", "not found")]
    figures["lower or not found"] = strange[:50]
    figures["of these, nearest atoms (angstrom)"] = sorted(v["min_distance"] for v in strange)[:50]
    return figures


def main() -> int:
    """Draw, check, print."""
    from tqdm import tqdm

    from mat2seq_hf.errors import Mat2SeqError
    from mat2seq_hf.generation import Job, merge, read_prompts, run_job

    options = parse_arguments()
    asked = read_prompts(options.prompts)
    rounds = -(-options.count // len(asked))
    every = [replace(one, prompt_id=f"{one.prompt_id}#{turn}") for turn in range(rounds) for one in asked]
    every = every[: options.count]
    pipe, name = load(options)
    settings: dict[str, Any] = {"temperature": 1.0, "top_k": 0} if options.random_weights else {}
    if options.temperature is not None:
        settings["temperature"] = options.temperature
    job = Job(seed=options.seed, rows=options.rows, settings=tuple(settings.items()))
    with tqdm(total=len(every), unit="sample", desc="sampling", file=sys.stderr) as bar:
        for count in run_job(pipe, every, job, options.output, model=name):
            bar.update(count)
    import pandas as pd

    rows = pd.read_parquet(merge(options.output, every)).to_dict("records")
    verdicts = []
    for row in tqdm(rows, unit="sample", desc="checking", file=sys.stderr):
        if row["finished"]:
            try:
                verdicts.append(judge(row, options.symprec))
            except Mat2SeqError as error:
                print(f"{row['prompt_id']} does not parse: {error}", file=sys.stderr)
    figures = {"model": name, "symprec": options.symprec, **report(rows, verdicts)}
    (options.output / "report.json").write_text(json.dumps(figures, indent=1, default=str) + "\n", encoding="utf-8")
    for key, value in figures.items():
        if isinstance(value, list):
            print(f"{key}: {len(value)}")
            for item in value[:10]:
                print(f"    {item}")
        else:
            print(f"{key:32s} {value}" + (f"  {100 * value / len(rows):.2f} %" if isinstance(value, int) else ""))
    return 0


if __name__ == "__main__":
    sys.exit(main())
