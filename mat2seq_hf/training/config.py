"""One dataclass is the configuration, the command line and the recipe format."""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
import yaml
from transformers import HfArgumentParser, TrainingArguments

from ..errors import Mat2SeqError

__all__ = ["RECIPES", "TrainConfig", "parse_config"]

RECIPES = Path(__file__).parent / "recipes"


@dataclass
class TrainConfig(TrainingArguments):
    """Everything a training run is given; every field of :class:`~transformers.TrainingArguments` is an option too.

    A recipe is a YAML file of such fields; what the command line says wins over it.
    """

    recipe: str | None = field(
        default=None, metadata={"help": "name of a recipe in mat2seq_hf/training/recipes, or path of a YAML file"}
    )
    train_data: str | None = field(default=None, metadata={"help": "folder of prepared shards to train on"})
    eval_data: str | None = field(default=None, metadata={"help": "folder of prepared shards to validate on"})
    model_size: str = field(default="tiny", metadata={"help": "preset of gpt2_config: tiny, small or large"})
    init_from: str | None = field(default=None, metadata={"help": "checkpoint to fine-tune; default: random weights"})
    dropout: float = field(default=0.0, metadata={"help": "dropout of a new model; 0 is best for few epochs"})
    prefix_fields: list[str] = field(
        default_factory=list,
        metadata={"help": "fields that stand before the formula, such as space_group band_gap; default: none"},
    )
    prefix_dropout: float = field(
        default=0.5, metadata={"help": "probability that a crystal comes without any prefix field"}
    )
    loss_on: str = field(default="all", metadata={"help": "all, or completion: only what follows the formula"})
    symprec: float = field(default=0.01, metadata={"help": "angstrom; the data must have been prepared with it"})
    batching: str = field(default="bucketed", metadata={"help": "bucketed (CPU) or packed (fixed shapes, GPU)"})
    batch_tokens: int = field(default=2048, metadata={"help": "tokens of a micro-batch on each device"})
    row_length: int = field(default=512, metadata={"help": "tokens of a packed row; longer crystals are left out"})
    eval_crystals: int = field(default=1000, metadata={"help": "random crystals for validation during the run"})
    time_budget_minutes: float | None = field(
        default=None,
        metadata={"help": "stop after so many minutes of training; the learning rate follows the share of time used"},
    )
    optimizer: str = field(default="adamw", metadata={"help": "adamw, or muon for matrices with adamw for the rest"})
    muon_learning_rate: float = field(default=0.02, metadata={"help": "peak learning rate of the matrices with muon"})
    cpu_threads: int = field(default=0, metadata={"help": "torch threads on a CPU; 0: all cores"})

    # defaults of TrainingArguments that differ here
    learning_rate: float = 1.5e-3
    adam_beta2: float = 0.99
    weight_decay: float = 0.1
    lr_scheduler_type: str = "cosine"
    warmup_steps: float = 0.02  # below 1: share of the run
    num_train_epochs: float = 20
    gradient_accumulation_steps: int = 4
    per_device_train_batch_size: int = 1  # items of the data set are whole micro-batches
    logging_steps: float = 25
    eval_strategy: str = "steps"
    save_strategy: str = "steps"
    eval_steps: float | None = 200
    save_steps: float = 200
    save_total_limit: int | None = 3
    load_best_model_at_end: bool = True
    metric_for_best_model: str | None = "bits_per_structure"
    greater_is_better: bool | None = False
    report_to: None | str | list[str] = "auto"  # noqa: RUF036 - the only order that HfArgumentParser reads
    remove_unused_columns: bool = False

    def __post_init__(self) -> None:
        if self.report_to == "auto":
            self.report_to = "tensorboard" if importlib.util.find_spec("tensorboard") else "none"
        if torch.cuda.is_available() and not self.use_cpu and not self.fp16:
            self.bf16 = True
        super().__post_init__()  # type: ignore[no-untyped-call]


def _recipe_path(recipe: str) -> Path:
    path = Path(recipe) if recipe.endswith((".yaml", ".yml")) else RECIPES / f"{recipe}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in RECIPES.glob("*.yaml")))
        raise Mat2SeqError(f"no recipe {recipe!r}: give a YAML file or one of {known}")
    return path


def parse_config(arguments: Sequence[str]) -> TrainConfig:
    """Configuration from command-line arguments over a recipe over the defaults.

    Raises:
        Mat2SeqError: unknown recipe, a field that does not exist, or no training and validation data.

    Example:
        >>> config = parse_config(["--recipe", "mp_20_tiny", "--train_data", "a", "--eval_data", "b"])
        >>> config.model_size
        'tiny'
    """
    parser = HfArgumentParser(TrainConfig)  # type: ignore[arg-type]
    known = {action.dest for action in parser._actions}
    recipe = next((b for a, b in itertools.pairwise(arguments) if a == "--recipe"), None)
    if recipe is not None:
        fields = yaml.safe_load(_recipe_path(recipe).read_text(encoding="utf-8")) or {}
        if unknown := sorted(set(fields) - known):
            raise Mat2SeqError(f"recipe {recipe!r} has fields that do not exist: {', '.join(unknown)}")
        parser.set_defaults(**fields)
    (config,) = parser.parse_args_into_dataclasses(args=list(arguments))
    assert isinstance(config, TrainConfig)
    missing = [name for name in ("train_data", "eval_data") if getattr(config, name) is None]
    if missing:
        raise Mat2SeqError(f"--{' and --'.join(missing)} missing: folders written by `mat2seq prepare`")
    return config
