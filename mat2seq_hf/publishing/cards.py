"""Model cards, rendered from what a run and its evaluation left behind; no number is typed in."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from transformers import PretrainedConfig

from ..evaluation.schema import LABELS, format_figure

__all__ = ["public_model", "public_record", "public_report", "render_model_card"]

_SETTINGS = (
    *("model_size", "optimizer", "learning_rate", "muon_learning_rate", "weight_decay", "dropout", "batching"),
    *("prefix_fields", "prefix_dropout", "loss_on"),
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
pipe("{example}", num_return_sequences=4)
```
"""

_WITHOUT_PACKAGE = """\
Without the package installed (its dependencies are needed: transformers, torch, pymatgen, spglib, moyopy, gemmi), the
code in the repository does the same:

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

- data: {crystals:,} crystals of {corpus}, {tokens:,} tokens, fingerprint `{fingerprint}`; canonical form `{scheme}`
- model: stock `{architecture}`, {parameters:,} parameters
{runs}
- software: {software}
"""

_RUN = (
    "- {begin}: {steps:,} steps, {epochs:.2f} epochs, {tokens_seen:,} tokens, {minutes:.0f} minutes on {hardware} "
    "({rate:,.0f} tokens a second); {optimizer}, learning rate {learning_rate:g}{matrices}, dropout {dropout:g}, "
    "seed {seed}{fields}"
)

_FIGURES = (
    *("match_1", "match_k", "rmse_1", "rmse_k", "match_1_valid", "match_k_valid", "metre", "formula_right"),
    *("space_group_right", "valid_structure", "valid_composition", "valid"),
)

_BITS = "Validation, {crystals:,} crystals: {bits} (unigrams: {unigram:.1f}).\n"

#: Bits of a run record, and what is given where they are counted.
_GIVEN = {
    "bits_per_structure": "",
    "bits_given_formula": " given the formula",
    "bits_given_fields": " given the prefix fields",
    "bits_given_fields_and_formula": " given the prefix fields and the formula",
}

_METHOD = """\
The prompt is the composition of the primitive cell and nothing else; missing samples are misses, none is filtered, and
one is picked out of several only where its command says `--candidates`. Match: StructureMatcher ltol {ltol:g}, stol
{stol:g}, angle_tol {angle_tol:g}. Intervals are 95 %.
"""

_COMMANDS = """\
Commands:

```bash
{commands}
```
"""

_LIMITS = """\
## Limits

{size}- Samples are proposals. The grammar guarantees composition, space group and Wyckoff positions, not that atoms
  keep their distances, that the crystal is stable, or that it can be made: relax and check them.
- {fields}
- Random splits of a corpus share structure types with the training split: match rates on them say little about
  chemistries that are not there.
"""


def _run(record: dict[str, Any], first: bool) -> str:
    settings, hardware = record["settings"], record["hardware"]
    source, fields = settings.get("init_from"), settings.get("prefix_fields") or []
    muon = settings["optimizer"] == "muon"
    begin = ("from random weights" if source is None else f"from {source}") if first else "then, from these weights"
    share = 100 * (1 - settings.get("prefix_dropout", 0))
    return _RUN.format(
        begin=record.get("begin") or begin,
        fields=f"; {', '.join(fields)} before {share:.0f} % of the formulas" if fields else "",
        hardware=hardware.get("gpu") or f"{hardware['threads']} CPU threads",
        minutes=record["training_seconds"] / 60,
        rate=record["throughput"]["tokens_per_second"],
        matrices=f" ({settings['muon_learning_rate']:g} for matrices)" if muon else "",
        **{name: record[name] for name in ("steps", "epochs", "tokens_seen")},
        **{name: settings[name] for name in ("optimizer", "learning_rate", "dropout", "seed")},
    )


def _training(model: dict[str, Any], runs: Sequence[dict[str, Any]], corpus: str) -> str:
    last = runs[-1]
    train = last["data"]["train"]
    return _TRAINING.format(
        corpus=corpus,
        scheme=last["scheme"]["fingerprint"],
        runs="\n".join(_run(run, number == 0) for number, run in enumerate(runs)),
        software=", ".join(f"{name} {version}" for name, version in last["versions"].items() if version),
        parameters=last["parameters"],
        architecture=model["architecture"],
        **{name: train[name] for name in ("crystals", "tokens", "fingerprint")},
    )


def _cell(report: dict[str, Any], name: str) -> str:
    if name not in report["figures"] or (report["settings"]["samples"] == 1 and "_k" in name):
        return ""  # of one sample, one and any of k are the same
    return format_figure(name, report["figures"][name])


def _bits(run: dict[str, Any]) -> str:
    """Validation bits of what the model was trained for, by their names."""
    results, settings = run["results"], run["settings"]
    names = [name for name in _GIVEN if name in results]
    chosen_by = str(results.get("best_checkpoint_by"))
    if settings.get("prefix_dropout", 0 if chosen_by.startswith("bits_given_fields") else None) == 0:
        names = [name for name in names if "fields" in name] or names  # it knows no sequence without them
    found = []
    for name in names:
        error = results[f"{name}_standard_error"]
        within = "" if error is None else f" +- {error:.1f}"
        found.append(f"{results[name]:.1f}{within} bits per structure{_GIVEN[name]}")
    return ", ".join(found)


