"""How long a model takes for the samples of one prompt, and for one valid crystal."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tqdm import tqdm

from ..errors import Mat2SeqError
from ..generation.loading import load_pipeline
from .crystals import Examined, composition_prompt, examine, kinds_of_reasons, read_structure
from .left_out import none_readable, note_of_unreadable
from .ranges import check_ranges
from .schema import Figure, clustered_share, digest, mean, plain
from .sources import Reference, SampleText

__all__ = ["EfficiencySettings", "evaluate_efficiency"]


@dataclass(frozen=True)
class EfficiencySettings:
    """What is sampled.

    Attributes:
        model: folder or Hub name, None for the model in the package.
        samples: of each prompt, drawn together.
        seed: of the choice of crystals and of the samples.
        threads: of the processor; None leaves torch's choice.
        progress: show a progress bar.
        prompts: crystals drawn at random; None takes all.
    """

    model: str | None = None
    samples: int = 20
    seed: int = 0
    threads: int | None = None
    progress: bool = True
    prompts: int | None = None

    def __post_init__(self) -> None:
        check_ranges(self, from_0=["seed"], from_1=["samples", "threads", "prompts"])


def evaluate_efficiency(
    references: Sequence[Reference], settings: EfficiencySettings | None = None
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Sample for the compositions of some crystals, one prompt after the other, and take the time.

    The time is that of the pipeline, which also describes each sample (CIF, canonical sequence, charges); the checks
    behind "valid" are not part of it. One prompt is sampled before, to warm up.

    Args:
        references: crystals whose primitive compositions are the prompts; those that cannot be read are counted.
        settings: see :class:`EfficiencySettings`.

    Raises:
        Mat2SeqError: the model cannot be loaded, or none of the drawn crystals can be read.
    """
    import torch

    settings = settings or EfficiencySettings()
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    pipe = load_pipeline(settings.model)
    if settings.prompts is not None and settings.prompts < len(references):
        references = random.Random(settings.seed).sample(references, settings.prompts)
    asked, unreadable = _prompts(references)
    pipe(asked[0][1], num_return_sequences=settings.samples, seed=settings.seed)
    groups: list[list[dict[str, Any]]] = []
    seconds = []
    for name, prompt in tqdm(asked, desc="sampling", disable=not settings.progress, leave=False):
        _wait(pipe.device)
        start = time.perf_counter()
        samples = pipe(prompt, num_return_sequences=settings.samples, seed=settings.seed)
        _wait(pipe.device)
        seconds.append(time.perf_counter() - start)
        groups.append([])
        for index, sample in enumerate(samples):
            text = SampleText(name, index, sample["cif"], sample["reason"], source="")
            row = (examine(sample["cif"]) if sample["cif"] else Examined()).row(text)
            groups[-1].append(row | {"outcome": "ok", "seconds": seconds[-1] / settings.samples})
    rows = [row for group in groups for row in group]
    figures = _figures(groups, seconds, sum(parameter.numel() for parameter in pipe.model.parameters()))
    device = torch.cuda.get_device_name() if pipe.device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    report = {
        "settings": asdict(settings),
        "ids": {"prompts": digest(name for name, _ in asked)},
        "counts": {
            "prompts": len(asked),
            "samples": len(rows),
            "valid": sum(bool(row["valid"]) for row in rows),
            "unreadable_references": len(unreadable),
        },
        "figures": figures,
        "reasons": kinds_of_reasons(rows),
        "tables": {},
        "notes": [
            f"Times of the wall clock on: {device}. What else the machine does at the time counts, too.",
            *note_of_unreadable(unreadable),
        ],
    }
    return report, rows


def _prompts(references: Sequence[Reference]) -> tuple[list[tuple[str, dict[str, Any]]], dict[str, str]]:
    """Ids and prompts of the crystals that can be read, and by id why the others cannot.

    Raises:
        Mat2SeqError: none can.
    """
    asked, unreadable = [], {}
    for reference in references:
        try:
            asked.append((reference.id, composition_prompt(read_structure(reference.cif))))
        except Mat2SeqError as error:
            unreadable[reference.id] = str(error)
    if not asked:
        raise Mat2SeqError(none_readable(unreadable))
    return asked, unreadable


def _wait(device: Any) -> None:
    """Let a GPU finish."""
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize()


def _figures(
    groups: Sequence[Sequence[dict[str, Any]]], seconds: Sequence[float], parameters: int
) -> dict[str, Figure]:
    """Figures of the rows of each prompt."""
    judged = [[bool(row["valid"]) for row in group] for group in groups]
    samples, valid = sum(map(len, judged)), sum(map(sum, judged))
    total = sum(seconds)
    return {
        "parameters": plain(parameters, 1),
        "seconds_per_prompt": mean(seconds),
        "seconds_per_sample": plain(total / samples, samples),
        "seconds_per_valid": plain(total / valid if valid else None, valid),
        "valid": clustered_share(judged),
    }
