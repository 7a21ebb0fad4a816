"""What generation costs: the mask against plain `model.generate`, batch size, length, memory, other programs' loops.

Times are processor seconds of this process (one thread unless --threads says otherwise), measured alternately in one
run, so that other work on the machine disturbs the ratios little.

    python scripts/benchmark_generation.py --prompts prepared/mp_20/val mask batch length
    python scripts/benchmark_generation.py --prompts prepared/mp_20/val --random-weights mask
    python scripts/benchmark_generation.py --prompts prepared/mp_20/val peers --crystallm CrystaLLM --authors Mat2Seq

`peers` runs the sampling loops of two checkouts (github.com/lantunes/CrystaLLM and github.com/YKQ98/Mat2Seq) with
random weights and as many parameters as the model here. Neither ends a sequence by itself then, so each is given
the mean number of tokens of its MP-20 sequences (395 and 196), and every sequence is counted as a valid structure.
"""

from __future__ import annotations

import argparse
import importlib
import resource
import sys
import time
import types
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
import transformers

STEPS = 40  # tokens drawn where grammar and plain sampling are compared
PEERS = {"crystallm": ("CrystaLLM", "crystallm", 395), "authors": ("Mat2Seq, the authors' code", "mat2seq", 196)}


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("parts", nargs="+", choices=["mask", "batch", "length", "peers"], help="what is measured")
    add("--prompts", type=Path, required=True, help="folder of `mat2seq prepare`, or a file of prompts")
    add("--model", help="model folder (default: the model in the package)")
    add("--random-weights", action="store_true", help="a tiny GPT-2 that has learnt nothing")
    add("--batch-sizes", type=int, nargs="+", default=[64, 256])
    add("--repeats", type=int, default=5)
    add("--threads", type=int, default=1)
    add("--crystallm", type=Path, help="checkout of github.com/lantunes/CrystaLLM")
    add("--authors", type=Path, help="checkout of github.com/YKQ98/Mat2Seq")
    return parser.parse_args()


def seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    """Processor seconds of a call, and what it returned."""
    start = time.process_time()
    result = work()
    return time.process_time() - start, result


def load(options: argparse.Namespace) -> Any:
    """The pipeline."""
    from transformers import GPT2LMHeadModel

    from mat2seq_hf import CrystalGenerationPipeline, build_tokenizer, gpt2_config
    from mat2seq_hf.generation import load_pipeline

    if not options.random_weights:
        return load_pipeline(options.model)
    torch.manual_seed(0)
    model = GPT2LMHeadModel(gpt2_config("tiny")).eval()
    return CrystalGenerationPipeline(model=model, tokenizer=build_tokenizer(), device="cpu")


def settings_of(pipe: Any, options: argparse.Namespace) -> dict[str, Any]:
    """Temperature and top-k: those of the model."""
    if options.random_weights:
        return {"temperature": 1.0, "top_k": 10}
    return {"temperature": pipe.model.generation_config.temperature, "top_k": pipe.model.generation_config.top_k}


def mask(pipe: Any, prompts: list[Any], options: argparse.Namespace) -> None:
    """Plain `model.generate` and the same with the grammar, for the same prompts and number of tokens."""
    from mat2seq_hf.constraints import GrammarLogitsProcessor
    from mat2seq_hf.vocabulary import BOS, PAD, TOKEN_IDS

    class Timed(GrammarLogitsProcessor):
        spent = 0.0

        def __call__(self, input_ids: Any, scores: Any) -> Any:
            start = time.process_time()
            result = super().__call__(input_ids, scores)
            self.spent += time.process_time() - start
            return result

    print(f"\nmask: {STEPS} tokens for each of so many rows, each row another formula; processor time a token")
    print("  rows   plain (us)   with grammar (us)   ratio, median (all)                 in the mask")
    sampling = settings_of(pipe, options)
    for size in options.batch_sizes:
        ratios, plain_times, shares, own = [], [], [], []
        for turn in range(options.repeats + 1):
            chosen = [prompts[(turn * size + i) % len(prompts)] for i in range(size)]
            starts = [[TOKEN_IDS[BOS], *pipe.grammar.forced_prefix(prompt)] for prompt in chosen]
            longest = max(map(len, starts))
            ids = torch.tensor([[TOKEN_IDS[PAD]] * (longest - len(start)) + start for start in starts])
            processor = Timed(chosen, pipe.grammar)

            def generate(processors: list[Any], ids: Any = ids) -> Any:
                return pipe.model.generate(
                    ids, attention_mask=(ids != TOKEN_IDS[PAD]).long(), do_sample=True, max_new_tokens=STEPS,
                    logits_processor=processors, use_cache=True, eos_token_id=-1, **sampling,
                )  # fmt: skip

            torch.manual_seed(turn)
            runs = [partial(generate, []), partial(generate, [processor])]
            taken = [0.0, 0.0]
            for which in (0, 1) if turn % 2 else (1, 0):
                taken[which] = seconds(runs[which])[0]
            if turn:  # the first turn warms up
                ratios.append(taken[1] / taken[0])
                plain_times.append(taken[0] / size / STEPS * 1e6)
                own.append(taken[1] / size / STEPS * 1e6)
                shares.append(processor.spent / (taken[1] - processor.spent))
        every = " ".join(f"{ratio:.2f}" for ratio in sorted(ratios))
        print(
            f"  {size:4d} {median(plain_times):12.0f} {median(own):19.0f}   {median(ratios):.3f} ({every})"
            f"   {100 * median(shares):5.1f} % of the rest"
        )


