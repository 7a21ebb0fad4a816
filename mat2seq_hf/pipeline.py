"""The task ``crystal-generation``: a formula goes in, crystals come out.

``pipeline("crystal-generation")`` uses the model that ships in the package. Every sample is drawn under the grammar, so
it has the asked composition and space group whatever the model says.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from operator import index
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessorList
from transformers.dynamic_module_utils import custom_object_save
from transformers.pipelines.base import Pipeline

from .constraints import GrammarLogitsProcessor, sequence_log_probs, until_end
from .errors import PromptError, SchemeMismatchError
from .grammar import Grammar
from .prompts import prompt_for_model
from .ranking import best_of
from .reader import context_length
from .samples import Sample, describe_sample, mark_duplicates
from .sampling import Drawn, draw_samples, row_keys
from .sampling_settings import PLAIN, SamplingSettings, check_sampling, plain_settings, searched_settings
from .vocabulary import BOS, EOS, TOKEN_IDS
from .wishes import WISHES, Prompt, read_prompt

__all__ = ["CrystalGenerationPipeline"]

_MOST_ROWS = 256  # drawn together
_PUSHING = (  # arguments of push_to_hub
    *("repo_id", "commit_message", "commit_description", "private", "token", "revision", "create_pr", "tags"),
)


@dataclass(frozen=True)
class _Request:
    """A prompt and its place in the input, which decides its random numbers."""

    index: int
    prompt: Any


class CrystalGenerationPipeline(Pipeline):
    """Crystals from formulas and other wishes; see :meth:`__call__`.

    Args:
        model: a causal language model for the vocabulary of this package.
        tokenizer: the tokenizer saved with it.

    Raises:
        SchemeMismatchError: model and tokenizer were made for different canonical forms.

    Example:
        >>> pipe = pipeline("crystal-generation")
        >>> pipe("BaTiO3", num_return_sequences=4, seed=0)[0]["structure"].composition.reduced_formula
        'BaTiO3'
    """

    _pipeline_calls_generate = True
    _load_tokenizer: Any = True
    _load_processor: Any = False
    _load_image_processor: Any = False
    _load_feature_extractor: Any = False
    _default_generation_config = GenerationConfig(do_sample=True, temperature=1.0, top_k=10)

    model: Any
    tokenizer: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.device.type == "cpu" and self.model.dtype != torch.float32:
            self.model.float()  # half precision is stored to save space, and is slow and coarse on a CPU
        self._generate_kwargs = _without_none(self._generate_kwargs)
        self.model.eval()  # a model that was just made or trained would sample with dropout
        self.grammar = Grammar().compile(self.tokenizer)
        self._check_scheme()

    def _check_scheme(self) -> None:
        settings = self.tokenizer.init_kwargs
        self.symprec = float(settings.get("symprec", 0.01))
        of_tokenizer = settings.get("scheme")
        of_model = self._model_record().get("scheme")
        if of_tokenizer != of_model:
            raise SchemeMismatchError(
                f"the model was trained on the scheme {of_model!r}, the tokenizer writes {of_tokenizer!r}: "
                "load the tokenizer that was saved with the model"
            )

    def _model_record(self) -> Mapping[str, Any]:
        return getattr(self.model.config, "mat2seq", None) or {}

    def __call__(self, inputs: Any = None, **kwargs: Any) -> Any:  # type: ignore[override]
        """Generate crystals.

        Args:
            inputs: a formula such as ``"BaTiO3"`` (taken as a reduced one), a :class:`Prompt`, a dict of its fields,
                or None to generate freely; or a list, dataset or iterator of these.
            num_return_sequences: samples for each prompt; by default what constructor or generation_config say, or 1.
            num_candidates: draw so many and return the ``num_return_sequences`` best of them: valid ones first, of the
                most frequent space group and Wyckoff positions the likeliest (:mod:`.ranking`).
            seed: makes the samples repeat, whatever was generated before and whatever else is asked for. A sample
                depends on it, the numbers of prompt and sample, and the settings, which the number of samples chooses
                unless temperature and top_k are given. With settings that go through ``model.generate`` (beams, min_p,
                penalties), for the same batch_size only.
            batch_size: prompts sampled together.
            progress: called with the number of sequences that were drawn since it was last called.
            formula_units, elements, n_atoms, max_atoms, space_group, crystal_system, properties, condition: fields of
                :class:`Prompt` for all prompts; a property such as ``band_gap=1.1`` can be named directly. Without
                formula_units, n_atoms and max_atoms, cells are no larger than those the model was trained on
                (``config.mat2seq["max_atoms"]``), where that can be.
            guidance_scale: above 1, what properties and other prefix fields change in the model's answer counts so many
                times (twice the time; see :class:`.SamplingSettings`).
            temperature, top_k, ...: anything ``model.generate`` takes. What is not given comes from the model's
                generation_config, which may have other settings for many samples (``mat2seq``) than for one.

        Returns:
            for one prompt a list of :class:`Sample` dicts, for several a list of such lists, for an iterator an
            iterator over such lists.

        Raises:
            FormulaError, PromptError: what is asked cannot be read or cannot be fulfilled.
        """
        requests: Any
        if isinstance(inputs, Sized) and hasattr(inputs, "__getitem__") and not isinstance(inputs, Iterable):
            inputs = [inputs[index] for index in range(len(inputs))]  # such as a KeyDataset
        if inputs is None or isinstance(inputs, (str, Mapping, Prompt)) or not isinstance(inputs, Iterable):
            requests = _Request(0, inputs)
        else:
            requests = (_Request(index, prompt) for index, prompt in enumerate(inputs))
        if isinstance(inputs, Sized) and isinstance(requests, Iterator):
            requests = list(requests)
            wishes = {**self._preprocess_params, **self._sanitize_parameters(**kwargs)[0]}
            for request in requests:  # a mistake in the last prompt shows before the first one is sampled
                self.prompt(request.prompt, **wishes)
            if not requests:
                return []
        return super().__call__(requests, **kwargs)  # type: ignore[no-untyped-call]

    def _sanitize_parameters(
        self, seed: int | None = None, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        wishes = {name: kwargs.pop(name) for name in WISHES if name in kwargs}
        if kwargs.get("num_return_sequences", 1) is None:
            del kwargs["num_return_sequences"]
        check_sampling({**kwargs, "seed": seed})
        if seed is not None:
            kwargs["seed"] = index(seed)  # an integer of numpy would overflow in what is made of it
        return wishes, kwargs, {}

    def preprocess(self, input_: _Request, **wishes: Any) -> dict[str, Any]:
        """Token ids that every answer to one prompt begins with, shape (1, length), and the prompt itself."""
        prompt = self.prompt(input_.prompt, **wishes)
        ids = [TOKEN_IDS[BOS], *self.grammar.forced_prefix(prompt)]
        if len(ids) >= (most := context_length(self.model.config)):
            raise PromptError(f"the prompt alone takes {len(ids)} tokens, the model reads {most}: ask for less")
        return {
            "input_ids": torch.tensor([ids]),
            "attention_mask": torch.ones(1, len(ids), dtype=torch.long),
            "prompt": prompt,
            "index": input_.index,
        }

    def prompt(self, asked: Any = None, **wishes: Any) -> Prompt:
        """The prompt for an input and further wishes, checked.

        Raises:
            FormulaError, PromptError: it cannot be read, cannot be fulfilled, or is nothing the model was trained for.
        """
        return prompt_for_model(read_prompt(asked, wishes), self._model_record())

    def save_pretrained(self, save_directory: str | PathLike[Any], **kwargs: Any) -> None:
        """Write model, tokenizer and code. The folder is loaded with this package, or without it by the class.

        With ``push_to_hub=True`` all of it is uploaded then, to ``repo_id`` (default: the folder's name).

        The configuration does not name the pipeline, as transformers would have it: with this package installed, the
        name would stand for the code in the folder.
        """
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        push = kwargs.pop("push_to_hub", False)
        hub = {name: kwargs.pop(name) for name in _PUSHING if name in kwargs}
        vars(self.model.config).pop("custom_pipelines", None)
        self.model.save_pretrained(folder, **kwargs)
        self.tokenizer.save_pretrained(folder, **kwargs)
        custom_object_save(type(self), folder)
        if push:  # not before: model and tokenizer would each be uploaded alone, without the code
            self.push_to_hub(hub.pop("repo_id", folder.name), **hub)

    def _forward(  # type: ignore[override]
        self,
        input_tensors: dict[str, Any],
        num_return_sequences: int | None = None,
        num_candidates: int | None = None,
        seed: int | None = None,
        progress: Callable[[int], Any] | None = None,
        **generate: Any,
    ) -> dict[str, Any]:
        """Sample; the answer to each prompt is a list of :class:`Drawn`, the best first if there are candidates.

        Plain sampling goes through :func:`draw_samples`, everything else (beams, penalties, processors of the caller's
        own) through ``model.generate`` with the grammar as one more logits processor.
        """
        asked, index = input_tensors["prompt"], input_tensors["index"]
        prompts, numbers = (asked, index) if isinstance(asked, list) else ([asked], [index])
        if num_return_sequences is None:
            num_return_sequences = self._get_set_generation_params(self._given(generate)).get("num_return_sequences", 1)
            check_sampling({"num_return_sequences": num_return_sequences, "num_candidates": num_candidates})
        wanted = max(num_return_sequences, num_candidates or 0)
        progress = progress or _ignore
        generate = self._with_settings_for(wanted, generate, candidates=num_candidates is not None)
        arguments = self._prepare_generate_kwargs(generate, num_return_sequences=wanted)
        settings = plain_settings(self._get_set_generation_params(arguments))
        if settings is None:
            groups = self._generate(input_tensors, prompts, numbers[0], wanted, seed, arguments)
            progress(wanted * len(prompts))
        else:
            groups = self._draw(prompts, numbers, wanted, seed, settings, progress)
        if num_candidates is not None:
            groups = [best_of(group, num_return_sequences) for group in groups]
        return {"drawn": groups, "prompt": prompts}

    def _given(self, generate: dict[str, Any]) -> dict[str, Any]:
        """Settings of a call and, unless it has a generation_config, of the constructor; None is not given."""
        generate = _without_none(generate)
        return generate if "generation_config" in generate else {**self._generate_kwargs, **generate}

    def _with_settings_for(self, wanted: int, generate: dict[str, Any], *, candidates: bool) -> dict[str, Any]:
        """Settings of the caller, and what they leave out of plain sampling for so many samples or the best of many."""
        given = self._given(generate)
        if "generation_config" in given or given.get("do_sample") is False or given.get("num_beams", 1) != 1:
            return given
        return searched_settings(self.model.generation_config, wanted, candidates=candidates) | given

    def _draw(
        self,
        prompts: list[Prompt],
        numbers: list[int],
        wanted: int,
        seed: int | None,
        settings: SamplingSettings,
        progress: Callable[[int], Any],
    ) -> list[list[Drawn]]:
        if seed is None:
            seed = int(torch.randint(2**62, ()))  # the caller's torch.manual_seed decides
        pairs = [
            (prompt, number, sample)
            for prompt, number in zip(prompts, numbers, strict=True)
            for sample in range(wanted)
        ]
        drawn: list[Drawn] = []
        for start in range(0, len(pairs), _MOST_ROWS):
            chosen, of_prompt, of_sample = zip(*pairs[start : start + _MOST_ROWS], strict=True)
            keys = row_keys(seed, of_prompt, of_sample)
            drawn += draw_samples(self.model, chosen, keys, settings, grammar=self.grammar)
            progress(len(chosen))
        return [drawn[start : start + wanted] for start in range(0, len(drawn), wanted)]

    def _generate(
        self,
        tensors: dict[str, Any],
        prompts: list[Prompt],
        first: int,
        wanted: int,
        seed: int | None,
        arguments: dict[str, Any],
    ) -> list[list[Drawn]]:
        # transformers would compare with a prompt of one token
        if self._get_set_generation_params(arguments).get("guidance_scale", 1.0) != 1.0:
            raise PromptError(f"guidance_scale goes with {', '.join(PLAIN)} alone, not with beams and the like")
        ids, mask = tensors["input_ids"], tensors["attention_mask"]
        processor = GrammarLogitsProcessor(prompts, self.grammar)
        own = arguments.pop("logits_processor", None) or ()
        arguments["logits_processor"] = LogitsProcessorList([processor, *own])
        if self._get_set_generation_params(arguments).keys().isdisjoint({"max_length", "max_new_tokens"}):
            arguments["max_new_tokens"] = context_length(self.model.config) - ids.shape[1]
        with _random_numbers(seed, first, self.device), _no_false_alarm():
            # of a model that was loaded with trust_remote_code, model.generate is the code in its folder; and what
            # torch.compile returns is a module around the model, whose class has no generate
            model = getattr(self.model, "_orig_mod", self.model)
            sequences = type(model).generate(model, input_ids=ids, attention_mask=mask, **arguments)
        sequences = getattr(sequences, "sequences", sequences)  # with return_dict_in_generate they come with more
        rows = [until_end(row[row.index(TOKEN_IDS[BOS]) :]) for row in sequences.tolist()]
        every = [prompt for prompt in prompts for _ in range(wanted)]
        given = mask.sum(1).repeat_interleave(wanted).tolist()
        scores = sequence_log_probs(self.model, rows, every, given, grammar=self.grammar)
        drawn = [
            Drawn(row, count, row[-1] == TOKEN_IDS[EOS], score.log_prob, score.log_prob_raw)
            for row, count, score in zip(rows, given, scores, strict=True)
        ]
        return [drawn[start : start + wanted] for start in range(0, len(drawn), wanted)]

    def sampling_settings(self, wanted: int = 1, *, candidates: bool = False, **generate: Any) -> SamplingSettings:
        """How samples are drawn: what the caller says, and for the rest what the model's generation_config does.

        Args:
            wanted: sequences for each prompt.
            candidates: whether the best of them are kept.
            generate: as in a call.

        Raises:
            PromptError: a setting is one that plain sampling does not know.
        """
        generate = self._with_settings_for(wanted, generate, candidates=candidates)
        settings = plain_settings(self._get_set_generation_params(self._prepare_generate_kwargs(generate)))
        if settings is None:
            raise PromptError(
                f"only plain sampling goes at scale (temperature, top_k, top_p, guidance_scale), not {generate}"
            )
        return settings

    def answer(
        self,
        prompts: Sequence[Prompt],
        numbers: Sequence[int],
        *,
        seed: int,
        num_return_sequences: int = 1,
        num_candidates: int | None = None,
        **generate: Any,
    ) -> list[list[Sample]]:
        """Samples for numbered prompts, drawn together: those that a call with all prompts in one list would give.

        Args:
            prompts: as :meth:`prompt` returns them.
            numbers: place of each in the whole list, which decides its random numbers.
            seed, num_return_sequences, num_candidates, generate: as in a call. Plain sampling only.

        Raises:
            PromptError: a setting is wrong, or is one that plain sampling does not know.
        """
        check_sampling({**generate, "num_return_sequences": num_return_sequences, "num_candidates": num_candidates})
        wanted = max(num_return_sequences, num_candidates or 0)
        settings = self.sampling_settings(wanted, candidates=num_candidates is not None, **generate)
        groups = self._draw(list(prompts), list(numbers), wanted, seed, settings, _ignore)
        if num_candidates is not None:
            groups = [best_of(group, num_return_sequences) for group in groups]
        return [self.postprocess({"prompt": p, "drawn": group}) for p, group in zip(prompts, groups, strict=True)]

    def postprocess(self, model_outputs: dict[str, Any]) -> list[Sample]:  # type: ignore[override]
        """Samples of one prompt as dicts."""
        prompt, drawn = model_outputs["prompt"], model_outputs["drawn"]
        if isinstance(prompt, list):
            (prompt,), (drawn,) = prompt, drawn
        return mark_duplicates(
            [
                describe_sample(
                    sample.ids,
                    prompt,
                    log_prob=sample.log_prob,
                    log_prob_raw=sample.log_prob_raw,
                    symprec=self.symprec,
                )
                for sample in drawn
            ]
        )


def _without_none(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that are given."""
    return {name: value for name, value in settings.items() if value is not None}


def _ignore(_: int) -> None:
    """No progress is shown."""


@contextmanager
def _random_numbers(seed: int | None, index: int, device: torch.device) -> Iterator[None]:
    """Random numbers that depend on seed and index alone; the caller's own go on undisturbed afterwards."""
    if seed is None:
        yield
        return
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed * 1_000_003 + index)  # a prime, so that neighbouring seeds share no stream
        yield


@contextmanager
def _no_false_alarm() -> Iterator[None]:
    """Silence the advice to pass an attention mask: `generate` drops one without padding, and then misses it."""
    logger = logging.getLogger("transformers.modeling_utils")

    def keep(record: logging.LogRecord) -> bool:
        return "`attention_mask`" not in record.getMessage()

    logger.addFilter(keep)
    try:
        yield
    finally:
        logger.removeFilter(keep)
