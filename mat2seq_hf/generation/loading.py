"""Loading a model for sampling, with errors that say what is wrong with a folder; and telling models apart."""

from __future__ import annotations

import hashlib
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

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    if model is None and not (DEFAULT_MODEL / "config.json").is_file():
        raise Mat2SeqError("this installation has no model of its own; name one with --model")
    if model is not None and Path(model).exists() and not (Path(model) / "config.json").is_file():
        raise Mat2SeqError(f"{model} is no model folder: it has no config.json")
    if model is not None and Path(model).is_dir() and not any(Path(model).glob("model*.safetensors")):
        raise Mat2SeqError(f"{model} has no model.safetensors; weights in other formats are not read")
    make: Any = transformers.pipeline  # its overloads know the tasks of transformers only
    try:
        # safetensors alone: reading pickled weights can run code of whoever wrote them
        return make(TASK, model=model, model_kwargs={"use_safetensors": True}, device=device)
    except Mat2SeqError:
        raise
    except Exception as error:  # a broken folder raises nearly every type
        reason = next(iter(str(error).splitlines()), "")
        name = model or "the model in the package"
        raise Mat2SeqError(f"{name} cannot be loaded: {type(error).__name__}: {reason}") from error


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
