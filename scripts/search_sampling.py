"""Which temperature and top-k match most crystals of a validation set: for one sample, for many, for the best of many.

All samples are drawn once for each setting and serve all questions: the mean over samples is the rate of one sample,
"any of k" is the rate at which at least one of k matches, "best of k" takes the sample that the pipeline would return
of k candidates (mat2seq_hf/ranking.py), and "likeliest of k" the one of highest log-probability, for comparison. Every
setting is tried on the first crystals; those that are best at one of the questions go on to all of them. Settings are
compared crystal by crystal with the same random numbers, so that what the crystals have in common does not blur the
difference. Killed, the same command goes on.

With --write the best settings go into the generation_config.json of a model folder: temperature and top_k for one
sample, and under "mat2seq" those for one, several and many, of which the pipeline takes the nearest to the number that
is asked for, and those for the best of many, which it takes where candidates are asked for.

    python scripts/search_sampling.py --data mp_20/val.parquet --output runs/search
    python scripts/search_sampling.py --data mp_20/val.parquet --output runs/search --model my-model --write my-model
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

FEW = 5  # samples; settings are searched for one, so many, and all
Setting = tuple[float, int]  # temperature and top-k
Table = dict[Setting, dict[str, dict[str, float]]]  # setting, question, crystal: share of tries that match


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", type=Path, required=True, help="parquet with the columns material_id and cif; never a test set")
    add("--output", type=Path, required=True, help="folder for the samples and search.json")
    add("--model", help="model folder (default: the model in the package)")
    add("--crystals", type=int, default=300, help="random crystals for the best settings (default: 300)")
    add("--first", type=int, default=100, help="how many of them every setting is tried on (default: 100)")
    add("--finalists", type=int, default=2, help="best settings at each question that go on (default: 2)")
    add("--samples", type=int, default=20, help="samples of each (default: 20)")
    add("--temperatures", type=float, nargs="+", default=[0.1, 0.3, 0.5, 0.7, 0.9, 1.1])
    add("--top-ks", type=int, nargs="+", default=[10, 40])
    add("--seed", type=int, default=0)
    add("--threads", type=int, default=1)
    add("--write", type=Path, metavar="FOLDER", help="model folder whose generation_config.json gets the best settings")
    return parser.parse_args()


def load_truths(options: argparse.Namespace) -> tuple[list[Any], dict[str, Any]]:
    """Prompts (the composition of the primitive cell at 1e-4 angstrom, nothing else) and the crystals themselves."""
    import pandas as pd
    from pymatgen.core import Structure

    from mat2seq_hf.evaluation.crystals import composition_prompt
    from mat2seq_hf.generation import Asked

    table = pd.read_parquet(options.data, columns=["material_id", "cif"])
    table = table.sample(min(options.crystals, len(table)), random_state=options.seed)
    truths = {
        str(name): Structure.from_str(cif, fmt="cif") for name, cif in zip(table.material_id, table.cif, strict=True)
    }
    return [Asked(name, composition_prompt(truth)) for name, truth in truths.items()], truths


def matches(folder: Path, asked: list[Any], truths: dict[str, Any]) -> list[dict[str, Any]]:
    """For each sample of a setting whether it matches; remembered in the folder."""
    import pandas as pd
    from tqdm import tqdm

    from mat2seq_hf import CanonicalCrystal
    from mat2seq_hf.evaluation.matching import Matcher
    from mat2seq_hf.evaluation.reduced_cell import reduce_crystal
    from mat2seq_hf.generation import merge

    remembered = folder / "matches.json"
    if remembered.is_file():
        return list(json.loads(remembered.read_text(encoding="utf-8")))
    matcher = Matcher(ltol=0.3, stol=0.5, angle_tol=10)
    rows, targets = [], {name: reduce_crystal(truth) for name, truth in truths.items()}
    table = pd.read_parquet(merge(folder, asked), columns=["prompt_id", "text", "log_prob", "finished", "valid"])
    for row in tqdm(table.to_dict("records"), unit="sample", desc="matching", file=sys.stderr):
        rms = None
        if row["finished"]:
            drawn = reduce_crystal(CanonicalCrystal.from_text(row["text"]).to_structure())
            rms = matcher.rms(drawn, targets[row["prompt_id"]])
        kept = {name: row[name] for name in ("text", "log_prob", "finished", "valid")}
        rows.append({"id": row["prompt_id"], "match": rms is not None, **kept})
    unfinished = remembered.with_suffix(".tmp")
    unfinished.write_text(json.dumps(rows), encoding="utf-8")
    unfinished.replace(remembered)
    return rows


def outcomes(rows: list[dict[str, Any]], samples: int) -> dict[str, dict[str, float]]:
    """For each question and crystal the share of tries that match."""
    from mat2seq_hf.evaluation.csp import any_of

    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row["id"], []).append(row)
    found: dict[str, dict[str, float]] = {}
    few = min(FEW, samples)
    for k in (1, few, samples):  # estimated from all samples
        rates = {name: any_of(sum(row["match"] for row in group), samples, k) for name, group in groups.items()}
        found[f"any of {k}" if k > 1 else "one"] = rates
    for k in sorted({few, samples}):
        found[f"best of {k}"] = {name: chosen(group, k, best) for name, group in groups.items()}
    found[f"likeliest of {samples}"] = {name: chosen(group, samples, likeliest) for name, group in groups.items()}
    return found


def chosen(group: list[dict[str, Any]], k: int, choose: Callable[[list[dict[str, Any]]], dict[str, Any]]) -> float:
    """Share of matches among the samples that are chosen from every k in turn."""
    parts = [group[start : start + k] for start in range(0, len(group) - k + 1, k)]
    return float(sum(choose(part)["match"] for part in parts) / len(parts))


def best(part: list[dict[str, Any]]) -> dict[str, Any]:
    """The sample that the pipeline returns of these candidates."""
    from mat2seq_hf import CanonicalCrystal
    from mat2seq_hf.ranking import consensus_order, prototype

    kinds = [prototype(CanonicalCrystal.from_text(row["text"])) if row["valid"] else None for row in part]
    return part[consensus_order(kinds, [row["log_prob"] for row in part])[0]]


def likeliest(part: list[dict[str, Any]]) -> dict[str, Any]:
    """The finished sample of highest probability."""
    return max(part, key=lambda row: (row["finished"], row["log_prob"]))


def mean_and_error(values: list[float]) -> tuple[float, float]:
    """Mean over crystals, and its standard error."""
    mean = sum(values) / len(values)
    variance = sum((value - mean) ** 2 for value in values) / max(len(values) - 1, 1)
    return mean, (variance / len(values)) ** 0.5


def best_settings(table: Table, question: str, count: int) -> list[Setting]:
    """The settings of highest rate, the best first."""
    ranked = sorted(table, key=lambda setting: -mean_and_error([*table[setting][question].values()])[0])
    return ranked[:count]


def report(table: Table, questions: list[str]) -> None:
    """Print rates, and how far each setting is from the best one on the same crystals."""
    width = max(map(len, questions)) + 4
    for title, against in (
        ("match rate in percent, with its standard error", False),
        ("difference from the best", True),
    ):
        print(f"\n{title}\n  temperature  top-k " + "".join(f"{question:>{width}s}" for question in questions))
        for setting, found in table.items():
            cells = []
            for question in questions:
                values = found[question]
                best = table[best_settings(table, question, 1)[0]][question]
                mean, error = mean_and_error([value - against * best[name] for name, value in values.items()])
                cells.append(f"{100 * mean:{width - 9}.1f} +- {100 * error:4.1f} ")
            print(f"  {setting[0]:11g}  {setting[1]:5d} " + "".join(cells))


def write_settings(folder: Path, found: dict[str, dict[str, Any]], samples: int) -> None:
    """Enter the best settings in a model's generation_config.json."""
    path = folder / "generation_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    several = [{"samples": k, **found[f"any of {k}"]} for k in sorted({min(FEW, samples), samples} - {1})]
    several.insert(0, {"samples": 1, **found["one"]})  # tells whether somebody changes the config's own later
    best_of_all = {"num_candidates": samples, **found[f"best of {samples}"]}
    config |= {"do_sample": True, **found["one"], "mat2seq": {"any_of": several, "best": best_of_all}}
    unfinished = path.with_suffix(".tmp")  # a model whose file is cut off would not load
    unfinished.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    unfinished.replace(path)


