r"""The mean of the weights of models, which often has fewer bits per structure than each of them.

    python scripts/average_models.py mat2seq_hf/default_model runs/band_gap -o runs/mean
    accelerate launch scripts/train.py --recipe finetune --init_from runs/mean --train_data mine/ --output_dir runs/mine

This holds for models that went on from the same weights (Wortsman et al. 2022, "Model soups"); the mean of models that
were trained apart is noise. The configuration is that of the first, with the property fields that any of them knows. Of
a run that was killed the best checkpoint is taken.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, nargs="+", help="folders of models or runs, two or more")
    parser.add_argument("-o", "--output", type=Path, required=True)
    return parser.parse_args()


def load(folder: Path) -> Any:
    """The model of a folder or run, in float32.

    Raises:
        Mat2SeqError: there is none, or it is none for crystal sequences.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from mat2seq_hf.errors import Mat2SeqError
    from mat2seq_hf.training.checkpoints import weights_folder

    source = weights_folder(folder)
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    if not getattr(model.config, "mat2seq", None):
        raise Mat2SeqError(f"{source} is no model for crystal sequences: its config.json has no `mat2seq`")
    return model


def add(total: dict[str, Any], model: Any, folder: Path) -> None:
    """Add a model's weights to a sum in float64.

    Raises:
        Mat2SeqError: they have other names or shapes, or are not finite.
    """
    import torch

    from mat2seq_hf.errors import Mat2SeqError

    weights = model.state_dict()
    for name in sorted(total.keys() | weights.keys()):
        if name not in total or name not in weights or total[name].shape != weights[name].shape:
            raise Mat2SeqError(f"{folder} has another architecture: {name} is not there in both, or has another shape")
        if not torch.isfinite(weights[name]).all():
            raise Mat2SeqError(f"{folder}: {name} holds values that are not finite")
        total[name] += weights[name].double()


def mean_of(folders: list[Path]) -> Any:
    """The first model with the mean of all weights.

    Raises:
        Mat2SeqError: models do not belong together, see :func:`load` and :func:`add`.
    """
    import torch

    from mat2seq_hf.errors import Mat2SeqError

    first = load(folders[0])
    total = {name: torch.zeros_like(value, dtype=torch.float64) for name, value in first.state_dict().items()}
    fields: dict[str, None] = {}
    for folder in folders:
        model = first if folder == folders[0] else load(folder)
        if model.config.mat2seq["scheme"] != first.config.mat2seq["scheme"]:
            raise Mat2SeqError(f"{folder} was trained on another canonical form than {folders[0]}")
        add(total, model, folder)
        fields |= dict.fromkeys(model.config.mat2seq.get("fields", []))
    first.load_state_dict({name: (value / len(folders)).float() for name, value in total.items()})
    first.config.mat2seq = {**first.config.mat2seq, "fields": [*fields]}
    first.config.use_cache = True
    return first


def main() -> None:
    """Write the folder."""
    from export_model import symprec_of

    from mat2seq_hf import build_tokenizer
    from mat2seq_hf.errors import Mat2SeqError
    from mat2seq_hf.publishing.folder import save_model_folder

    options = parse_arguments()
    if len(options.models) < 2:
        sys.exit("a mean needs two models or more")
    try:
        model = mean_of(options.models)
    except Mat2SeqError as error:
        sys.exit(f"{type(error).__name__}: {error}")
    save_model_folder(model, build_tokenizer(symprec_of(model.config)), options.output, with_code=False)
    print(f"{options.output}: the mean of {len(options.models)} models")


if __name__ == "__main__":
    main()
