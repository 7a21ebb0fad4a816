"""Generation under the grammar for a model folder: ``model.generate(custom_generate=folder, trust_remote_code=True)``.

This file is copied into the folder as ``custom_generate/generate.py``. It takes the package if that is installed, and
else the modules that lie beside the weights.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch

__all__ = ["generate"]

_WISHES = ("formula_units", "elements", "n_atoms", "max_atoms", "space_group", "crystal_system", "properties")


def _parts(folder: str) -> tuple[Any, Any]:
    """The classes Prompt and GrammarLogitsProcessor."""
    try:
        constraints = import_module("mat2seq_hf.constraints")
    except ModuleNotFoundError:
        from transformers.dynamic_module_utils import get_class_from_dynamic_module

        processor: Any = get_class_from_dynamic_module("constraints.GrammarLogitsProcessor", folder)
        return import_module(processor.__module__).Prompt, processor
    return constraints.Prompt, constraints.GrammarLogitsProcessor


def generate(model: Any, formula: Any = None, code: str | None = None, **arguments: Any) -> Any:
    """Token ids of crystals, as ``model.generate`` gives them, drawn under the grammar.

    Args:
        model: given by transformers.
        formula: a reduced formula such as ``"BaTiO3"``, a list of them, or None for any crystal.
        code: folder or repository with the code, by default the one the model came from.
        arguments: formula_units, elements, n_atoms, max_atoms, space_group, crystal_system, properties, and anything
            that ``model.generate`` takes but ``inputs``: the prompt takes its place. do_sample is True if not given.

    Raises:
        PromptError: what is asked contradicts itself, or names a property that the model was not trained with.

    Returns:
        what ``model.generate`` returns; decode it with the tokenizer of the folder.

    Example:
        >>> ids = model.generate(
        ...     custom_generate="org/model", trust_remote_code=True, formula="BaTiO3", num_return_sequences=4
        ... )
        >>> tokenizer.decode_structure(ids[0])
    """
    prompt_class, processor_class = _parts(code or model.name_or_path)
    wishes = {name: arguments.pop(name) for name in _WISHES if name in arguments}
    arguments = {name: value for name, value in arguments.items() if value is not None and name != "inputs"}
    formulas = [formula] if formula is None or isinstance(formula, str) else list(formula)
    record = getattr(model.config, "mat2seq", None) or {}
    limit = record.get("max_atoms")
    if limit is not None and wishes.keys().isdisjoint({"formula_units", "n_atoms", "max_atoms"}):
        wishes["max_atoms"] = limit
    processor = processor_class([prompt_class(one, **wishes) for one in formulas])
    asked = [name for name, _ in processor.prompts[0].properties]
    if unknown := [name for name in asked if name not in record.get("fields", ())]:
        error: Any = import_module(processor.__class__.__module__).PromptError
        raise error(f"the model was not trained with the property {', '.join(unknown)}; leave it out")
    begin, pad = model.config.bos_token_id, model.config.pad_token_id
    starts = [[begin, *processor.grammar.forced_prefix(prompt)] for prompt in processor.prompts]
    longest = max(map(len, starts))
    ids = torch.tensor([[pad] * (longest - len(start)) + start for start in starts], device=model.device)
    own = list(arguments.pop("logits_processor", ()))
    if arguments.keys().isdisjoint({"max_length", "max_new_tokens"}):
        arguments["max_new_tokens"] = model.config.max_position_embeddings - longest
    arguments.setdefault("do_sample", True)
    return model.generate(ids, attention_mask=(ids != pad).long(), logits_processor=[processor, *own], **arguments)
