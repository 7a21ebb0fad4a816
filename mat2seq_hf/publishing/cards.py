"""Model cards, rendered from what a run and its evaluation left behind; no number is typed in."""

from __future__ import annotations

from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from ..evaluation.schema import LABELS, format_figure

__all__ = ["public_record", "public_report", "render_model_card"]

_SETTINGS = (
    *("model_size", "optimizer", "learning_rate", "muon_learning_rate", "weight_decay", "dropout", "batching"),
    *("batch_tokens", "gradient_accumulation_steps", "warmup_steps", "time_budget_minutes", "num_train_epochs", "seed"),
)
_FACTS = (
    *("scheme", "versions", "parameters", "steps", "epochs", "tokens_seen", "training_seconds"),
    *("best_checkpoint_step", "throughput", "results"),
)

_SNIPPET = """\
```python
from transformers import pipeline
import mat2seq_hf  # pip install mat2seq-hf

pipe = pipeline("crystal-generation"{model})
pipe("BaTiO3", num_return_sequences=4)
```
"""

_WITHOUT_PACKAGE = """\
Without the package installed (its dependencies are needed: transformers, torch, pymatgen, spglib), the code in the
repository does the same:

```python
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.dynamic_module_utils import get_class_from_dynamic_module

name = "{name}"
Pipe = get_class_from_dynamic_module("pipeline.CrystalGenerationPipeline", name)
pipe = Pipe(
    model=AutoModelForCausalLM.from_pretrained(name),
    tokenizer=AutoTokenizer.from_pretrained(name, trust_remote_code=True),
)
```
"""


_TRAINING = """\
## Training

- data: {crystals:,} crystals of the MP-20 training split (Materials Project, CC BY 4.0), {tokens:,} tokens,
  fingerprint `{fingerprint}`; canonical form `{scheme}`
- model: stock `GPT2LMHeadModel`, {parameters:,} parameters, trained from scratch
- {steps:,} steps, {epochs:.2f} epochs, {tokens_seen:,} tokens, {minutes:.0f} minutes on {threads} CPU threads shared
  with other work ({rate:,.0f} tokens a second)
- optimizer {optimizer}, learning rate {learning_rate:g}, dropout {dropout:g}, seed {seed}
- software: {software}
"""

_FIGURES = (
    *("match_1", "match_k", "rmse_1", "rmse_k", "match_1_valid", "match_k_valid", "metre", "formula_right"),
    *("space_group_right", "valid_structure", "valid_composition", "valid"),
)

_METHOD = """\
{place}. The prompt is the composition of the primitive cell and nothing else; StructureMatcher ltol {ltol:g}, stol
{stol:g}, angle_tol {angle_tol:g}; no sample is filtered or picked, missing ones are misses; intervals are 95 %.
Commands:

```bash
{training}
{sampling}
{evaluation}
```
"""


def _training(record: dict[str, Any]) -> str:
    settings, train = record["settings"], record["data"]["train"]
    return _TRAINING.format(
        crystals=train["crystals"],
        tokens=train["tokens"],
        fingerprint=train["fingerprint"],
        scheme=record["scheme"]["fingerprint"],
        parameters=record["parameters"],
        steps=record["steps"],
        epochs=record["epochs"],
        tokens_seen=record["tokens_seen"],
        minutes=record["training_seconds"] / 60,
        threads=record["hardware"]["threads"],
        rate=record["throughput"]["tokens_per_second"],
        optimizer=settings["optimizer"],
        learning_rate=settings["learning_rate"],
        dropout=settings["dropout"],
        seed=settings["seed"],
        software=", ".join(f"{name} {version}" for name, version in record["versions"].items() if version),
    )


def _results(record: dict[str, Any], report: dict[str, Any]) -> str:
    results, validation = record["results"], record["data"]["validation"]
    bits, error = results["bits_per_structure"], results["bits_per_structure_standard_error"]
    rows = [
        (f"validation, bits per structure ({validation['crystals']:,} crystals)", f"{bits:.1f} +- {error:.1f}"),
        ("the same of a unigram model", f"{results['unigram_bits_per_structure']:.1f}"),
    ]
    figures = {name: report["figures"][name] for name in _FIGURES if name in report["figures"]}
    if report["settings"]["samples"] == 1:  # then one sample and any of k are the same
        figures = {name: figure for name, figure in figures.items() if "_k" not in name}
    rows += [(LABELS[name], format_figure(name, figure)) for name, figure in figures.items()]
    table = ["| what | figure |", "|---|---|", *(f"| {what} | {figure} |" for what, figure in rows)]
    method = _METHOD.format(
        place=report["name"],
        sampling=record["sampling"],
        evaluation=report["command"],
        training=record["command"],
        **report["settings"],
    )
    return "\n".join(["## Results", "", *table, "", method])


_LIMITS = """\
## Limits

- Trained on crystals with at most 20 atoms in the primitive cell, computed with DFT (PBE); much larger ones it does not
  write well.
- Samples are proposals. The grammar guarantees composition, space group and Wyckoff positions, not that atoms keep
  their distances, that the crystal is stable, or that it can be made: relax and check them.
- It knows no properties: prompts for a band gap or an energy are refused.
- The match rate above is on validation crystals; random splits of Materials Project data share structure types with the
  training split.
"""


def public_report(report: dict[str, Any]) -> dict[str, Any]:
    """What a card needs of the ``report.json`` of ``mat2seq evaluate csp``."""
    return {key: report[key] for key in ("name", "command", "settings", "figures")}


def public_record(record: dict[str, Any]) -> dict[str, Any]:
    """What a card needs of ``run_record.json``: no paths, no machine names."""
    data = {
        split: {key: facts[key] for key in ("crystals", "tokens", "fingerprint")}
        for split, facts in record["data"].items()
    }
    return {
        "settings": {key: record["settings"][key] for key in _SETTINGS if key in record["settings"]},
        "hardware": {"threads": record["hardware"]["threads"]},
        "data": data,
        **{key: record[key] for key in _FACTS},
    }


def render_model_card(record: dict[str, Any], report: dict[str, Any], *, name: str, title: str) -> ModelCard:
    """The card of a model.

    Args:
        record: :func:`public_record` of its training run, with the commands that trained it and drew the samples under
            ``command`` and ``sampling``.
        report: :func:`public_report` of its evaluation.
        name: repository, such as ``"org/model"``, or folder that snippets load it from.
        title: heading of the card.

    Returns:
        a card with metadata; ``str(card)`` is its Markdown.
    """
    data = ModelCardData(
        license="apache-2.0",
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["crystal-generation", "mat2seq", "materials-science", "crystal-structure-prediction"],
    )
    shipped = name == "mat2seq_hf/default_model"
    parts = [
        f"---\n{data.to_yaml()}\n---",
        f"# {title}",
        "A causal language model that writes crystals as [Mat2Seq](https://arxiv.org/abs/2503.00152) sequences: one "
        "canonical text for each crystal, sampled under a grammar. "
        + ("It ships inside the package mat2seq_hf and needs no download." if shipped else ""),
        "## Use",
        _SNIPPET.format(model="" if shipped else f', model="{name}"'),
        "" if shipped else _WITHOUT_PACKAGE.format(name=name),
        _training(record),
        _results(record, report),
        _LIMITS,
    ]
    return ModelCard("\n\n".join(part.strip() for part in parts if part.strip()) + "\n")
