"""How samples are drawn, and which settings are refused, without anything that draws them."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from operator import index
from typing import Any, SupportsIndex

from .errors import PromptError

__all__ = ["MAX_SEED", "PLAIN", "SamplingSettings", "check_sampling", "plain_settings", "searched_settings"]

#: Times the prime by which the pipeline multiplies it, it still fits the 64 bits of torch.
MAX_SEED = 2**43

_IRRELEVANT = {  # to how plain sampling goes
    *("num_return_sequences", "bos_token_id", "eos_token_id", "pad_token_id", "use_cache", "transformers_version"),
    *("_from_model_config", "return_dict_in_generate", "output_scores", "attention_mask", "mat2seq"),
    "generation_config",  # its values are among the parameters
}
_NEUTRAL = {  # values that change nothing; a generation_config may state them
    **dict.fromkeys(("num_beams", "num_beam_groups"), 1),
    **dict.fromkeys(("repetition_penalty", "encoder_repetition_penalty", "length_penalty", "typical_p"), 1.0),
    **dict.fromkeys(("diversity_penalty", "epsilon_cutoff", "eta_cutoff", "min_p"), 0.0),
    **dict.fromkeys(("no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "min_length", "min_new_tokens"), 0),
}
_SEARCHED = ("temperature", "top_k", "top_p")  # what a generation_config can have for a number of samples
#: Settings of plain sampling and their types.
PLAIN = {"temperature": float, "top_k": int, "top_p": float, "max_new_tokens": int, "guidance_scale": float}


@dataclass(frozen=True)
class SamplingSettings:
    """How tokens are drawn.

    Attributes:
        temperature: logits are divided by it.
        top_k: only so many of the likeliest legal tokens; 0 for all.
        top_p: only the likeliest legal tokens that together have this probability.
        max_new_tokens: most tokens after the prompt, the end included; None for what the model can read.
        guidance_scale: what prefix fields change in the logits is taken so many times, before all else
            (classifier-free guidance; Ho and Salimans, arXiv 2207.12598). 1 is none. For models that were trained with
            and without fields; prompts without fields are drawn as ever.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    max_new_tokens: int | None = None
    guidance_scale: float = 1.0


def plain_settings(parameters: Mapping[str, Any]) -> SamplingSettings | None:
    """Settings for plain sampling, or None where ``model.generate`` is needed.

    Args:
        parameters: generation parameters of the caller and of the model, together.

    Raises:
        PromptError: one of them is out of range, see :func:`check_sampling`.
    """
    others = {name for name, value in parameters.items() if not _changes_nothing(name, value)} - _IRRELEVANT
    if not parameters.get("do_sample") or others - {*PLAIN, "do_sample"}:
        return None
    check_sampling({name: parameters.get(name) for name in PLAIN})  # a generation_config is checked nowhere else
    given: dict[str, Any] = {name: PLAIN[name](parameters[name]) for name in others - {"do_sample"}}
    return SamplingSettings(**given)


def _changes_nothing(name: str, value: Any) -> bool:
    return value is None or value is False or (name in _NEUTRAL and bool(value == _NEUTRAL[name]))


def searched_settings(config: Any, wanted: int, *, candidates: bool) -> dict[str, Any]:
    """What a model's generation_config has for so many samples, or for the best of many, under ``mat2seq``.

    More samples are better drawn at a higher temperature. Of the numbers of samples that there are settings for, the
    config's own being those for one, the nearest on a logarithmic scale counts. Where its own are no longer what was
    found for one, somebody changed them, and they hold for all numbers.
    """
    known = getattr(config, "mat2seq", None) or {}
    several = known.get("any_of", [])
    for_one = next((entry for entry in several if entry["samples"] == 1), {"samples": 1})
    nearest = min([for_one, *several], key=lambda entry: abs(math.log(entry["samples"] / wanted)))
    found = known.get("best", {}) if candidates else nearest
    changed = {name for name in _SEARCHED if name in for_one and getattr(config, name, None) != for_one[name]}
    return {name: found[name] for name in _SEARCHED if name in found and name not in changed}


def check_sampling(settings: Mapping[str, Any]) -> None:
    """Refuse settings that sampling would trip over only after the model has begun.

    Raises:
        PromptError: seed, num_return_sequences, num_candidates, temperature, top_k, top_p, max_new_tokens or
            guidance_scale is out of range.
    """
    for name, low, high in (
        ("seed", -MAX_SEED, MAX_SEED),
        ("num_return_sequences", 1, sys.maxsize),
        ("num_candidates", settings.get("num_return_sequences", 1), sys.maxsize),
        ("top_k", 0, sys.maxsize),
        ("max_new_tokens", 1, sys.maxsize),
    ):
        value = settings.get(name)
        if value is not None and not (isinstance(value, SupportsIndex) and low <= index(value) <= high):
            limits = f"of at least {low}" if high == sys.maxsize else f"from {low} to {high}"
            raise PromptError(f"{name} must be a whole number {limits}, not {value!r}")
    likeliest = "top_k=1 always takes the likeliest"
    for name, least, most, hint in (
        ("temperature", 1e-3, 1e3, likeliest),
        ("top_p", 1e-6, 1.0, likeliest),
        ("guidance_scale", 0.0, 100.0, "1 is no guidance"),
    ):
        value = settings.get(name)
        if value is not None and not (isinstance(value, Real) and least <= float(value) <= most):
            raise PromptError(f"{name} must be a number from {least:g} to {most:g}, not {value!r}; {hint}")
