"""Laws of the model configurations."""

from __future__ import annotations

import pytest
from transformers import GPT2LMHeadModel

from mat2seq_hf.errors import Mat2SeqError
from mat2seq_hf.presets import gpt2_config
from mat2seq_hf.sequence import SCHEME_VERSION, scheme_fingerprint
from mat2seq_hf.vocabulary import TOKENS


def _parameters(size: str) -> int:
    import torch

    with torch.device("meta"):
        model = GPT2LMHeadModel(gpt2_config(size))
    model.tie_weights()
    return sum(parameter.numel() for parameter in set(model.parameters()))


@pytest.mark.parametrize(("size", "millions"), [("tiny", 5), ("small", 25), ("large", 200)])
def test_a_size_has_about_the_parameters_it_promises(size: str, millions: int) -> None:
    assert 0.85 * millions < _parameters(size) / 1e6 < 1.2 * millions


def test_the_tiny_model_fits_in_25_megabytes_of_float32() -> None:
    assert 4 * _parameters("tiny") < 24.9e6


def test_a_configuration_names_its_scheme_and_special_tokens() -> None:
    config = gpt2_config("tiny", symprec=0.1)
    assert config.mat2seq == {"version": SCHEME_VERSION, "scheme": scheme_fingerprint(0.1)}
    special = (config.bos_token_id, config.eos_token_id, config.pad_token_id)
    assert special == tuple(TOKENS.index(token) for token in ("<s>", "</s>", "<pad>"))
    assert config.vocab_size == len(TOKENS)


def test_overrides_win_over_the_preset() -> None:
    config = gpt2_config("tiny", dropout=0.0, n_layer=1, attn_pdrop=0.3)
    assert (config.n_layer, config.resid_pdrop, config.attn_pdrop) == (1, 0.0, 0.3)


def test_an_unknown_size_is_an_error_that_lists_the_known_ones() -> None:
    with pytest.raises(Mat2SeqError, match="'huge' is not one of tiny, small, large"):
        gpt2_config("huge")