def batch(pipe: Any, prompts: list[Any], options: argparse.Namespace) -> None:
    """The sampling loop of this package against `model.generate` with the grammar, at several batch sizes."""
    print("\nbatch: whole crystals, one for each formula; structures a processor second, without reading them back")
    print("  rows   this package   model.generate   ratio   tokens/s   finished   peak memory (MiB)")
    settings = settings_of(pipe, options)
    for size in (1, 4, 16, *options.batch_sizes):
        repeats = max(1, min(options.repeats, 512 // size)) if size > 4 else 4 * options.repeats
        own = theirs = 0.0
        tokens = finished = 0
        for turn in range(repeats):
            chosen = [prompts[(turn * size + i) % len(prompts)] for i in range(size)]
            taken, drawn = seconds(lambda c=chosen, t=turn: draw(pipe, c, t, settings))  # type: ignore[misc]
            own += taken
            tokens += sum(len(sample.ids) - sample.given for sample in drawn)
            finished += sum(sample.finished for sample in drawn)
            theirs += seconds(lambda c=chosen: hf_generate(pipe, c, settings))[0]  # type: ignore[misc]
        count = size * repeats
        print(
            f"  {size:4d} {count / own:14.2f} {count / theirs:16.2f} {theirs / own:7.2f} {tokens / own:10.0f}"
            f" {100 * finished / count:9.1f} %{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:14.0f}"
        )


def draw(pipe: Any, prompts: list[Any], seed: int, settings: dict[str, Any]) -> list[Any]:
    """One sample for each prompt by the loop of this package."""
    from mat2seq_hf.sampling import draw_samples, row_keys
    from mat2seq_hf.sampling_settings import SamplingSettings

    keys = row_keys(seed, range(len(prompts)), [0] * len(prompts))
    return draw_samples(pipe.model, prompts, keys, SamplingSettings(**settings), grammar=pipe.grammar)


def hf_generate(pipe: Any, prompts: list[Any], settings: dict[str, Any]) -> Any:
    """The same by `model.generate` with the logits processor."""
    from mat2seq_hf.constraints import GrammarLogitsProcessor
    from mat2seq_hf.vocabulary import BOS, PAD, TOKEN_IDS

    starts = [[TOKEN_IDS[BOS], *pipe.grammar.forced_prefix(prompt)] for prompt in prompts]
    longest = max(map(len, starts))
    ids = torch.tensor([[TOKEN_IDS[PAD]] * (longest - len(start)) + start for start in starts])
    processor = GrammarLogitsProcessor(prompts, pipe.grammar)
    context = int(pipe.model.config.max_position_embeddings)
    return pipe.model.generate(
        ids, attention_mask=(ids != TOKEN_IDS[PAD]).long(), do_sample=True, logits_processor=[processor],
        use_cache=True, max_length=context, pad_token_id=TOKEN_IDS[PAD], **settings,
    )  # fmt: skip


def length(pipe: Any, prompts: list[Any], options: argparse.Namespace) -> None:
    """Cost against the length of the sequences: prompts sorted by the length of their formulas, in four parts."""
    print("\nlength: formulas of each quarter of the prompts, sorted by length, one crystal of each, drawn together")
    print("  rows   tokens drawn, mean   longest   structures/s   us/token   peak memory of the process (MiB)")
    by_length = sorted(prompts, key=lambda prompt: len(pipe.grammar.forced_prefix(prompt)))
    quarter = len(by_length) // 4
    for size in options.batch_sizes:
        for part in range(4):
            chosen = by_length[part * quarter : (part + 1) * quarter][:: max(1, quarter // size)][:size]
            taken, drawn = seconds(lambda c=chosen: draw(pipe, c, 0, settings_of(pipe, options)))  # type: ignore[misc]
            counts = [len(sample.ids) - sample.given for sample in drawn]
            print(
                f"  {len(chosen):4d} {sum(counts) / len(counts):20.1f} {max(counts):9d} {len(counts) / taken:14.1f}"
                f" {taken / sum(counts) * 1e6:10.0f} {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:10.0f}"
            )


def peer_model(folder: Path, package: str, parameters: int) -> Any:
    """The model class of a checkout, as large as the model here, without importing what else the package needs."""
    shell = types.ModuleType(package)
    shell.__path__ = [str(folder / package)]
    sys.modules[package] = shell
    tokenizer: Any = importlib.import_module(f"{package}._tokenizer").CIFTokenizer

    class Endless(tokenizer):  # type: ignore[misc]
        """Random weights soon write two line ends, which both loops take for the end."""

        @property
        def token_to_id(self) -> dict[str, int]:
            """Without a line end."""
            return {**super().token_to_id, "\n": -1}

    shell.CIFTokenizer = Endless  # type: ignore[attr-defined]
    module = importlib.import_module(f"{package}._model")
    torch.manual_seed(0)
    best = None
    for width in range(64, 1024, 8):
        config = module.GPTConfig(block_size=1024, n_layer=4, n_head=4, n_embd=width, dropout=0.0, bias=False)
        vocabulary, block = config.vocab_size, config.block_size
        count = 12 * 4 * width * width + (vocabulary + block) * width
        if best is None or abs(count - parameters) < abs(best[0] - parameters):
            best = (count, config)
    assert best is not None
    return module.GPT(best[1]).eval()


def peers(pipe: Any, prompts: list[Any], options: argparse.Namespace) -> None:
    """Valid structures a second: this package, reading the samples back and checking them included, and two others."""
    parameters = sum(parameter.numel() for parameter in pipe.model.parameters())
    size = options.batch_sizes[0]
    found: dict[str, float] = {}
    valid = spent = 0.0
    for turn in range(options.repeats):
        chosen = [prompts[(turn * size + i) % len(prompts)] for i in range(size)]
        numbers = range(turn * size, (turn + 1) * size)
        taken, answers = seconds(
            lambda c=chosen, n=numbers: pipe.answer(c, n, seed=0, **settings_of(pipe, options))  # type: ignore[misc]
        )
        spent += taken
        valid += sum(samples[0]["valid"] for samples in answers)
    ours = valid / spent
    print(f"\npeers: valid structures a processor second, models of {parameters / 1e6:.1f} million parameters")
    print(f"  this package, {size} formulas together: {ours:.2f} ({100 * valid / size / options.repeats:.1f} % valid)")
    for option, (name, package, tokens) in PEERS.items():
        folder = getattr(options, option)
        if folder is None:
            continue
        model = peer_model(folder, package, parameters)
        count = sum(parameter.numel() for parameter in model.parameters())
        for rows in (1, 20) if package == "mat2seq" else (1,):
            extra = {"num_gens": rows} if package == "mat2seq" else {}
            start = torch.ones((rows, 10), dtype=torch.long)

            def loop(model: Any = model, start: Any = start, tokens: int = tokens, extra: Any = extra) -> None:
                with torch.no_grad():
                    model.generate(start, tokens - 10, temperature=1.0, top_k=10, **extra)

            taken = min(seconds(loop)[0] for _ in range(2 if rows == 1 else 1))
            found[name] = rows / taken
            print(
                f"  {name}, {rows} together, {tokens} tokens each, {count / 1e6:.1f} million parameters: "
                f"at most {rows / taken:.3f}; this package gives {ours * taken / rows:.0f} times as many"
            )


def main() -> None:
    """Measure what was asked for."""
    from mat2seq_hf.generation import read_prompts

    options = parse_arguments()
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()  # it warns of sequences that do not end, which is meant
    torch.set_num_threads(options.threads)
    pipe = load(options)
    asked = read_prompts(options.prompts)
    most = max(options.batch_sizes) * (options.repeats + 1)
    prompts = [pipe.prompt(one.prompt) for one in asked[:: max(1, len(asked) // most)][:most]]
    parameters = sum(parameter.numel() for parameter in pipe.model.parameters())
    print(
        f"{parameters / 1e6:.1f} million parameters, {'random' if options.random_weights else 'trained'} weights, "
        f"{settings_of(pipe, options)}, {options.threads} thread(s), torch {torch.__version__}"
    )
    for part in options.parts:
        {"mask": mask, "batch": batch, "length": length, "peers": peers}[part](pipe, prompts, options)


if __name__ == "__main__":
    main()
