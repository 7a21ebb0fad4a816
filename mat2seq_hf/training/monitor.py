"""Crystals drawn during training: are they valid, and do they match the validation crystals they were asked for?

A glance at a few dozen formulas, logged beside the loss. Figures to report come from ``mat2seq evaluate``.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..canonical import CanonicalCrystal
from ..grammar import Grammar
from ..operations import crystal_system
from ..prompts import reduced
from ..samples import describe_sample
from ..sampling import draw_samples, row_keys
from ..sampling_settings import SamplingSettings
from ..tokenizer import text_of_tokens
from ..vocabulary import NUMERIC_FIELDS, UNKNOWN_VALUE
from ..wishes import Prompt
from .data import TokenCorpus

if TYPE_CHECKING:
    from pymatgen.core import Structure
    from transformers import PreTrainedModel

__all__ = ["SampleMonitor"]


class SampleMonitor:
    """Draws one crystal for each of some validation formulas, the same ones each time.

    Args:
        validation: crystals whose formulas are asked for.
        formulas: how many of them, taken at random.
        settings: how tokens are drawn.
        symprec: tolerance of the canonical form, angstrom.
        given_fields: whether the prefix fields of each crystal are asked for, too, for a model that knows no sequence
            without them.

    Example:
        >>> SampleMonitor(validation, 32, SamplingSettings(0.5, 10)).check(model)  # doctest: +SKIP
        {'eval_sample_valid': 0.91, 'eval_sample_match': 0.53}
    """

    def __init__(
        self,
        validation: TokenCorpus,
        formulas: int,
        settings: SamplingSettings,
        symprec: float = 0.01,
        *,
        given_fields: bool = False,
    ) -> None:
        chosen = np.sort(np.random.default_rng(1).permutation(len(validation))[:formulas])
        crystals = [CanonicalCrystal.from_text(text_of_tokens(validation[int(i)].tolist())) for i in chosen]
        fields = validation.fields if given_fields else {}
        self.prompts = [
            Prompt(**reduced(crystal.composition), **_given(crystal, {name: fields[name][int(i)] for name in fields}))
            for crystal, i in zip(crystals, chosen, strict=True)
        ]
        self.truths = [crystal.to_structure() for crystal in crystals]
        self.settings = settings
        self.symprec = symprec
        self._grammar = Grammar()

    def check(self, model: PreTrainedModel) -> dict[str, float]:
        """Share of samples that are valid, and share that match (StructureMatcher ltol 0.3, stol 0.5, angle_tol 10).

        The model is put into evaluation mode and back; torch's random numbers are left alone.
        """
        from pymatgen.analysis.structure_matcher import StructureMatcher

        was_training = model.training
        model.eval()
        keys = row_keys(0, range(len(self.prompts)), [0] * len(self.prompts))
        drawn = draw_samples(model, self.prompts, keys, self.settings, grammar=self._grammar)
        model.train(was_training)
        matcher = StructureMatcher(ltol=0.3, stol=0.5, angle_tol=10)
        valid = matched = 0
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for sample, prompt, truth in zip(drawn, self.prompts, self.truths, strict=True):
                described = describe_sample(
                    sample.ids,
                    prompt,
                    log_prob=sample.log_prob,
                    log_prob_raw=sample.log_prob_raw,
                    symprec=self.symprec,
                )
                valid += described["valid"]
                matched += described["valid"] and _matches(matcher, truth, described["structure"])
        count = max(len(self.prompts), 1)
        return {"eval_sample_valid": valid / count, "eval_sample_match": matched / count}


def _given(crystal: CanonicalCrystal, fields: Mapping[str, NDArray[np.int16]]) -> dict[str, Any]:
    """What a prompt says to begin with these prefix fields of a crystal."""
    known: dict[str, Any] = {
        "space_group": crystal.space_group_number,
        "crystal_system": crystal_system(crystal.space_group_number),
        "elements": tuple(crystal.composition),
        "n_atoms": sum(crystal.composition.values()),
    }
    asked = {name: known[name] for name in fields if name in known}
    values = {name: text_of_tokens(ids.tolist()).split()[-1] for name, ids in fields.items() if name in NUMERIC_FIELDS}
    properties = {name: None if value == UNKNOWN_VALUE else float(value) for name, value in values.items()}
    return {**asked, "condition": bool(asked), "properties": properties}


def _matches(matcher: object, truth: Structure, sample: Structure | None) -> bool:
    return sample is not None and matcher.get_rms_dist(sample, truth) is not None  # type: ignore[attr-defined]
