"""Recipes: YAML files of :class:`~..config.TrainConfig` fields.

``sizes/`` holds what depends on the size of the model, ``corpora/`` what depends on the crystals. ``mp_20_small`` is
``sizes/small.yaml`` with ``corpora/mp_20.yaml`` over it, unless a file has that name (``perov_5_tiny.yaml``). A file in
this folder, or one of the user's own, may begin with ``extends: [small, mp_20]`` and say what is different. A YAML
file that is extended lies beside the one that names it, or has a path from there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from ...errors import Mat2SeqError

__all__ = ["load_recipe", "recipe_names"]

_FOLDER = Path(__file__).parent
_YAML = (".yaml", ".yml")
_SIZES, _CORPORA = _FOLDER / "sizes", _FOLDER / "corpora"


def _stems(folder: Path) -> list[str]:
    return sorted(path.stem for path in folder.glob("*.yaml"))


def recipe_names() -> list[str]:
    """All recipes of the package.

    Example:
        >>> "mp_20_small" in recipe_names()
        True
    """
    pairs = [f"{corpus}_{size}" for corpus in _stems(_CORPORA) for size in _stems(_SIZES)]
    return sorted({*pairs, *_stems(_FOLDER)})


def _read(path: Path) -> dict[str, Any]:
    try:
        fields = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise Mat2SeqError(f"recipe {path} cannot be read: {error}") from error
    if fields is not None and not isinstance(fields, dict):
        raise Mat2SeqError(f"recipe {path} is no list of `field: value` lines")
    return fields or {}


def _files_of(name: str) -> list[Path]:
    """Files of a recipe, later ones win."""
    if name.endswith(_YAML):
        return [Path(name)]
    for folder in (_FOLDER, _SIZES, _CORPORA):
        if (folder / f"{name}.yaml").is_file():
            return [folder / f"{name}.yaml"]
    corpus, _, size = name.rpartition("_")
    if corpus in _stems(_CORPORA) and size in _stems(_SIZES):
        return [_SIZES / f"{size}.yaml", _CORPORA / f"{corpus}.yaml"]
    raise Mat2SeqError(f"no recipe {name!r}: give a YAML file or one of {', '.join(recipe_names())}")


def load_recipe(name: str, _above: tuple[str, ...] = ()) -> dict[str, Any]:
    """Fields of a recipe, those of the recipes it extends below its own.

    Args:
        name: such as ``"mp_20_small"``, or the path of a YAML file.

    Raises:
        Mat2SeqError: there is no such recipe, it cannot be read, or it extends itself.

    Example:
        >>> load_recipe("mp_20_small")["model_size"]
        'small'
    """
    if name in _above:
        raise Mat2SeqError(f"recipe {name!r} extends itself: {' -> '.join([*_above, name])}")
    merged: dict[str, Any] = {}
    for path in _files_of(name):
        fields = _read(path)
        bases = fields.pop("extends", [])
        for base in [bases] if isinstance(bases, str) else bases:
            beside = str(base).endswith(_YAML)
            merged |= load_recipe(str((path.parent / str(base)).resolve()) if beside else str(base), (*_above, name))
        merged |= fields
    return merged
