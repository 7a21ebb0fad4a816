"""One dataclass is the configuration and the command line; a recipe is a YAML file of its fields."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from transformers import HfArgumentParser, TrainingArguments
from transformers.hf_argparser import string_to_bool

from ..errors import Mat2SeqError
from .data import LOSSES
from .recipes import load_recipe

__all__ = ["TrainConfig", "parse_config"]


_LEAST = {
    "batch_tokens": 1,
    "row_length": 2,
    "eval_crystals": 1,
    "group_crystals": 1,
    "sample_formulas": 0,
    "sample_temperature": 1e-3,
    "sample_top_k": 0,
    "dropout": 0.0,
    "prefix_dropout": 0.0,
    "gradient_accumulation_steps": 1,
    "time_budget_minutes": 1e-3,
    "muon_learning_rate": 0.0,
}
_MOST = {"dropout": 1.0, "prefix_dropout": 1.0}
_NAMES = {
    "loss_on": LOSSES,
    "model_type": ("llama", "gpt2"),
    "optimizer": ("adamw", "muon"),
    "batching": ("auto", "bucketed", "packed"),
}


@dataclass
class TrainConfig(TrainingArguments):
    """Everything a training run is given; every field of :class:`~transformers.TrainingArguments` is an option too.

    A recipe is a YAML file of such fields; what the command line says wins over it.
    """

    recipe: str | None = field(
        default=None, metadata={"help": "name of a recipe, such as mp_20_small or finetune, or path of a YAML file"}
    )
    train_data: str | None = field(
        default=None, metadata={"help": "crystals to train on: a folder of `mat2seq prepare`, or anything it reads"}
    )
    eval_data: str | None = field(
        default=None, metadata={"help": "crystals to validate on; default: a random tenth of the training crystals"}
    )
    streaming: bool = field(
        default=False, metadata={"help": "read shards while training, for corpora larger than the memory"}
    )
    group_crystals: int = field(
        default=200_000, metadata={"help": "crystals of the shards that are in memory together when streaming"}
    )
    model_type: str = field(default="llama", metadata={"help": "architecture of a new model: llama or gpt2"})
    model_size: str = field(default="tiny", metadata={"help": "size of a new model: tiny, small or large"})
    init_from: str | None = field(
        default=None,
        metadata={"help": "checkpoint to fine-tune, or `shipped`; default: random weights"},
    )
    dropout: float = field(
        default=0.0,
        metadata={
            "help": "dropout of embeddings and residuals (GPT-2, Llama, Mistral, Qwen); 0 is best for few epochs"
        },
    )
    prefix_fields: list[str] = field(
        default_factory=list,
        metadata={"help": "fields that stand before the formula, such as space_group band_gap; default: none"},
    )
    prefix_dropout: float = field(
        default=0.5,
        metadata={
            "help": "share of the crystals that come without any prefix field, the others with some; 0: always all"
        },
    )
    loss_on: str = field(
        default="all",
        metadata={"help": "all (but prefix fields); completion: only what follows the formula; everything: fields too"},
    )
    symprec: float = field(default=0.01, metadata={"help": "angstrom; the data must have been prepared with it"})
    batching: str = field(
        default="auto", metadata={"help": "bucketed, packed (fixed shapes), or auto: packed on a GPU, else bucketed"}
    )
    batch_tokens: int = field(default=2048, metadata={"help": "tokens of a micro-batch on each device"})
    row_length: int = field(default=512, metadata={"help": "tokens of a packed row; longer crystals are left out"})
    eval_crystals: int = field(default=1000, metadata={"help": "random crystals for validation during the run"})
    sample_formulas: int = field(
        default=0, metadata={"help": "validation formulas of which a crystal is drawn and checked at each evaluation"}
    )
    sample_temperature: float = field(default=0.5, metadata={"help": "temperature of these samples"})
    sample_top_k: int = field(default=10, metadata={"help": "top-k of these samples"})
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
    metric_for_best_model: str | None = field(
        default=None,
        metadata={
            "help": "figure by which the best checkpoint is chosen: bits_per_structure (default), loss, "
            "bits_given_fields (default with prefix_dropout 0), sample_valid or sample_match; with loss_on completion "
            "bits_given_formula and bits_given_fields_and_formula in place of the bits"
        },
    )
    greater_is_better: bool | None = field(
        default=None, metadata={"help": "whether the best is the largest; default: for shares of samples alone"}
    )
    report_to: None | str | list[str] = "auto"  # noqa: RUF036 - the only order that HfArgumentParser reads
    remove_unused_columns: bool = False
    bf16: bool | None = field(  # type: ignore[assignment]
        default=None, metadata={"help": "bf16 arithmetic; default: on a GPU that has it, unless fp16 is asked for"}
    )

    def __post_init__(self) -> None:
        self._check()
        self._choose_metric()
        if self.report_to == "auto":
            self.report_to = "tensorboard" if importlib.util.find_spec("tensorboard") else "none"
        for name in ("eval_strategy", "save_strategy"):
            if getattr(self, name) in {False, "no"}:  # YAML reads no as False
                setattr(self, name, "no")
                self.load_best_model_at_end = False
        on_gpu = torch.cuda.is_available() and not self.use_cpu
        if self.bf16 is None:
            self.bf16 = on_gpu and not self.fp16 and torch.cuda.is_bf16_supported()
        self.torch_compile = self.torch_compile and on_gpu  # recipes ask for it; on a CPU it does not pay
        if self.batching == "auto":
            self.batching = "packed" if on_gpu else "bucketed"
        try:
            super().__post_init__()  # type: ignore[no-untyped-call]
        except ValueError as error:
            raise Mat2SeqError(f"settings that do not go together: {error}") from error

    @property
    def fields_always_given(self) -> bool:
        """Whether every crystal comes with all prefix fields, so that the model knows no sequence without."""
        return bool(self.prefix_fields) and self.prefix_dropout == 0

    @property
    def given_formula(self) -> bool:
        """Whether the model learns no formula, so that the bits of a crystal are those of what follows it."""
        return self.loss_on == "completion"

    @property
    def bits_names(self) -> tuple[str, ...]:
        """What the bits that validation counts are called: those without prefix fields, and, if any, given these."""
        names = ("bits_per_structure", "bits_given_fields")
        if self.given_formula:
            names = ("bits_given_formula", "bits_given_fields_and_formula")
        return names if self.prefix_fields else names[:1]

    @property
    def own_bits_name(self) -> str:
        """Which of them are of sequences as the model is trained on them."""
        return self.bits_names[-1 if self.fields_always_given else 0]

    def _choose_metric(self) -> None:
        """Settle by which figure the best checkpoint is chosen, and whether it is to be large."""
        alone, *with_fields = self.bits_names
        chosen = (self.metric_for_best_model or self.own_bits_name).removeprefix("eval_")
        with_samples = ["sample_valid", "sample_match"] if self.sample_formulas else []
        known = [alone, "loss", *with_fields, *with_samples]
        if chosen not in known:
            raise Mat2SeqError(
                f"metric_for_best_model {chosen!r} is not one of {', '.join(known)}, which this run measures "
                "(bits given fields need --prefix_fields, bits given the formula --loss_on completion; sample_valid "
                "and sample_match need --sample_formulas)"
            )
        self.metric_for_best_model = chosen
        if self.greater_is_better is None:
            self.greater_is_better = "sample_" in chosen

    def _check(self) -> None:
        """Refuse what no run can be made with; see :func:`parse_config`."""
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if value is not None and not value >= least:
                raise Mat2SeqError(f"{name} is {value!r}, it must be at least {least}")
        for name, most in _MOST.items():
            if not getattr(self, name) <= most:
                raise Mat2SeqError(f"{name} is {getattr(self, name)!r}, it must be at most {most}")
        for name, names in _NAMES.items():
            if getattr(self, name) not in names:
                raise Mat2SeqError(f"{name} {getattr(self, name)!r} is not one of {', '.join(names)}")
        if self.time_budget_minutes is not None and not 0 <= self.warmup_steps < 1:
            raise Mat2SeqError(
                f"warmup_steps is {self.warmup_steps!r}; with a time budget it must be a share of it, from 0 to below 1"
            )
        self._refuse_what_has_no_effect()
        if self.push_to_hub:
            raise Mat2SeqError(
                "push_to_hub would upload the crystals in OUTPUT_DIR/data and a model without its code: train without "
                "it, then `python scripts/export_model.py OUTPUT_DIR -o my-model` and `hf upload me/my-model my-model`"
            )
        given: object = self.prefix_fields
        if isinstance(given, str):  # a recipe with a single word
            self.prefix_fields = given.split()

    def _refuse_what_has_no_effect(self) -> None:
        """Refuse options of TrainingArguments that this training does not read, or not with the others."""
        by_clock = self.time_budget_minutes is not None
        useless = {
            "per_device_train_batch_size": (
                self.per_device_train_batch_size != 1,
                "micro-batches are made of whole crystals: --batch_tokens is their size",
            ),
            "data_seed": (self.data_seed is not None, "the data are shuffled by --seed"),
            "optim": (
                self.optimizer == "muon" and self.optim != type(self).optim,
                "with --optimizer muon: choose it with --optimizer adamw",
            ),
            "lr_scheduler_type": (
                by_clock and self.lr_scheduler_type != "cosine",
                "with a time budget, which has a cosine of its own: leave out --time_budget_minutes",
            ),
        }
        for name, (given, remedy) in useless.items():
            if given:
                raise Mat2SeqError(f"{name} {getattr(self, name)!r} has no effect: {remedy}")
        for name in ("eval_steps", "save_steps", "logging_steps"):
            share = getattr(self, name)
            by_steps = getattr(self, name.replace("_steps", "_strategy")) == "steps"
            if by_clock and by_steps and self.max_steps <= 0 and share is not None and 0 < share < 1:
                raise Mat2SeqError(
                    f"{name} is {share!r}, a share of the steps, whose number is not known with a time budget: give a "
                    "number of steps, or --max_steps, too"
                )


def _recipe_of(arguments: Sequence[str]) -> str | None:
    """The recipe that is named last, as for every other option."""
    recipe = None
    for argument, following in zip(arguments, [*arguments[1:], None], strict=False):
        if argument == "--recipe" and following is not None:
            recipe = following
        elif argument.startswith("--recipe="):
            recipe = argument.removeprefix("--recipe=")
    return recipe


def _parser() -> HfArgumentParser:
    # abbreviations would escape the search for the recipe
    parser = HfArgumentParser(TrainConfig, allow_abbrev=False)  # type: ignore[arg-type]
    for action in parser._actions:
        if action.type is string_to_bool and action.nargs is None:  # no default: transformers wants a value, then
            action.nargs, action.const = "?", True
    return parser


def parse_config(arguments: Sequence[str]) -> TrainConfig:
    """Configuration from command-line arguments over a recipe over the defaults.

    Raises:
        Mat2SeqError: unknown recipe, a field that does not exist, an impossible value, values that do not go together,
            or nothing to train on.

    Example:
        >>> config = parse_config(["--recipe", "mp_20_tiny", "--train_data", "a"])
        >>> config.model_size
        'tiny'
    """
    parser = _parser()
    recipe = _recipe_of(arguments)
    if recipe is not None:
        fields = load_recipe(recipe)
        if unknown := sorted(set(fields) - {action.dest for action in parser._actions}):
            raise Mat2SeqError(f"recipe {recipe!r} has fields that do not exist: {', '.join(unknown)}")
        parser.set_defaults(**fields)
    try:
        (config,) = parser.parse_args_into_dataclasses(args=list(arguments))
    except ValueError as error:
        raise Mat2SeqError(f"{error}; scripts/train.py --help lists all options") from error
    assert isinstance(config, TrainConfig)
    if config.train_data is None:
        raise Mat2SeqError(
            "--train_data missing: a folder written by `mat2seq prepare`, or crystals (a folder of CIFs, a table ...)"
        )
    return config
