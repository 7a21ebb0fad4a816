"""What ``mat2seq doctor`` looks at: versions, the shipped model, and whether the parts work together."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import NamedTuple

from .errors import Mat2SeqError
from .registration import DEFAULT_MODEL, WEIGHTS_HASH
from .sequence import scheme_fingerprint

__all__ = ["Finding", "examine"]

_LIBRARIES = (
    *("mat2seq-hf", "torch", "transformers", "tokenizers", "safetensors", "huggingface-hub", "datasets", "accelerate"),
    *("numpy", "scipy", "pyarrow", "pymatgen", "spglib", "moyopy", "gemmi", "filelock", "pyyaml", "rich", "tqdm"),
)
_TEXT = "Na1 Cl1 [Fm-3m] 5.6402 5.6402 5.6402 90 90 90 Na 4a 0 0 0 Cl 4b 1/2 1/2 1/2"


class Finding(NamedTuple):
    """One thing that was looked at.

    Attributes:
        name: what it is.
        detail: what was found.
        passed: whether it is as it should be.
    """

    name: str
    detail: str
    passed: bool


def examine() -> Iterator[Finding]:
    """Findings one by one, cheap ones first."""
    yield Finding("python", f"{platform.python_version()} on {platform.platform()}", passed=True)
    for library in _LIBRARIES:
        try:
            yield Finding(library, version(library), passed=True)
        except PackageNotFoundError:
            yield Finding(library, "is not installed", passed=False)
    yield Finding("scheme", scheme_fingerprint(), passed=True)
    yield _checked("canonical form", _canonical_form)
    yield _checked("tokenizer", _tokenizer)
    yield _checked("shipped model", _model)
    if (DEFAULT_MODEL / "config.json").is_file():
        yield _checked("generation", _generation)


def _checked(name: str, check: Callable[[], Finding]) -> Finding:
    try:
        return check()
    except Exception as error:  # noqa: BLE001 - whatever a broken installation raises is what was found
        return Finding(name, f"{type(error).__name__}: {error}", passed=False)


def _canonical_form() -> Finding:
    from .canonical import CanonicalCrystal, canonicalize

    structure = CanonicalCrystal.from_text(_TEXT).to_structure()
    structure.make_supercell([[2, 1, 0], [0, 1, 0], [0, 0, 1]])
    structure.translate_sites(range(len(structure)), [0.12, 0.34, 0.56])
    found = canonicalize(structure).text
    return Finding("canonical form", "a shifted supercell of NaCl gives the sequence of NaCl", passed=found == _TEXT)


def _tokenizer() -> Finding:
    from .tokenizer import build_tokenizer

    tokenizer = build_tokenizer()
    ids = tokenizer.encode(_TEXT)
    passed = tokenizer.decode(ids, skip_special_tokens=True) == _TEXT and tokenizer.decode_crystal(ids).text == _TEXT
    return Finding("tokenizer", f"{len(tokenizer)} tokens, NaCl in {len(ids)} of them and back", passed=passed)


def _model() -> Finding:
    weights = DEFAULT_MODEL / "model.safetensors"
    if not weights.is_file():
        return Finding("shipped model", f"is missing: {weights}", passed=False)
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    written = (DEFAULT_MODEL / WEIGHTS_HASH).read_text(encoding="utf-8").split()[0]
    if digest != written:
        return Finding("shipped model", f"is damaged: sha256 {digest[:16]}..., not {written[:16]}...", passed=False)
    config = json.loads((DEFAULT_MODEL / "config.json").read_text(encoding="utf-8"))
    scheme = config.get("mat2seq", {}).get("scheme")
    size = f"{weights.stat().st_size / 1e6:.1f} MB"
    return Finding(
        "shipped model", f"{size}, sha256 {digest[:16]}..., scheme {scheme}", passed=scheme == scheme_fingerprint()
    )


def _generation() -> Finding:
    from .generation.loading import load_pipeline

    try:
        pipe = load_pipeline()
    except Mat2SeqError as error:
        return Finding("generation", str(error), passed=False)
    first, again = (pipe("NaCl", formula_units=1, seed=0)[0] for _ in range(2))
    same = first["text"] == again["text"]
    return Finding(
        "generation",
        f"{first['text']} ({'the same twice' if same else 'not the same twice'}, {first['reason'] or 'valid'})",
        passed=same and first["formula"] == "Na1 Cl1",
    )
