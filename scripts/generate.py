"""Draw samples for many prompts, on one or several processes or GPUs; killed at any moment, the same command goes on.

    accelerate launch scripts/generate.py --prompts formulas.txt --samples 20 --output samples/
    accelerate launch --multi_gpu --num_processes 4 scripts/generate.py --prompts prepared/mp_20/val --output samples
    accelerate launch scripts/generate.py --prompts prepared/mp_20/val --ids 1000.txt --output samples/1000
    torchrun --nproc_per_node 2 scripts/generate.py --prompts prompts.jsonl --model my-model --output samples/

Prompts are formulas, one a line (.txt), objects of prompt fields (.jsonl), tables (.csv, .parquet) with columns such as
formula, space_group, band_gap, or a folder that `mat2seq prepare` wrote. The result is OUTPUT/samples.parquet, and with
--cifs a CIF for each valid sample; prompts that cannot be fulfilled are counted in the report and listed in
OUTPUT/rejected.parquet. They do not change the exit status: a launcher would take anything but 0 for a crash.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--prompts", type=Path, required=True, help="file or folder of prompts")
    add("--ids", type=Path, help="take only the prompts whose ids stand in this file, one a line, in its order")
    add("--output", type=Path, required=True, help="folder for the samples; resumed if it holds some of this job")
    add("--model", help="model folder or repository (default: the model in the package)")
    add("--samples", type=int, default=1, help="samples kept for each prompt (default: 1)")
    add(
        "--candidates",
        type=int,
        help="samples drawn for each prompt, of which the best are kept: valid ones that most others agree with",
    )
    add("--temperature", type=float, help="sampling temperature (default: the model's)")
    add("--top-k", type=int, help="draw from the k likeliest tokens; 0 for all (default: the model's)")
    add("--top-p", type=float, help="draw from the likeliest tokens that together have this probability")
    add(
        "--guidance-scale",
        type=float,
        help="take what properties change in the model's answer so many times, such as 2",
    )
    add("--seed", type=int, default=0, help="with it a run repeats (default: 0)")
    add("--rows", type=int, default=128, help="sequences drawn together (default: 128)")
    add("--cifs", action="store_true", help="write CIFs of the valid samples, too")
    add("--threads", type=int, help="threads of each process (default: as torch decides)")
    return parser.parse_args()


def main() -> int:
    """Draw, join, report."""
    options = parse_arguments()
    import torch
    from accelerate import PartialState

    from mat2seq_hf.errors import Mat2SeqError
    from mat2seq_hf.generation import Job

    if options.threads:
        torch.set_num_threads(options.threads)
    names = ("temperature", "top_k", "top_p", "guidance_scale")
    settings = tuple((name, getattr(options, name)) for name in names if getattr(options, name) is not None)
    state = PartialState(cpu=not torch.cuda.is_available())  # without it, processes on a CPU do not see each other
    try:
        return run(options, Job(options.samples, options.candidates, options.seed, options.rows, settings), state)
    except Mat2SeqError as error:
        print(f"process {state.process_index}: {error}", file=sys.stderr)
        return 2


def run(options: argparse.Namespace, job: Any, state: Any) -> int:
    """Draw the share of this process; the main process joins the parts."""
    from tqdm import tqdm

    from mat2seq_hf.generation import load_pipeline, merge, read_prompts, run_job, summary, write_cifs

    asked = read_prompts(options.prompts, options.ids)
    pipe = load_pipeline(options.model, device=state.device)
    name = options.model or "the model in the package"
    share = run_job(
        pipe, asked, job, options.output, model=name, rank=state.process_index, processes=state.num_processes
    )
    total = len(asked) * job.samples // state.num_processes
    with tqdm(total=total, unit="sample", disable=not state.is_main_process, smoothing=0.1) as bar:
        for prompts in share:
            bar.update(prompts * job.samples)
    state.wait_for_everyone()
    if state.is_main_process:
        path = merge(options.output, asked)
        if options.cifs:
            write_cifs(path, options.output / "cifs")
        print(summary(options.output))
    return 0


if __name__ == "__main__":
    sys.exit(main())
