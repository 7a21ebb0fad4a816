r"""Tokens a second and share of peak of a training run, beside nanoGPT's loop at the same size on the same tokens.

    git clone https://github.com/karpathy/nanoGPT
    python scripts/benchmark_training.py --data prepared/mp_20/train --nanogpt nanoGPT
    python scripts/benchmark_training.py --data prepared/mp_20/train --nanogpt nanoGPT --size small --batch-tokens 16384

Both train in turns, a few optimizer steps each, in one process on one device, with AdamW, clipped gradients and equal
tokens a step: ours with the Trainer as ``scripts/train.py`` runs it, theirs with the model of the given folder and the
steps of its ``train.py`` (random windows of a long row of tokens). On a CPU the clock is processor time, which other
work on the machine does not stretch; on a GPU it is the wall clock, with bf16 and torch.compile for both.

Only tokens with a loss count. Operations are 6 for each parameter and token, and 12 for each layer, channel and pair of
tokens that see each other; the peak is a large matrix product, measured in the same run. A crystal has 196 tokens in
the notation that nanoGPT's loop was used with (the mean of Mat2Seq's released tokenizer on MP-20).
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder of prepared shards")
    parser.add_argument("--nanogpt", type=Path, required=True, help="folder with nanoGPT's model.py")
    parser.add_argument("--size", default="tiny", choices=("tiny", "small", "large"))
    parser.add_argument("--model-type", default="llama", choices=("gpt2", "llama"), help="ours; theirs is a GPT-2")
    parser.add_argument("--batch-tokens", type=int, default=2048, help="tokens of a micro-batch")
    parser.add_argument("--accumulate", type=int, default=2, help="micro-batches of a step")
    parser.add_argument("--block", type=int, default=512, help="nanoGPT's window, and our packed rows")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=2, help="optimizer steps of each in a round")
    parser.add_argument("--optimizer", default="adamw", choices=("adamw", "muon"), help="ours; theirs is AdamW")
    parser.add_argument("--batching", default="auto", choices=("auto", "bucketed", "packed"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--their-tokens", type=float, default=196.0, help="tokens of a crystal in their notation")
    return parser.parse_args()


@dataclass
class Meter:
    """Time, tokens and operations of one of the two, round by round."""

    times: list[float]
    tokens: list[int]
    operations: list[float]

    def best(self, values: list[Any]) -> float:
        """Most of ``values`` a second in any round: what disturbs only slows down."""
        return float(max(value / time for value, time in zip(values, self.times, strict=True)))


def clock(device: str) -> float:
    """Processor time on a CPU; elapsed time, all kernels done, on a GPU."""
    import torch

    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def matrix_peak(device: str) -> float:
    """Operations a second of a large matrix product in the type of the training, the best of ten."""
    import torch

    size, kind = (2048, torch.float32) if device == "cpu" else (8192, torch.bfloat16)
    left, right = (torch.rand(size, size, device=device, dtype=kind) for _ in range(2))
    best = 0.0
    for _ in range(10):
        start = clock(device)
        torch.mm(left, right)
        best = max(best, 2.0 * size**3 / (clock(device) - start))
    return best


def import_nanogpt(folder: Path) -> Any:
    """The module ``model.py`` of a nanoGPT folder."""
    spec = importlib.util.spec_from_file_location("nanogpt_model", folder / "model.py")
    if spec is None or spec.loader is None or not (folder / "model.py").is_file():
        sys.exit(f"no model.py in {folder}: clone https://github.com/karpathy/nanoGPT there")
    module = importlib.util.module_from_spec(spec)
    sys.modules["nanogpt_model"] = module
    spec.loader.exec_module(module)
    return module


class TheirLoop:
    """nanoGPT's training step: random windows, gradients accumulated and clipped, AdamW."""

    def __init__(self, options: argparse.Namespace, tokens: Any, config: Any, device: str) -> None:
        import numpy as np
        import torch

        nanogpt = import_nanogpt(options.nanogpt)
        shape = nanogpt.GPTConfig(
            block_size=options.block,
            vocab_size=config.vocab_size,
            n_layer=config.n_layer,
            n_head=config.n_head,
            n_embd=config.n_embd,
            dropout=0.0,
            bias=True,
        )
        self.plain = nanogpt.GPT(shape).to(device)
        self.optimizer = self.plain.configure_optimizers(0.1, 1e-3, (0.9, 0.99), device)
        self.model: Any = torch.compile(self.plain) if device != "cpu" else self.plain
        self.data, self.options, self.device = np.asarray(tokens, dtype=np.int64), options, device
        self.rows = max(1, options.batch_tokens // options.block)
        self.parameters = sum(p.numel() for name, p in self.plain.named_parameters() if "wpe" not in name)
        self.width = config.n_layer * config.n_embd

    def step(self) -> tuple[int, float]:
        """One optimizer step; its tokens and operations."""
        import numpy as np
        import torch

        block = self.options.block
        for _ in range(self.options.accumulate):
            starts = np.random.default_rng().integers(len(self.data) - block - 1, size=self.rows)
            x = torch.from_numpy(np.stack([self.data[i : i + block] for i in starts])).to(self.device)
            y = torch.from_numpy(np.stack([self.data[i + 1 : i + 1 + block] for i in starts])).to(self.device)
            with torch.autocast(self.device, dtype=torch.bfloat16, enabled=self.device != "cpu"):
                _, loss = self.model(x, y)
            (loss / self.options.accumulate).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        tokens = self.options.accumulate * self.rows * block
        return tokens, 6.0 * self.parameters * tokens + 12.0 * self.width * tokens * block / 2


def run(options: argparse.Namespace) -> tuple[Meter, Meter, float]:
    """Train in turns; both meters, and our mean tokens of a crystal."""
    import numpy as np
    from transformers import AutoModelForCausalLM, TrainerCallback

    from mat2seq_hf.presets import gpt2_config, llama_config
    from mat2seq_hf.sequence import scheme_fingerprint
    from mat2seq_hf.training.config import TrainConfig
    from mat2seq_hf.training.data import IGNORED, Examples, MicroBatches, load_corpus
    from mat2seq_hf.training.packing import BatchPlan
    from mat2seq_hf.training.trainer import CrystalTrainer

    folder = tempfile.mkdtemp(prefix="benchmark-training-")
    config = TrainConfig(
        output_dir=folder,
        batching=options.batching,
        optimizer=options.optimizer,
        gradient_accumulation_steps=options.accumulate,
        max_steps=options.rounds * options.steps + options.steps,
        eval_strategy="no",
        save_strategy="no",
        load_best_model_at_end=False,
        torch_compile=True,
        report_to="none",
        disable_tqdm=True,
        cpu_threads=options.threads,
    )
    device = config.device.type
    corpus = load_corpus(options.data, max_length=options.block, scheme=scheme_fingerprint())
    plan = BatchPlan(
        corpus.lengths, batch_tokens=options.batch_tokens, batching=config.batching, row_length=options.block
    )
    shape = gpt2_config(options.size, dropout=0.0, n_positions=options.block)
    llama = llama_config(options.size, max_position_embeddings=options.block)
    model = AutoModelForCausalLM.from_config(llama if options.model_type == "llama" else shape)
    model.loss_type = "ForCausalLM"
    parameters = sum(p.numel() for name, p in model.named_parameters() if "wpe" not in name)
    theirs = TheirLoop(options, corpus.ids, shape, device)
    meters = Meter([], [], []), Meter([], [], [])
    print(f"{device}, {options.size}: {parameters / 1e6:.2f} million parameters (theirs {theirs.parameters / 1e6:.2f})")

    class Counting(CrystalTrainer):
        """Counts what it trains on."""

        tokens, pairs = 0, 0.0

        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            labels = inputs["labels"]
            lengths = (labels != IGNORED).sum(dim=1).double()
            self.tokens += int(lengths.sum())
            mean = corpus.lengths.astype(np.float64) if config.batching == "packed" else lengths.cpu().numpy()
            self.pairs += float(lengths.sum()) * float((mean**2).sum() / mean.sum()) / 2
            return super().compute_loss(model, inputs, *args, **kwargs)

    class Turns(TrainerCallback):
        """After every few steps of ours, as many of theirs; the first round warms both up."""

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step % options.steps:
                return
            operations = 6.0 * parameters * trainer.tokens + 12.0 * theirs.width * trainer.pairs
            self.note(meters[0], trainer.tokens, operations)
            self.start = clock(device)
            done = [theirs.step() for _ in range(options.steps)]
            self.note(meters[1], sum(tokens for tokens, _ in done), sum(count for _, count in done))
            trainer.tokens, trainer.pairs, self.start = 0, 0.0, clock(device)
            print(".", end="", file=sys.stderr, flush=True)

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.start = clock(device)

        def note(self, meter: Meter, tokens: int, operations: float) -> None:
            meter.times.append(clock(device) - self.start)
            meter.tokens.append(tokens)
            meter.operations.append(operations)

    batches = MicroBatches(Examples(corpus), plan, options.block if config.batching == "packed" else None)
    trainer = Counting(model, config, batches, corpus.select([0]))
    trainer.add_callback(Turns())
    trainer.train()
    for meter in meters:
        for values in (meter.times, meter.tokens, meter.operations):
            del values[0]
    return *meters, float(corpus.lengths.mean())


def main() -> None:
    """Measure and print."""
    import torch

    options = parse_arguments()
    torch.set_num_threads(options.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    before = matrix_peak(device)
    ours, theirs, length = run(options)
    peak = max(before, matrix_peak(device))
    print(f"\nmatrix product: {peak / 1e9:,.0f} GFLOP/s; best of {options.rounds} rounds of {options.steps} steps")
    print(f"{'':28s}{'ours':>12s}{'nanoGPT':>12s}{'ratio':>8s}")
    speeds = [meter.best(meter.tokens) for meter in (ours, theirs)]
    crystals = speeds[0] / length, speeds[1] / options.their_tokens
    flops = [meter.best(meter.operations) for meter in (ours, theirs)]
    for label, pair in (
        ("tokens a second", speeds),
        ("tokens a crystal", (length, options.their_tokens)),
        ("crystals a second", crystals),
        ("GFLOP/s", [value / 1e9 for value in flops]),
        ("% of the matrix product", [100 * value / peak for value in flops]),
    ):
        print(f"{label:28s}{pair[0]:12,.1f}{pair[1]:12,.1f}{pair[0] / pair[1]:8.2f}")


if __name__ == "__main__":
    main()
