r"""Train a crystal language model.

    accelerate launch scripts/train.py --recipe mp_20_tiny --train_data prepared/mp_20/train \
        --eval_data prepared/mp_20/val --output_dir runs/mp_20_tiny --resume_from_checkpoint auto
    accelerate launch scripts/train.py --recipe finetune --train_data my_cifs/ --output_dir runs/mine

Killed at any moment, the same command goes on from the last complete checkpoint. ``--time_budget_minutes 60`` ends the
run after an hour, with the learning rate following the clock. ``--help`` lists every option, docs/training.md explains.
"""

from __future__ import annotations

import logging
import sys


def main() -> None:
    """Parse the command line, train, and print the results."""
    from mat2seq_hf.errors import Mat2SeqError
    from mat2seq_hf.training.config import parse_config
    from mat2seq_hf.training.trainer import train

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    try:
        record = train(parse_config(sys.argv[1:]))
    except Mat2SeqError as error:
        sys.exit(f"{type(error).__name__}: {error}")
    for name, value in record.get("results", {}).items():
        print(f"{name}: {value:.4f}" if isinstance(value, float) else f"{name}: {value}")


if __name__ == "__main__":
    main()
