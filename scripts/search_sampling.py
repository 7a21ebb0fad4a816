"""Which temperature and top-k match most crystals of a validation set: for one sample, for many, for the likeliest.

All samples are drawn once for each setting and serve all three questions: the mean over samples is the rate of one
sample, "any" is the rate at which at least one of them matches, and "likeliest" takes the sample of highest
log-probability. Killed, the same command goes on. With --write the best settings go into the generation_config.json of
a model folder: temperature and top_k for one sample, and under "mat2seq" those for many, which the pipeline takes where
at least half as many samples are asked for.

    python scripts/search_sampling.py --data mp_20/val.parquet --output runs/search
    python scripts/search_sampling.py --data mp_20/val.parquet --output runs/search --model my-model --write my-model
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from itertools import product
from pathlib import Path
from typing import Any


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", type=Path, required=True, help="parquet with the columns material_id and cif; never a test set")
    add("--output", type=Path, required=True, help="folder for the samples and search.json")
    add("--model", help="model folder (default: the model in the package)")
    add("--crystals", type=int, default=100, help="random crystals (default: 100)")
    add("--samples", type=int, default=20, help="samples of each (default: 20)")
    add("--temperatures", type=float, nargs="+", default=[0.3, 0.5, 0.7, 1.0])
    add("--top-ks", type=int, nargs="+", default=[5, 10, 20])
    add("--seed", type=int, default=0)
    add("--threads", type=int, default=1)
    add("--write", type=Path, metavar="FOLDER", help="model folder whose generation_config.json gets the best settings")
    return parser.parse_args()


def load_truths(options: argparse.Namespace) -> tuple[list[Any], dict[str, Any]]:
    """Prompts (the composition of the primitive cell at 1e-4 angstrom, nothing else) and the crystals themselves."""
    import pandas as pd
    from pymatgen.core import Structure

    from mat2seq_hf.generation import Asked

    table = pd.read_parquet(options.data, columns=["material_id", "cif"])
    table = table.sample(min(options.crystals, len(table)), random_state=options.seed)
    truths = {
        str(name): Structure.from_str(cif, fmt="cif") for name, cif in zip(table.material_id, table.cif, strict=True)
    }
    asked = []
    for name, truth in truths.items():
        composition = truth.get_primitive_structure(tolerance=1e-4).composition
        reduced, units = composition.get_reduced_composition_and_factor()
        asked.append(Asked(name, {"formula": reduced.formula.replace(" ", ""), "formula_units": int(units)}))
    return asked, truths


def matches(folder: Path, asked: list[Any], truths: dict[str, Any]) -> list[dict[str, Any]]:
    """For each sample of a setting whether it matches; remembered in the folder."""
    import pandas as pd
    from pymatgen.analysis.structure_matcher import StructureMatcher
    from pymatgen.core import Structure
    from tqdm import tqdm

    from mat2seq_hf.generation import merge

    remembered = folder / "matches.json"
    if remembered.is_file():
        return list(json.loads(remembered.read_text(encoding="utf-8")))
    matcher = StructureMatcher(ltol=0.3, stol=0.5, angle_tol=10)
    rows = []
    table = pd.read_parquet(merge(folder, asked), columns=["prompt_id", "cif", "log_prob", "finished"])
    for row in tqdm(table.to_dict("records"), unit="sample", desc="matching", file=sys.stderr):
        rms = None
        if row["finished"]:
            rms = matcher.get_rms_dist(truths[row["prompt_id"]], Structure.from_str(row["cif"], fmt="cif"))
        rows.append({"id": row["prompt_id"], "match": rms is not None, "log_prob": row["log_prob"]})
    remembered.write_text(json.dumps(rows), encoding="utf-8")
    return rows


def rates(rows: list[dict[str, Any]]) -> dict[str, tuple[float, float]]:
    """Match rates and their standard errors over crystals."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row["id"], []).append(row)
    values = {
        "one": [sum(row["match"] for row in group) / len(group) for group in groups.values()],
        "any": [float(any(row["match"] for row in group)) for group in groups.values()],
        "likeliest": [float(max(group, key=lambda row: row["log_prob"])["match"]) for group in groups.values()],
    }
    found = {}
    for name, list_ in values.items():
        mean = sum(list_) / len(list_)
        variance = sum((value - mean) ** 2 for value in list_) / max(len(list_) - 1, 1)
        found[name] = (mean, (variance / len(list_)) ** 0.5)
    return found


def write_settings(folder: Path, best: dict[str, dict[str, Any]], samples: int) -> None:
    """Enter the best settings in a model's generation_config.json."""
    path = folder / "generation_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config |= {"do_sample": True, **best["one"], "mat2seq": {"samples": samples, **best["any"]}}
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def main() -> int:
    """Sample, match, choose."""
    import torch
    from tqdm import tqdm

    from mat2seq_hf.generation import Job, load_pipeline, run_job

    options = parse_arguments()
    warnings.simplefilter("ignore")
    torch.set_num_threads(options.threads)
    asked, truths = load_truths(options)
    pipe = load_pipeline(options.model)
    model = options.model or "the model in the package"
    table = []
    for temperature, top_k in product(options.temperatures, options.top_ks):
        settings = {"temperature": temperature, "top_k": top_k}
        folder = options.output / f"temperature_{temperature:g}_top_k_{top_k}"
        job = Job(options.samples, seed=options.seed, settings=tuple(settings.items()))
        with tqdm(total=len(asked), unit="crystal", desc=f"{settings}", file=sys.stderr) as bar:
            for count in run_job(pipe, asked, job, folder, model=model):
                bar.update(count)
        table.append((settings, rates(matches(folder, asked, truths))))
    print(f"{len(asked)} random crystals of {options.data.name}, {options.samples} samples each, {model}")
    print(f"  temperature  top-k      one sample       any of {options.samples:<3d}   likeliest of {options.samples}")
    for settings, found in table:
        cells = "   ".join(f"{100 * mean:6.2f} +- {100 * error:4.2f}" for mean, error in found.values())
        print(f"  {settings['temperature']:11g}  {settings['top_k']:5d}   {cells}")
    best = {name: max(table, key=lambda entry: entry[1][name][0])[0] for name in ("one", "any", "likeliest")}
    for name, settings in best.items():
        print(f"best for {name}: {settings}")
    record = {"data": options.data.name, "crystals": len(asked), "samples": options.samples, "seed": options.seed}
    record |= {"model": model, "best": best, "table": [{**s, **found} for s, found in table]}
    (options.output / "search.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    if options.write:
        write_settings(options.write, best, options.samples)
        print(f"written to {options.write / 'generation_config.json'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
