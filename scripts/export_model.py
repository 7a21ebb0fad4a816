r"""Turn a checkpoint of a training run into a model folder with tokenizer, generation settings and card.

    python scripts/export_model.py runs/mp_20_tiny -o mat2seq_hf/default_model --plain \
        --report results/mp_20_val_1000x1 --facts model_cards/mp_20_tiny.json --corpus "the MP-20 training split"
    python scripts/export_model.py runs/mp_20_tiny -o my-model --temperature 0.7 --top-k 10
    python scripts/export_model.py runs/mp_20_small -o my-model --dtype bfloat16 --shard-mb 15

Of a run that was killed the best checkpoint is taken. ``--plain`` leaves out the copied code: a folder inside the
package does without, and has the SHA-256 of its weights beside them. A card is written where the run has its
``run_record.json`` and evaluations are given, folders that ``mat2seq evaluate`` wrote: of ``csp`` side by side, of
other tasks one after the other.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import shutil
import sys
from itertools import zip_longest
from pathlib import Path
from typing import Any


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a run, or any with a model and its config.json")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--temperature", type=float, help="default: what the run's folder says, else 0.5")
    parser.add_argument("--top-k", type=int, help="default: what the run's folder says, else 10")
    parser.add_argument(
        "--max-atoms", type=int, help="atoms of the largest cell it answers with (default: in training)"
    )
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="of the stored weights")
    parser.add_argument("--shard-mb", type=int, help="largest file of weights, in MB (default: one file)")
    parser.add_argument("--plain", action="store_true", help="without copied code")
    parser.add_argument(
        "--report", type=Path, nargs="+", help="folders of `mat2seq evaluate`; with them a card is written"
    )
    parser.add_argument("--sampling", nargs="+", default=[], help="the command that drew the samples of each report")
    parser.add_argument("--record", type=Path, help="run record (default: RUN/run_record.json)")
    parser.add_argument("--facts", type=Path, help="keep what the card was rendered from here, and a copy beside it")
    parser.add_argument("--after", type=Path, help="such facts of the model that this run went on from")
    parser.add_argument("--title", help="heading of the card (default: the name)")
    parser.add_argument("--corpus", default="a corpus of its own", help="what the training crystals are, for the card")
    parser.add_argument("--name", help="repository or folder that the card's snippets load (default: OUTPUT)")
    parser.add_argument("--command", help="the training command, for the card")
    parser.add_argument("--example", default="BaTiO3", help="formula that the card's snippet asks for")
    return parser.parse_args()


def symprec_of(config: Any) -> float:
    """The tolerance (angstrom) of the canonical form that a model was trained on."""
    found = re.search(r"symprec=(\S+)", str((getattr(config, "mat2seq", None) or {}).get("scheme")))
    return float(found[1]) if found else 0.01


def settings_of(config: Any) -> dict[str, Any]:
    """How a model's generation_config says that it is sampled; nothing where it says none."""
    if not config.do_sample:
        return {}
    named = {name: getattr(config, name, None) for name in ("temperature", "top_k", "top_p", "mat2seq")}
    return {name: value for name, value in named.items() if value is not None}


