"""Loading a model for sampling, with errors that say what is wrong with a folder; and telling models apart."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import Mat2SeqError
from ..registration import DEFAULT_MODEL, TASK

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["load_pipeline", "weights_fingerprint"]


def load_pipeline(model: str | None = None, device: Any = None) -> Any:
    """The pipeline of a model folder or Hub repository, by default of the model in the package.

    Raises:
        Mat2SeqError: there is no such model, it cannot be loaded, or it does not belong to this version.
    """
    import transformers

    if model is None and not (DEFAULT_MODEL / "config.json").is_file():
        raise Mat2SeqError("this installation has no model of its own; name one with --model")
    if model is not None and Path(model).exists() and not (Path(model) / "config.json").is_file():
        raise Mat2SeqError(f"{model} is no model folder: it has no config.json")
    if model is not None and Path(model).is_dir() and not any(Path(model).glob("model*.safetensors")):
        raise Mat2SeqError(f"{model} has no model.safetensors; weights in other formats are not read")
    make: Any = transformers.pipeline  # its overloads know the tasks of transformers only
    try:
        with _quiet():
            # safetensors alone: reading pickled weights can run code of whoever wrote them
            return make(TASK, model=model, model_kwargs={"use_safetensors": True}, device=device)
    except Mat2SeqError:
        raise
    except Exception as error:  # a broken folder raises nearly every type
        reason = next(iter(str(error).splitlines()), "")
        name = model or "the model in the package"
        raise Mat2SeqError(f"{name} cannot be loaded: {type(error).__name__}: {reason}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Neither warnings of transformers nor its progress bars; afterwards it says what the caller lets it say."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def weights_fingerprint(model: PreTrainedModel, *, values: bool = True) -> str:
    """Sixteen hexadecimal digits that differ for other weights; without ``values``, for other shapes alone.

    Weights that are stored in half precision have the same ones when they are loaded in float32.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} ".encode())
        if values:  # the bytes: a sum would depend on the number of threads
            digest.update(tensor.detach().cpu().float().contiguous().numpy().data)
    return digest.hexdigest()[:16]
