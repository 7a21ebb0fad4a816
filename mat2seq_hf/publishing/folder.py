"""A model folder that is complete in itself."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from transformers.dynamic_module_utils import custom_object_save

from ..errors import SchemeMismatchError
from ..pipeline import CrystalGenerationPipeline
from ..tokenizer import without_code

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ..tokenizer import Mat2SeqTokenizer

__all__ = ["save_model_folder"]


def save_model_folder(
    model: PreTrainedModel, tokenizer: Mat2SeqTokenizer, path: str | Path, *, with_code: bool = True
) -> Path:
    """Write configuration, generation settings, safetensors weights and tokenizer, and the code that reads them.

    The model is a stock class and needs no code. The code gives, with ``trust_remote_code=True`` and without this
    package, the full tokenizer, the pipeline by its class (see the example), and generation under the grammar by
    ``model.generate(custom_generate=folder, formula="NaCl")``.

    Args:
        model: a causal language model whose configuration has the scheme it was trained on (``config.mat2seq``).
        tokenizer: the tokenizer it was trained with.
        path: folder, made if it is not there.
        with_code: whether to copy the modules; a folder inside the package does without.

    Returns:
        the folder.

    Raises:
        SchemeMismatchError: model and tokenizer were made for different canonical forms.

    Example:
        >>> folder = save_model_folder(model, tokenizer, "my-model")
        >>> from transformers.dynamic_module_utils import get_class_from_dynamic_module
        >>> Pipe = get_class_from_dynamic_module("pipeline.CrystalGenerationPipeline", "my-model")
        >>> pipe = Pipe(
        ...     model=AutoModelForCausalLM.from_pretrained("my-model"),
        ...     tokenizer=AutoTokenizer.from_pretrained("my-model", trust_remote_code=True),
        ... )
    """
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    trained_on = (getattr(model.config, "mat2seq", None) or {}).get("scheme")
    if trained_on != tokenizer.scheme:
        raise SchemeMismatchError(
            f"the model was trained on the scheme {trained_on!r}, the tokenizer writes {tokenizer.scheme!r}: "
            "save it with the tokenizer it was trained with"
        )
    model.save_pretrained(folder)
    if with_code:
        tokenizer.save_pretrained(folder)
        custom_object_save(CrystalGenerationPipeline, folder)
        (folder / "custom_generate").mkdir(exist_ok=True)
        shutil.copyfile(Path(__file__).with_name("custom_generate.py"), folder / "custom_generate" / "generate.py")
    else:
        without_code(tokenizer).save_pretrained(folder)
    return folder
