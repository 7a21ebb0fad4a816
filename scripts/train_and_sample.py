r"""One command on a machine with a GPU: train for some minutes, sample val (and test), leave small files to take away.

    python scripts/train_and_sample.py --recipe mp_20_small --prepared prepared/mp_20 --minutes 6 --output out
    python scripts/train_and_sample.py --recipe perov_5_small --prepared prepared/perov_5 --minutes 2 --output out

Everything that needs no GPU is done before (`mat2seq prepare`: PREPARED has train, val and test) or after
(`mat2seq evaluate csp`). The training stops by the clock, its learning rate with it; killed and started again it goes
on. Samples are drawn in parts and so are they. In OUTPUT/RECIPE: ``model-*.safetensors`` (bf16, at most 15 MB each) and
``rest.tar.gz`` with the model's other files, the run record, the log, the curves and the samples of each split.

Test is for a finished model, once: name it with ``--splits val test`` then, and with ``--minutes 0`` to train no more.
On a CPU the same command works, slowly (``--minutes 1 --prompts 20`` to try it).
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parent


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", required=True)
    parser.add_argument(
        "--prepared", type=Path, required=True, help="folder with train, val, test from mat2seq prepare"
    )
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="checkpoints")
    parser.add_argument("--minutes", type=float, default=6.0, help="of training; 0 takes the run as it is")
    parser.add_argument("--splits", nargs="*", default=["val"], choices=("val", "test"))
    parser.add_argument("--samples", type=int, default=1, help="for each composition")
    parser.add_argument("--prompts", type=int, help="only so many compositions of each split")
    parser.add_argument("--rows", type=int, default=512, help="sequences drawn together")
    parser.add_argument("--temperature", type=float, default=0.5)
    parser.add_argument("--top-k", type=int, default=10)
    parser.add_argument("--max-atoms", type=int, default=20, help="atoms of the largest primitive cell in training")
    parser.add_argument("more", nargs="*", help="options of scripts/train.py, after --")
    return parser.parse_args()


def call(log: Path, name: str, *arguments: str | Path) -> None:
    """Run a script of this folder, its output in the log and on the screen."""
    start = time.monotonic()
    command = [sys.executable, str(SCRIPTS / name), *map(str, arguments)]
    with log.open("a", encoding="utf-8") as file:
        file.write(f"$ {' '.join(['python', f'scripts/{name}', *map(str, arguments)])}\n")
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert process.stdout is not None
        for line in process.stdout:
            file.write(line)
            sys.stdout.write(line)
        code = process.wait()
        file.write(f"exit {code}, {time.monotonic() - start:.0f} s\n")
    if code:
        sys.exit(f"scripts/{name} ended with {code}; see {log}")


def prompts_of(options: argparse.Namespace, split: str) -> Path:
    """The prompts of a split: its prepared folder, or its first shard cut short."""
    folder: Path = options.prepared / split
    if options.prompts is None:
        return folder
    import pyarrow.parquet as pq

    first = min(folder.glob("part-*.parquet"))
    part: Path = options.runs / options.recipe / f"prompts_{split}"
    part.mkdir(parents=True, exist_ok=True)
    pq.write_table(pq.read_table(first).slice(0, options.prompts), part / "part-00000.parquet")
    return part


def main() -> None:
    """Train, export, sample, pack."""
    options = parse_arguments()
    run, out = options.runs / options.recipe, options.output / options.recipe
    run.mkdir(parents=True, exist_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    log = run / "log.txt"
    if options.minutes:
        call(
            log, "train.py", "--recipe", options.recipe, "--train_data", options.prepared / "train", "--eval_data",
            options.prepared / "val", "--output_dir", run, "--time_budget_minutes", str(options.minutes),
            "--resume_from_checkpoint", "auto", "--save_total_limit", "2", "--disable_tqdm=true", *options.more,
        )  # fmt: skip
    model = run / "model"
    shutil.rmtree(model, ignore_errors=True)
    call(
        log, "export_model.py", run, "-o", model, "--dtype", "bfloat16", "--shard-mb", "15", "--max-atoms",
        str(options.max_atoms), "--temperature", str(options.temperature), "--top-k", str(options.top_k),
    )  # fmt: skip
    for shard in model.glob("*.safetensors"):
        shutil.copy(shard, out)
    for split in options.splits:
        call(
            log, "generate.py", "--prompts", prompts_of(options, split), "--model", model, "--samples",
            str(options.samples), "--rows", str(options.rows), "--output", run / f"samples_{split}",
        )  # fmt: skip
    with tarfile.open(out / "rest.tar.gz", "w:gz") as archive:
        for path in [*model.iterdir(), run / "run_record.json", run / "curves.png", log]:
            if path.is_file() and path.suffix != ".safetensors":
                archive.add(path, arcname=f"{path.parent.name if path.parent == model else 'run'}/{path.name}")
        for split in options.splits:
            for path in (run / f"samples_{split}").glob("*.parquet"):
                archive.add(path, arcname=f"samples_{split}/{path.name}")
    for path in sorted(out.iterdir()):
        print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