def _results(runs: Sequence[dict[str, Any]], reports: Sequence[dict[str, Any]]) -> str:
    crystals = runs[-1]["data"]["validation"]["crystals"]
    unigram = next(value for name, value in runs[-1]["results"].items() if name.startswith("unigram_"))
    predicted = [report for report in reports if report.get("task", "csp") == "csp"]
    commands = [run["command"] for run in runs if run.get("command")]
    for report in reports:
        commands += [command for command in (report.get("sampling"), report["command"]) if command]
    return "\n".join(
        [
            "## Results\n",
            _BITS.format(crystals=crystals, bits=_bits(runs[-1]), unigram=unigram),
            *(_prediction(predicted) if predicted else []),
            *(_figures(report) for report in reports if report not in predicted),
            _COMMANDS.format(commands="\n".join(commands)),
        ]
    )


def _prediction(reports: Sequence[dict[str, Any]]) -> list[str]:
    """Structure prediction, the reports side by side."""
    lines = [f"| | {' | '.join(report['name'] for report in reports)} |", "|---" * (len(reports) + 1) + "|"]
    for name in _FIGURES:
        cells = [_cell(report, name) for report in reports]
        if any(cells):
            lines.append(f"| {LABELS[name]} | {' | '.join(cells)} |")
    return [*lines, "", _METHOD.format(**reports[0]["settings"])]


def _figures(report: dict[str, Any]) -> str:
    """All figures of a report of another task, and what it says of them."""
    lines = [f"| {report['name']} | |", "|---|---|"]
    lines += [f"| {LABELS.get(name, name)} | {format_figure(name, f)} |" for name, f in report["figures"].items()]
    return "\n".join([*lines, "", " ".join(report["notes"]), ""])


def _limits(model: dict[str, Any]) -> str:
    atoms, fields = model.get("max_atoms"), model.get("fields")
    size = f"- Trained on cells of at most {atoms} atoms; much larger ones it does not write well.\n" if atoms else ""
    known = (
        f"It takes {', '.join(fields)} as wishes, and no other properties."
        if fields
        else "It knows no properties: prompts for a band gap or an energy are refused."
    )
    return _LIMITS.format(size=size, fields=known)


def public_report(report: dict[str, Any]) -> dict[str, Any]:
    """What a card needs of the ``report.json`` of ``mat2seq evaluate``."""
    return {key: report[key] for key in ("task", "name", "command", "settings", "figures", "notes")}


def public_record(record: dict[str, Any]) -> dict[str, Any]:
    """What a card needs of ``run_record.json``: no paths, no machine names."""
    settings = record["settings"]
    data = {
        split: {key: facts[key] for key in ("crystals", "tokens", "fingerprint")}
        for split, facts in record["data"].items()
    }
    source = settings.get("init_from")
    if source is not None:
        source = "the model in the package" if source == "shipped" else f"`{PurePath(source).name}`"
    return {
        "settings": {**{key: settings[key] for key in _SETTINGS if key in settings}, "init_from": source},
        "hardware": {key: record["hardware"][key] for key in ("threads", "gpu") if key in record["hardware"]},
        "data": data,
        **{key: record[key] for key in _FACTS},
    }


def public_model(config: PretrainedConfig) -> dict[str, Any]:
    """What a card needs of a model's configuration."""
    known = getattr(config, "mat2seq", None) or {}
    return {
        "architecture": (config.architectures or [type(config).__name__])[0],
        "max_atoms": known.get("max_atoms"),
        "fields": known.get("fields") or [],
    }


def render_model_card(
    *,
    name: str,
    title: str,
    corpus: str,
    model: dict[str, Any],
    runs: Sequence[dict[str, Any]],
    reports: Sequence[dict[str, Any]],
    example: str = "BaTiO3",
) -> ModelCard:
    """The card of a model.

    Args:
        name: repository, such as ``"org/model"``, or folder that snippets load it from.
        title: heading of the card.
        corpus: what the training crystals are, such as ``"the MP-20 training split (CC BY 4.0)"``.
        model: :func:`public_model` of its configuration.
        runs: :func:`public_record` of each training run that led to it, the first one first, with the ``command`` that
            made it where it is known, and how it began (``begin``) where that is not from the weights before it.
        reports: :func:`public_report` of its evaluations, each with the command that drew its samples (``sampling``).
        example: formula that the card's snippet asks for.

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
        _SNIPPET.format(model="" if shipped else f', model="{name}"', example=example),
        "" if shipped else _WITHOUT_PACKAGE.format(name=name),
        _training(model, runs, corpus),
        _results(runs, reports),
        _limits(model),
    ]
    return ModelCard("\n\n".join(part.strip() for part in parts if part.strip()) + "\n")
