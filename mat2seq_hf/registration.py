"""Make transformers know the tokenizer class and the task ``crystal-generation``, without importing it early.

Importing transformers takes seconds, and ``import mat2seq_hf`` should not. So each class is registered as soon as both
its own module and the module that holds the registry are wanted: right after transformers has imported its registry,
which is before anyone can look anything up in it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

__all__ = ["DEFAULT_MODEL", "TASK", "WEIGHTS_HASH", "register"]

#: Task name for ``transformers.pipeline``.
TASK = "crystal-generation"

#: Folder of the model that ships in the package.
DEFAULT_MODEL = Path(__file__).resolve().parent / "default_model"

#: File beside its weights with their SHA-256, as ``sha256sum`` writes it; scripts/export_model.py does.
WEIGHTS_HASH = "weights.sha256"


def _enter_tokenizer(tokenizer_class: type[Any]) -> None:
    from transformers.configuration_utils import PreTrainedConfig
    from transformers.models.auto.tokenization_auto import REGISTERED_TOKENIZER_CLASSES, AutoTokenizer

    from .tokenizer import CLASS_BESIDE_CODE

    class Mat2SeqTokenizerConfig(PreTrainedConfig):
        """Key under which AutoTokenizer keeps the class: under GPT2Config it would take over every GPT-2."""

        model_type = "mat2seq-tokenizer"

    AutoTokenizer.register(Mat2SeqTokenizerConfig, tokenizer_class=tokenizer_class, exist_ok=True)
    REGISTERED_TOKENIZER_CLASSES[CLASS_BESIDE_CODE.removesuffix("Fast")] = tokenizer_class


def _enter_pipeline(pipeline_class: type[Any]) -> None:
    from transformers import AutoModelForCausalLM
    from transformers.pipelines import PIPELINE_REGISTRY

    if TASK not in PIPELINE_REGISTRY.supported_tasks:  # a second entry would log a warning
        PIPELINE_REGISTRY.register_pipeline(
            TASK,
            pipeline_class=pipeline_class,
            pt_model=AutoModelForCausalLM,
            default={"model": (str(DEFAULT_MODEL), "main")},
            type="text",
        )


@dataclass(frozen=True)
class _Registration:
    """One class, the module it lives in, and the module of transformers that holds the registry."""

    registry: str
    home: str
    name: str
    enter: Callable[[type[Any]], None]

    def attempt(self) -> None:
        """Register, unless the registry is not wanted yet or the class is being defined right now.

        A home that is half imported is what brought the registry in; it comes here again when it is complete.
        """
        home = sys.modules.get(self.home)
        if self.registry in sys.modules and (home is None or hasattr(home, self.name)):
            self.enter(getattr(import_module(self.home), self.name))


_REGISTRATIONS = (
    _Registration(
        "transformers.models.auto.tokenization_auto", f"{__package__}.tokenizer", "Mat2SeqTokenizer", _enter_tokenizer
    ),
    _Registration("transformers.pipelines", f"{__package__}.pipeline", "CrystalGenerationPipeline", _enter_pipeline),
)
_BY_MODULE = {module: entry for entry in _REGISTRATIONS for module in (entry.registry, entry.home)}


class _ThenRegister(Loader):
    """A module's own loader, followed by a registration."""

    def __init__(self, loader: Loader, entry: _Registration) -> None:
        self.loader = loader
        self.entry = entry

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        if module.__spec__ is not None:
            module.__spec__.loader = module.__loader__ = self.loader  # what inspect and pickle look at
        self.loader.exec_module(module)
        self.entry.attempt()


class _Waiting(MetaPathFinder):
    """Finds the modules concerned as usual, and registers when they have been imported."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        entry = _BY_MODULE.get(fullname)
        if entry is None:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _ThenRegister(spec.loader, entry)
        return spec


def register() -> None:
    """Register now what transformers has loaded already, and the rest when it is loaded. Calling it twice is safe."""
    for entry in _REGISTRATIONS:
        entry.attempt()
    if not any(isinstance(finder, _Waiting) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Waiting())
