"""What a model has read of rows that grow at different paces: its cache, and calls that read what is new.

transformers' cache appends by copying everything; here it grows in steps, and rows leave it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import DynamicCache, PretrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer

from .errors import Mat2SeqError
from .vocabulary import PAD, TOKEN_IDS

__all__ = ["Reader", "context_length", "positions_of"]

_PAD = TOKEN_IDS[PAD]
_ROOM = 32  # columns by which the key-value cache grows


def positions_of(config: PretrainedConfig) -> int:
    """Positions that a model has.

    Raises:
        Mat2SeqError: it does not say so.
    """
    length = getattr(config, "max_position_embeddings", None)
    if length is None:
        raise Mat2SeqError(
            f"the configuration of the {config.model_type} model has no max_position_embeddings: enter there how many "
            "tokens it reads"
        )
    return int(length)


def context_length(config: PretrainedConfig) -> int:
    """Tokens that a model reads.

    Raises:
        Mat2SeqError: it does not say so, or attends to fewer (a sliding window): the cache keeps columns of a batch, in
            which a window would depend on the other rows.
    """
    length, window = positions_of(config), getattr(config, "sliding_window", None)
    if window is not None and window < length:
        raise Mat2SeqError(
            f"the model attends to a sliding window of {window} tokens and reads {length}; sampling needs a "
            "window of all of them: set sliding_window to None, or use a model that was trained without"
        )
    return length


class _RoomyLayer(DynamicLayer):
    """Keys and values with room to spare: appending a token copies that token, not everything before it."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        start = self.get_seq_length()
        stop = start + key_states.shape[-2]
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.store = [states.new_empty((*states.shape[:2], 0, states.shape[3])) for states in (key_states,) * 2]
        if stop > self.store[0].shape[2]:
            for index, old in enumerate(self.store):
                larger = old.new_empty((*old.shape[:2], stop + _ROOM, old.shape[3]))
                larger[:, :, :start] = old[:, :, :start]
                self.store[index] = larger
        for store, states in zip(self.store, (key_states, value_states), strict=True):
            store[:, :, start:stop] = states
        self.keys, self.values = (store[:, :, :stop] for store in self.store)
        return self.keys, self.values

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep these rows."""
        stop = self.get_seq_length()
        self.store = [store.index_select(0, indices) for store in self.store]
        self.keys, self.values = (store[:, :, :stop] for store in self.store)


def _new_cache(model: PreTrainedModel) -> Cache:
    """A roomy cache; the library's own where a layer does not attend to everything before it."""
    config = model.config
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if kinds == {"full_attention"} and getattr(config, "sliding_window", None) is None:
        return Cache(layer_class_to_replicate=_RoomyLayer)
    return DynamicCache(config=config)


class Reader:
    """A model and how far it has read each row.

    Attributes:
        fed: tokens of each row that it has read, shape (rows,).
    """

    def __init__(self, model: PreTrainedModel, rows: int) -> None:
        self.model = model
        self.fed = np.zeros(rows, dtype=np.int64)
        self.cache = _new_cache(model)
        self.mask = torch.zeros((rows, 0), dtype=torch.long, device=model.device)

    def read(self, ids: NDArray[np.int64], length: NDArray[np.int64], most: int) -> torch.Tensor:
        """Read what is new of each row, at most ``most`` tokens of it; at the first call everything.

        Args:
            ids: tokens of the rows, shape (rows, columns).
            length: how many of them are known, shape (rows,).
            most: see above.

        Returns:
            logits after each of the new tokens, after the last one only at the first call; shape (rows, tokens,
            vocabulary), aligned on the right.
        """
        first = not self.fed.any()
        counts = length - self.fed
        width = int(counts.max()) if first else min(int(counts.max()), most)
        counts = np.minimum(counts, width)
        offsets = np.arange(width) - (width - counts[:, None])
        real = offsets >= 0
        positions = np.where(real, self.fed[:, None] + offsets, 0)
        tokens = np.where(real, np.take_along_axis(ids, positions, axis=1), _PAD)
        device = self.model.device
        self.mask = torch.cat([self.mask, torch.from_numpy(real.astype(np.int64)).to(device)], dim=1)
        output: Any = self.model(
            input_ids=torch.from_numpy(tokens).to(device),
            attention_mask=self.mask,
            position_ids=torch.from_numpy(positions).to(device),
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1 if first else width,
        )
        self.fed = self.fed + counts
        return output.logits.float()  # type: ignore[no-any-return]

    def keep(self, rows: NDArray[np.int64]) -> None:
        """Keep these rows."""
        self.fed = self.fed[rows]
        index = torch.from_numpy(rows).to(self.mask.device)
        self.mask = self.mask.index_select(0, index)
        self.cache.batch_select_indices(index)
