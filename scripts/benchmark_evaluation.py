"""Structure-prediction figures: this package's evaluator beside a plain StructureMatcher loop, in one run.

Both read the same samples and compare the same pairs; the figures are checked against each other pair by pair. Space
groups and polymorphs, which the plain loop does not have, are left out; validity is not. The evaluator spreads its work
over ``--processes``, the plain loop is one process; both are timed by the clock, so let the machine be quiet.

    python scripts/benchmark_evaluation.py samples.parquet --reference ../shared/data/mp_20/val.parquet
    python scripts/benchmark_evaluation.py samples.parquet --reference ../shared/data/mp_20/val.parquet --prompts 100
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

from tqdm import tqdm


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("samples", help="table or folder of samples, see `mat2seq evaluate csp --help`")
    parser.add_argument("--reference", required=True, help="table with material_id and cif")
    parser.add_argument("--prompts", type=int, default=0, help="only so many prompts, chosen at random (default: all)")
    parser.add_argument("--processes", type=int, default=2, help="of the evaluator")
    parser.add_argument("--project", type=int, nargs=2, default=(9046, 20), metavar=("PROMPTS", "SAMPLES"))
    return parser.parse_args()


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """What it returns, and its seconds."""
    start = time.perf_counter()
    return work(), time.perf_counter() - start


def plain_loop(texts: list[Any], references: dict[str, str]) -> list[float | None]:
    """RMS distance of each sample, by the loop that everyone writes."""
    from pymatgen.analysis.structure_matcher import StructureMatcher
    from pymatgen.core import Structure

    matcher = StructureMatcher(ltol=0.3, stol=0.5, angle_tol=10)
    truths = {name: Structure.from_str(cif, fmt="cif") for name, cif in references.items()}
    found: list[float | None] = []
    for text in tqdm(texts, desc="plain loop", file=sys.stderr, mininterval=5):
        try:
            result = matcher.get_rms_dist(Structure.from_str(text.cif or "", fmt="cif"), truths[text.prompt_id])
        except ValueError:  # no crystal
            result = None
        found.append(None if result is None else float(result[0]))
    return found


def compare(plain: list[float | None], ours: list[float | None]) -> tuple[int, float]:
    """Pairs whose verdicts differ, and the largest difference of an RMS distance."""
    different = sum((a is None) != (b is None) for a, b in zip(plain, ours, strict=True))
    gaps = [abs(a - b) for a, b in zip(plain, ours, strict=True) if a is not None and b is not None]
    return different, max(gaps, default=0.0)


def main() -> None:
    options = parse_arguments()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    warnings.simplefilter("ignore")
    from mat2seq_hf.evaluation.csp import CspSettings, evaluate_csp
    from mat2seq_hf.evaluation.sources import assign_prompts, read_references, read_samples

    references = read_references(options.reference)
    texts = assign_prompts(read_samples([options.samples]), {item.id for item in references})
    answered = sorted({text.prompt_id for text in texts})
    # the order of ids is no random order: the first ones are the oldest crystals of a database
    chosen = set(random.Random(0).sample(answered, min(options.prompts or len(answered), len(answered))))
    texts = [text for text in texts if text.prompt_id in chosen]
    references = [item for item in references if item.id in chosen]
    # libraries are imported and tables are built by whoever comes first: neither side pays for that
    plain_loop(texts[:1], {item.id: item.cif for item in references if item.id == texts[0].prompt_id})
    evaluate_csp(texts[:1], references, CspSettings(polymorphs=False, symprec=None, progress=False))
    settings = CspSettings(polymorphs=False, symprec=None, processes=options.processes)
    (_, rows), our_wait = timed(lambda: evaluate_csp(texts, references, settings))
    plain, wait = timed(lambda: plain_loop(texts, {item.id: item.cif for item in references}))
    different, gap = compare(plain, [row["rms"] for row in rows])
    distinct = len({(text.prompt_id, text.cif) for text in texts})
    pairs, (prompts, samples) = len(texts), options.project
    print(f"{pairs} samples of {len(references)} prompts, {distinct} of them distinct, reading included")
    print(f"  plain StructureMatcher loop  {wait:8.1f} s, {1000 * wait / pairs:6.2f} ms a pair")
    print(f"  evaluator, {options.processes} processes     {our_wait:8.1f} s, {1000 * our_wait / pairs:6.2f} ms a pair")
    print(f"  ratio {wait / our_wait:.2f}")
    print(f"  verdicts that differ: {different}, largest difference of an RMS distance {gap:.1e}")
    scale = prompts * samples / pairs / 3600
    print(f"  projected to {prompts} x {samples}: plain {scale * wait:.2f} h, evaluator {scale * our_wait:.2f} h")


if __name__ == "__main__":
    main()
