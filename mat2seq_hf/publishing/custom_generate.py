"""Generation under the grammar for a model folder: ``model.generate(custom_generate=folder, trust_remote_code=True)``.

This file is copied into the folder as ``custom_generate/generate.py``. It takes the package if that is installed, and
else the modules that lie beside the weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import torch

__all__ = ["generate"]


def _modules(folder: str) -> list[Any]:
    """The modules wishes, prompts and constraints."""
    names = ("wishes", "prompts", "constraints")
    try:
        return [import_module(f"mat2seq_hf.{name}") for name in names]
    except ModuleNotFoundError:
        from transformers.dynamic_module_utils import get_class_from_dynamic_module

        # one module is fetched, and with it those that it imports: fetched singly, they would not share their classes
        home = get_class_from_dynamic_module("constraints.GrammarLogitsProcessor", folder).__module__.rpartition(".")[0]
        return [import_module(f"{home}.{name}") for name in names]


def generate(model: Any, formula: Any = None, code: str | None = None, **arguments: Any) -> Any:
    """Token ids of crystals, as ``model.generate`` gives them, drawn under the grammar.

    Args:
        model: given by transformers.
        formula: a reduced formula such as ``"BaTiO3"``, any other prompt that the pipeline takes, a list of them, or
            None for any crystal.
        code: folder or repository with the code, by default the one the model came from.
        arguments: formula_units, elements, n_atoms, max_atoms, space_group, crystal_system, condition, properties or a
            property by its name, as for the pipeline, and anything that ``model.generate`` takes but ``inputs`` and
            the like: the prompt takes their place. do_sample is True if not given.

    Raises:
        FormulaError, PromptError: what is asked cannot be read or fulfilled, names a property that the model was not
            trained with, or comes as tokens.

    Returns:
        what ``model.generate`` returns; decode it with the tokenizer of the folder.

    Example:
        >>> ids = model.generate(
        ...     custom_generate="org/model", trust_remote_code=True, formula="BaTiO3", num_return_sequences=4
        ... )
        >>> tokenizer.decode_structure(ids[0])
    """
    reading, fitting, masking = _modules(code or model.name_or_path)
    wishes = {name: arguments.pop(name) for name in reading.WISHES if name in arguments}
    arguments = {name: value for name, value in arguments.items() if value is not None}
    if tokens := sorted(arguments.keys() & {"inputs", "input_ids", "inputs_embeds", "attention_mask"}):
        raise fitting.PromptError(f"{tokens[0]} would be overlooked: say what is asked by name, as formula='BaTiO3'")
    one = formula is None or isinstance(formula, (str, Mapping, reading.Prompt))
    record = getattr(model.config, "mat2seq", None) or {}
    prompts = [reading.read_prompt(asked, wishes) for asked in ([formula] if one else formula)]
    if not prompts:
        raise fitting.PromptError("formula is an empty list; leave it out for any crystal")
    processor = masking.GrammarLogitsProcessor([fitting.prompt_for_model(prompt, record) for prompt in prompts])
    begin, pad = model.config.bos_token_id, model.config.pad_token_id
    starts = [[begin, *processor.grammar.forced_prefix(prompt)] for prompt in processor.prompts]
    longest = max(map(len, starts))
    ids = torch.tensor([[pad] * (longest - len(start)) + start for start in starts], device=model.device)
    own = list(arguments.pop("logits_processor", ()))
    if arguments.keys().isdisjoint({"max_length", "max_new_tokens"}):
        arguments["max_new_tokens"] = model.config.max_position_embeddings - longest
    arguments.setdefault("do_sample", True)
    return model.generate(ids, attention_mask=(ids != pad).long(), logits_processor=[processor, *own], **arguments)
