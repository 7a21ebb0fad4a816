"""The model a run begins with."""

from __future__ import annotations

import json
import logging
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.utils.hub import cached_file

from ..errors import Mat2SeqError, SchemeMismatchError
from ..presets import gpt2_config, llama_config
from ..registration import DEFAULT_MODEL
from ..sequence import scheme_fingerprint
from ..vocabulary import TOKEN_IDS, TOKENS
from .config import TrainConfig
from .prefixes import check_fields

__all__ = ["SHIPPED", "build_model", "keep_largest_cell"]

#: Value of ``init_from`` for the model in the package.
SHIPPED = "shipped"

logger = logging.getLogger(__name__)

_DROPOUTS = ("resid_pdrop", "embd_pdrop", "attn_pdrop")


def _check_vocabulary(source: str, found: PretrainedConfig) -> None:
    """Refuse a model for other tokens: its ids would be read as ours."""
    size = getattr(found, "vocab_size", None)
    if size != len(TOKENS):
        raise SchemeMismatchError(
            f"model {source} has a vocabulary of {size} tokens, this package one of {len(TOKENS)}: "
            "only models for crystal sequences of this scheme can be fine-tuned"
        )
    path = cached_file(source, "tokenizer.json", _raise_exceptions_for_missing_entries=False)
    if path is None:
        return
    vocabulary = json.loads(Path(path).read_text(encoding="utf-8")).get("model", {}).get("vocab", {})
    for token, index in TOKEN_IDS.items():
        if vocabulary.get(token) != index:
            raise SchemeMismatchError(
                f"token {token!r} has the id {vocabulary.get(token)} in the tokenizer of {source}, here {index}"
            )


def _load(config: TrainConfig, source: str, scheme: str, fields: list[str]) -> PreTrainedModel:
    try:
        initial = AutoConfig.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise Mat2SeqError(f"init_from {source!r} is no model folder or repository: {error}") from error
    found = dict(getattr(initial, "mat2seq", None) or {})
    _check_vocabulary(source, initial)
    if found.get("scheme") != scheme:
        raise SchemeMismatchError(
            f"model {source} was trained with scheme {found.get('scheme')!r}, this run is {scheme!r}"
        )
    if (before := found.get("fields") or []) != fields:
        logger.warning(
            "%s was trained with the prefix fields %s, this run trains with %s, and the model will take no others: "
            "--prefix_fields names them",
            *(source, " ".join(before) or "none", " ".join(fields) or "none"),
        )
    initial.mat2seq = {**found, "fields": fields}
    own = {name: config.dropout for name in _DROPOUTS if hasattr(initial, name)}
    if not own and hasattr(initial, "attention_dropout"):
        own = {"attention_dropout": 0.0}  # as in a fresh Llama: hooks drop out the rest
    initial.update(own)
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(source, config=initial, dtype=torch.float32)
    return model


def _drop(module: nn.Module, _arguments: object, output: Tensor, *, probability: float) -> Tensor:
    """Hook: dropout of what a module puts out, while it trains."""
    return dropout(output, probability, module.training)


def _drop_residuals(model: PreTrainedModel, probability: float) -> None:
    """Dropout of the embeddings of a Llama, Mistral or Qwen and of what its blocks add to them, where GPT-2 has it.

    Its configuration only knows that of attention, which is slow on a CPU. Hooks leave what is saved a stock model.

    Raises:
        Mat2SeqError: the architecture has no place for dropout that is known here.
    """
    if not probability or any(hasattr(model.config, name) for name in _DROPOUTS):
        return
    added = [m for name, m in model.named_modules() if name.endswith((".self_attn.o_proj", ".mlp.down_proj"))]
    if not added:
        raise Mat2SeqError(
            f"dropout {probability:g} cannot be put into a model of type {model.config.model_type!r}: leave it at 0, "
            "or start from a GPT-2, Llama, Mistral or Qwen"
        )
    for module in (model.get_input_embeddings(), *added):
        module.register_forward_hook(partial(_drop, probability=probability))


@torch.inference_mode()
def _keeps_apart(model: PreTrainedModel) -> bool:
    """Whether the second crystal of a row has the same logits whatever the first one is."""
    length = 6
    ids = torch.arange(4 * length).view(2, 2 * length) + len(TOKENS) // 2
    ids[1, length:] = ids[0, length:]
    positions = torch.arange(length).repeat(2, 2)
    was_training = model.training
    model.eval()
    logits = model(input_ids=ids, position_ids=positions, use_cache=False).logits[:, length:]
    model.train(was_training)
    return bool((logits[0] - logits[1]).abs().max() <= 1e-5 * (1.0 + logits.abs().max()))


def _check_packing(config: TrainConfig, model: PreTrainedModel) -> None:
    """Refuse packed rows for an architecture that does not restart where positions do."""
    # with FSDP only the first process may have the weights yet
    if config.init_from is None or config.batching != "packed" or config.process_index:
        return
    try:
        apart = _keeps_apart(model)
    except (TypeError, ValueError):  # it takes no positions
        apart = False
    if not apart:
        raise Mat2SeqError(
            f"crystals of a packed row see each other in a model of type {model.config.model_type!r}: use --batching "
            "bucketed"
        )


def build_model(config: TrainConfig) -> PreTrainedModel:
    """A new model of ``config.model_type`` and ``model_size``, or the checkpoint ``init_from``, with the run's dropout.

    Raises:
        SchemeMismatchError: the checkpoint was trained with another canonical form or vocabulary.
        Mat2SeqError: there is no such checkpoint, size or prefix field, no dropout for its architecture, or packed rows
            in which crystals would see each other.
    """
    scheme = scheme_fingerprint(config.symprec)
    fields = list(check_fields(config.prefix_fields))
    model: PreTrainedModel
    if config.init_from is not None:
        source = str(DEFAULT_MODEL) if config.init_from == SHIPPED else config.init_from
        model = _load(config, source, scheme, fields)
        _check_packing(config, model)
    else:
        fresh: PretrainedConfig
        if config.model_type == "llama":
            fresh = llama_config(config.model_size, symprec=config.symprec)
        else:
            fresh = gpt2_config(config.model_size, dropout=config.dropout, symprec=config.symprec)
        fresh.mat2seq = {**fresh.mat2seq, "fields": fields}
        model = AutoModelForCausalLM.from_config(fresh)
    _drop_residuals(model, config.dropout)
    # what transformers falls back to with a warning, at which a compiled graph would break
    model.loss_type = "ForCausalLM"
    return model


def keep_largest_cell(model: PreTrainedModel, max_atoms: int) -> None:
    """Enter the largest primitive cell of the training data in ``config.mat2seq["max_atoms"]``.

    Where a prompt does not speak of the size of the cell, answers are no larger. What the model has seen before counts,
    too: a limit is only raised, and a model that came without one stays without.
    """
    found = dict(getattr(model.config, "mat2seq", None) or {})
    fresh = not model.name_or_path
    if max_atoms and (fresh or "max_atoms" in found):
        model.config.mat2seq = {**found, "max_atoms": max(max_atoms, found.get("max_atoms", 0))}
