"""Laws of the model configurations."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from transformers import AutoModelForCausalLM, PretrainedConfig

from mat2seq_hf.errors import Mat2SeqError
from mat2seq_hf.presets import gpt2_config, llama_config
from mat2seq_hf.sequence import SCHEME_VERSION, scheme_fingerprint
from mat2seq_hf.vocabulary import TOKENS

Preset = Callable[..., PretrainedConfig]
both = pytest.mark.parametrize("preset", [gpt2_config, llama_config])


def _parameters(config: PretrainedConfig) -> int:
    import torch

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    model.tie_weights()
    return sum(parameter.numel() for parameter in set(model.parameters()))


@both
@pytest.mark.parametrize(("size", "millions"), [("tiny", 5), ("small", 25), ("large", 200)])
def test_a_size_has_about_the_parameters_it_promises(preset: Preset, size: str, millions: int) -> None:
    assert 0.85 * millions < _parameters(preset(size)) / 1e6 < 1.2 * millions


@both
def test_the_tiny_model_fits_in_25_megabytes_of_float32(preset: Preset) -> None:
    assert 4 * _parameters(preset("tiny")) < 24.9e6


@both
def test_a_configuration_names_its_scheme_and_special_tokens(preset: Preset) -> None:
    config = preset("tiny", symprec=0.1)
    assert config.mat2seq == {"version": SCHEME_VERSION, "scheme": scheme_fingerprint(0.1)}
    special = (config.bos_token_id, config.eos_token_id, config.pad_token_id)
    assert special == tuple(TOKENS.index(token) for token in ("<s>", "</s>", "<pad>"))
    assert config.vocab_size == len(TOKENS)


@both
def test_the_context_of_a_size_is_the_same_for_every_architecture(preset: Preset) -> None:
    assert [preset(size).max_position_embeddings for size in ("tiny", "small", "large")] == [512, 512, 1024]


def test_overrides_win_over_the_preset() -> None:
    config = gpt2_config("tiny", dropout=0.0, n_layer=1, attn_pdrop=0.3)
    assert (config.n_layer, config.resid_pdrop, config.attn_pdrop) == (1, 0.0, 0.3)
    llama = llama_config("tiny", num_hidden_layers=1, rms_norm_eps=1e-5)
    assert (llama.num_hidden_layers, llama.rms_norm_eps) == (1, 1e-5)


@both
def test_an_unknown_size_is_an_error_that_lists_the_known_ones(preset: Preset) -> None:
    with pytest.raises(Mat2SeqError, match="'huge' is not one of tiny, small, large"):
        preset("huge")