def try_setting(pipe: Any, asked: list[Any], truths: dict[str, Any], setting: Setting, folder: Path, o: Any) -> Any:
    """Outcomes of one setting on some crystals."""
    from tqdm import tqdm

    from mat2seq_hf.generation import Job, run_job

    job = Job(o.samples, seed=o.seed, rows=256, settings=(("temperature", setting[0]), ("top_k", setting[1])))
    with tqdm(total=len(asked), unit="crystal", desc=str(folder.relative_to(o.output)), file=sys.stderr) as bar:
        for count in run_job(pipe, asked, job, folder, model=o.model or "the model in the package"):
            bar.update(count)
    return outcomes(matches(folder, asked, truths), o.samples)


def search(pipe: Any, options: argparse.Namespace) -> tuple[Table, Table]:
    """Outcomes of all settings on the first crystals, and of the best ones on all crystals."""
    asked, truths = load_truths(options)
    some, rest = asked[: options.first], asked[options.first :]
    first: Table = {}
    for setting in product(options.temperatures, options.top_ks):
        folder = options.output / f"temperature_{setting[0]:g}_top_k_{setting[1]}"
        first[setting] = try_setting(pipe, some, truths, setting, folder / "first", options)
    questions = [*next(iter(first.values()))]
    asked_for = [q for q in questions if q == "one" or q.startswith("any") or q == f"best of {options.samples}"]
    go_on = [s for s in first if any(s in best_settings(first, q, options.finalists) for q in asked_for)]
    final: Table = {}
    for setting in go_on:
        folder = options.output / f"temperature_{setting[0]:g}_top_k_{setting[1]}"
        more = try_setting(pipe, rest, truths, setting, folder / "rest", options) if rest else {}
        final[setting] = {question: {**first[setting][question], **more.get(question, {})} for question in questions}
    return first, final


