"""Generation under the grammar for a model folder: ``model.generate(custom_generate=folder, trust_remote_code=True)``.

This file is copied into the folder as ``custom_generate/generate.py``. It takes the package if that is installed, and
else the modules that lie beside the weights. Of a model that is loaded with ``trust_remote_code=True`` transformers
makes it the method ``generate`` itself: what asks for no crystal goes on to the stock method from here.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
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


#: Arguments with which ``model.generate`` is given tokens; ``inputs`` is its first one.
_TOKENS = ("inputs", "input_ids", "inputs_embeds", "attention_mask")


def generate(*inputs: Any, model: Any, formula: Any = None, code: str | None = None, **arguments: Any) -> Any:
    """Token ids of crystals, as ``model.generate`` gives them, drawn under the grammar.

    Args:
        inputs: tokens, and what else ``model.generate`` takes by place. Tokens without a formula or wish are a call of
            the stock method, which goes on from them without the grammar, as pipelines and servers call it.
        model: given by transformers.
        formula: a reduced formula such as ``"BaTiO3"``, any other prompt that the pipeline takes, a list of them, or
            None for any crystal.
        code: folder or repository with the code, by default the one the model came from.
        arguments: formula_units, elements, n_atoms, max_atoms, space_group, crystal_system, condition, properties or a
            property by its name, as for the pipeline, and anything that ``model.generate`` takes. do_sample is True if
            not given. ``custom_generate`` is the stock method's: it runs the code named there.

    Raises:
        FormulaError, PromptError: what is asked cannot be read or fulfilled, names a property that the model was not
            trained with, or comes with tokens beside a formula or wish.

    Returns:
        what ``model.generate`` returns; decode it with the tokenizer of the folder.

    Example:
        >>> ids = model.generate(
        ...     custom_generate="org/model", trust_remote_code=True, formula="BaTiO3", num_return_sequences=4
        ... )
        >>> tokenizer.decode_structure(ids[0])
    """
    stock = partial(type(model).generate, model)  # model.generate may be this function
    if arguments.get("custom_generate") is not None:
        asked = {name: value for name, value in (("formula", formula), ("code", code)) if value is not None}
        return stock(*inputs, **asked, **arguments)
    reading, fitting, masking = _modules(code or model.name_or_path)
    wishes = {name: arguments.pop(name) for name in reading.WISHES if name in arguments}
    arguments = {name: value for name, value in arguments.items() if value is not None}
    if tokens := [*(["inputs"] if inputs else []), *(name for name in _TOKENS if name in arguments)]:
        nothing_asked = formula is None and all(wish is None for wish in wishes.values())
        if nothing_asked and not any(isinstance(given, str) for given in (*inputs, arguments.get("inputs"))):
            return stock(*inputs, **arguments)
        raise fitting.PromptError(
            f"{tokens[0]} would be overlooked beside a formula or wish: ask by name alone, as formula='BaTiO3', or "
            "give tokens alone to go on from them without the grammar"
        )
    guidance = arguments.get("guidance_scale", getattr(model.generation_config, "guidance_scale", None))
    if guidance not in (None, 1):  # transformers would compare with a prompt of one token
        raise fitting.PromptError(f"guidance_scale={guidance!r} is for the pipeline; here it has to be 1")
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
    return stock(ids, attention_mask=(ids != pad).long(), logits_processor=[processor, *own], **arguments)