def facts_of_runs(options: argparse.Namespace) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The run's record, and those of the runs before it, for the card.

    Raises:
        Mat2SeqError: a file is not there or is none of these.
    """
    from mat2seq_hf.errors import Mat2SeqError

    path: Path = options.record or options.run / "run_record.json"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        path = options.after or path
        return record, json.loads(path.read_text(encoding="utf-8"))["runs"] if options.after else []
    except FileNotFoundError as error:
        raise Mat2SeqError(f"{path} is not there, and a card needs it; --record names a run's record") from error
    except (ValueError, KeyError, TypeError) as error:
        raise Mat2SeqError(f"{path} is no record of a run, nor facts of a model: {error!r}") from error


def check_sizes(options: argparse.Namespace) -> None:
    """Refuse sizes that no model and no file has.

    Raises:
        PromptError: one is out of range.
    """
    from mat2seq_hf.errors import PromptError
    from mat2seq_hf.vocabulary import MAX_ATOMS

    for name, most in (("max_atoms", MAX_ATOMS), ("shard_mb", 10**6)):
        value = getattr(options, name)
        if value is not None and not 1 <= value <= most:
            raise PromptError(f"--{name.replace('_', '-')} must be from 1 to {most}, not {value}")


def remove_stale(folder: Path) -> None:
    """Remove what another model left in the folder and this one may not write: card, index, hash, code."""
    import mat2seq_hf
    from mat2seq_hf.registration import WEIGHTS_HASH

    modules: list[str] = []
    if (folder / "config.json").is_file():  # then they are copies
        modules = [path.name for path in Path(mat2seq_hf.__file__).parent.glob("*.py")]
    for stale in ("README.md", "model.safetensors.index.json", WEIGHTS_HASH, *modules):
        (folder / stale).unlink(missing_ok=True)
    shutil.rmtree(folder / "custom_generate", ignore_errors=True)


def write_hash(folder: Path) -> None:
    """Write down the SHA-256 of the weights, which ``mat2seq doctor`` compares."""
    from mat2seq_hf.registration import WEIGHTS_HASH

    lines = [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n"
        for path in sorted(folder.glob("*.safetensors"))
    ]
    (folder / WEIGHTS_HASH).write_text("".join(lines), encoding="utf-8")


def main() -> None:
    """Write the folder and the card."""
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig

    from mat2seq_hf import build_tokenizer
    from mat2seq_hf.errors import Mat2SeqError
    from mat2seq_hf.evaluation.schema import load_report
    from mat2seq_hf.publishing.cards import public_model, public_record, public_report, render_model_card
    from mat2seq_hf.publishing.folder import save_model_folder
    from mat2seq_hf.sampling_settings import check_sampling
    from mat2seq_hf.training.checkpoints import weights_folder

    options = parse_arguments()
    if len(options.sampling) > len(options.report or []):
        sys.exit(f"--sampling has {len(options.sampling)} commands for {len(options.report or [])} reports")
    try:
        source = weights_folder(options.run)
        check_sampling({"temperature": options.temperature, "top_k": options.top_k})
        check_sizes(options)
        reports = [public_report(load_report(report)) for report in options.report or []]
        record, earlier = facts_of_runs(options) if reports else ({}, [])
    except Mat2SeqError as error:
        sys.exit(f"{type(error).__name__}: {error}")
    model: Any = AutoModelForCausalLM.from_pretrained(source, dtype=getattr(torch, options.dtype))
    if not getattr(model.config, "mat2seq", None):
        sys.exit(
            f"{source} is no model for crystal sequences (its config.json has no `mat2seq`): give a run of train.py"
        )
    asked = {name: value for name in ("temperature", "top_k") if (value := getattr(options, name)) is not None}
    found = settings_of(model.generation_config)
    if asked and found.pop("mat2seq", None) is not None:
        print(f"left out: the settings that were searched for several samples, for {asked} is to hold for all of them")
    model.generation_config = GenerationConfig(
        **{"do_sample": True, "temperature": 0.5, "top_k": 10} | found | asked,
        bos_token_id=model.config.bos_token_id,
        eos_token_id=model.config.eos_token_id,
        pad_token_id=model.config.pad_token_id,
    )
    model.config.use_cache = True  # turned off by the Trainer; generation that reads it here would be slow
    if options.max_atoms is not None:
        model.config.mat2seq = {**model.config.mat2seq, "max_atoms": options.max_atoms}
    elif "max_atoms" not in model.config.mat2seq:
        print(f"{source} does not say how large the cells of its training data were: --max-atoms limits its answers")
    remove_stale(options.output)
    save_model_folder(model, build_tokenizer(symprec_of(model.config)), options.output, with_code=not options.plain)
    if options.shard_mb is not None:
        (options.output / "model.safetensors").unlink(missing_ok=True)
        model.save_pretrained(options.output, max_shard_size=f"{options.shard_mb}MB")
    if options.plain:
        write_hash(options.output)
    print(f"{options.output}: {sum(file.stat().st_size for file in options.output.iterdir()) / 1e6:.1f} MB")
    if not reports:
        return
    name = options.name or options.output.as_posix()  # in code, where a backslash is none
    facts = {
        "name": name,
        "title": options.title or name,
        "corpus": options.corpus,
        "example": options.example,
        "model": public_model(model.config),
        "runs": [*earlier, {**public_record(record), "command": options.command}],
        "reports": [{**report, "sampling": sampling} for report, sampling in zip_longest(reports, options.sampling)],
    }
    card = render_model_card(**facts)
    (options.output / "README.md").write_text(str(card), encoding="utf-8")
    if options.facts is not None:
        options.facts.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
        options.facts.with_suffix(".md").write_text(str(card), encoding="utf-8")


if __name__ == "__main__":
    main()