def main() -> int:
    """Sample, match, choose."""
    import torch

    from mat2seq_hf.generation import load_pipeline

    options = parse_arguments()
    warnings.simplefilter("ignore")
    torch.set_num_threads(options.threads)
    first, final = search(load_pipeline(options.model), options)
    questions = [*next(iter(first.values()))]
    found = {q: dict(zip(("temperature", "top_k"), best_settings(final, q, 1)[0], strict=True)) for q in questions}
    model = options.model or "the model in the package"
    record: dict[str, Any] = {"data": options.data.name, "samples": options.samples, "seed": options.seed}
    record |= {"model": model, "best": found}
    for name, table in (("first", first), ("all", final)):
        count = len(next(iter(table.values()))["one"])
        print(f"\n{count} random crystals of {options.data.name}, {options.samples} samples of each, {model}")
        report(table, questions)
        record[name] = [
            {"temperature": t, "top_k": k, "crystals": count}
            | {q: mean_and_error([*values.values()]) for q, values in outcome.items()}
            for (t, k), outcome in table.items()
        ]
    print()
    for name, settings in found.items():
        print(f"best for {name}: {settings}")
    (options.output / "search.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    if options.write:
        write_settings(options.write, found, options.samples)
        print(f"written to {options.write / 'generation_config.json'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
