r"""One command on a machine with a GPU: train for some minutes, sample val (and test), leave small files to take away.

    python scripts/train_and_sample.py --recipe mp_20_small --prepared prepared/mp_20 --minutes 6 --output out
    python scripts/train_and_sample.py --recipe perov_5_small --prepared prepared/perov_5 --minutes 2 --output out

Everything that needs no GPU is done before (`mat2seq prepare`: PREPARED has train, val and test) or after
(`mat2seq evaluate csp`). The training stops by the clock, its learning rate with it; killed and started again it goes
on, and with more minutes, too. Samples are drawn in parts and so are they. In OUTPUT/RECIPE (``mine`` for
``--recipe my/mine.yaml``): ``model-*.safetensors``
(bf16, at most 15 MB each) and ``rest.tar.gz`` with the model's other files, the run record, the log, the curves and the
samples of each split. They are there before the first sample is drawn, and all of them belong to the same weights.

``--minutes 0`` trains no more: it takes the run as it is, of a killed one its best checkpoint. Test is for a finished
model, once: name it with ``--minutes 0 --splits test`` then.
On a CPU the same command works, slowly (``--minutes 1 --prompts 20`` to try it).
"""

from __future__ import annotations

import argparse
import filecmp
import hashlib
import random
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Sequence
from pathlib import Path

from mat2seq_hf.errors import Mat2SeqError
from mat2seq_hf.training.checkpoints import weights_folder

SCRIPTS = Path(__file__).resolve().parent
#: Options that decide samples, with their defaults: only the others are part of a folder's name.
SAMPLING = {"samples": 1, "prompts": None, "rows": 512, "temperature": 0.5, "top_k": 10, "max_atoms": None}


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
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
    parser.add_argument("--samples", type=int, help="for each composition")
    parser.add_argument("--prompts", type=int, help="only so many compositions of each split")
    parser.add_argument("--rows", type=int, help="sequences drawn together")
    parser.add_argument("--temperature", type=float)
    parser.add_argument("--top-k", type=int)
    parser.add_argument("--max-atoms", type=int, help="atoms of the largest cell (default: as in training)")
    parser.add_argument("more", nargs="*", help="options of scripts/train.py, after --")
    parser.set_defaults(**SAMPLING)
    options = parser.parse_args(arguments)
    options.name = Path(options.recipe).stem  # of a recipe in a file, too
    return options


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


def prompts_of(options: argparse.Namespace, split: str) -> list[str | Path]:
    """Options of generate.py for the prompts of a split: all of its prepared folder, or random ones."""
    folder: Path = options.prepared / split
    if options.prompts is None:
        return ["--prompts", folder]
    from mat2seq_hf.generation import read_prompts

    names = sorted(asked.prompt_id for asked in read_prompts(folder))
    ids: Path = options.runs / options.name / f"prompts_{split}_{options.prompts}.txt"
    ids.parent.mkdir(parents=True, exist_ok=True)
    ids.write_text("\n".join(random.Random(0).sample(names, min(options.prompts, len(names)))), encoding="utf-8")
    return ["--prompts", folder, "--ids", ids]


def fingerprint(source: Path) -> str:
    """Sixteen hexadecimal digits that name the weights in a folder."""
    digest = hashlib.sha256()
    for path in sorted(source.glob("*.safetensors")):
        one = hashlib.sha256()
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                one.update(block)
        digest.update(one.digest())
    return digest.hexdigest()[:16]


def samples_name(options: argparse.Namespace, split: str) -> str:
    """Folder of a split's samples; what is not the default is in its name, so that no two jobs share one."""
    other = [
        f"{name}_{getattr(options, name):g}" for name, default in SAMPLING.items() if getattr(options, name) != default
    ]
    return "_".join([f"samples_{split}", *other])


def pack(records: Sequence[Path], made: Path, out: Path) -> None:
    """Put weights, records and all samples that were made with these weights into OUTPUT/RECIPE.

    At no time do files of different weights lie there.
    """
    out.mkdir(parents=True, exist_ok=True)
    shards = sorted((made / "model").glob("*.safetensors"))
    there = {path.name for path in out.glob("*.safetensors")}
    same = there == {path.name for path in shards}
    if not same or not all(filecmp.cmp(path, out / path.name, shallow=False) for path in shards):
        for old in [out / "rest.tar.gz", *out.glob("*.safetensors")]:
            old.unlink(missing_ok=True)
        for shard in shards:
            shutil.copy(shard, out)
    archive = made / "rest.tar.gz"
    with tarfile.open(archive, "w:gz") as file:
        for path in sorted((made / "model").rglob("*")):
            if path.is_file() and path.suffix != ".safetensors":
                file.add(path, arcname=str(path.relative_to(made)))
        for path in records:
            if path.is_file():
                file.add(path, arcname=f"run/{path.name}")
        for path in sorted(made.glob("samples_*/*.parquet")):
            file.add(path, arcname=str(path.relative_to(made)))
    shutil.copy(archive, out / ".rest.tar.gz")
    (out / ".rest.tar.gz").replace(out / "rest.tar.gz")


def main() -> None:
    """Train, export, sample, pack."""
    options = parse_arguments()
    run, out = options.runs / options.name, options.output / options.name
    run.mkdir(parents=True, exist_ok=True)
    log = run / "log.txt"
    if options.minutes:
        call(
            log, "train.py", "--recipe", options.recipe, "--train_data", options.prepared / "train", "--eval_data",
            options.prepared / "val", "--output_dir", run, "--time_budget_minutes", str(options.minutes),
            "--resume_from_checkpoint", "auto", "--save_total_limit", "2", "--disable_tqdm=true", *options.more,
        )  # fmt: skip
    try:
        source = weights_folder(run)
    except Mat2SeqError as error:
        sys.exit(f"{type(error).__name__}: {error}")
    made = run / f"weights-{fingerprint(source)}"
    shutil.rmtree(made / "model", ignore_errors=True)
    limit = [] if options.max_atoms is None else ["--max-atoms", str(options.max_atoms)]
    call(
        log, "export_model.py", source, "-o", made / "model", "--dtype", "bfloat16", "--shard-mb", "15", *limit,
        "--temperature", str(options.temperature), "--top-k", str(options.top_k),
    )  # fmt: skip
    ended = ["run_record.json", "curves.png"] if source == run else []  # else they are of an earlier end
    records = [*(run / name for name in ended), source / "trainer_state.json", log]
    pack(records, made, out)
    for split in options.splits:
        call(
            log, "generate.py", *prompts_of(options, split), "--model", made / "model", "--samples",
            str(options.samples), "--rows", str(options.rows), "--output", made / samples_name(options, split),
        )  # fmt: skip
        pack(records, made, out)
    for path in sorted(out.iterdir()):
        print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
