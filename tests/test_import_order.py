"""The order of modules is one list, and every import points down it.

The flat core stands first: transformers copies single modules to the Hub (``trust_remote_code``) and follows only
``from .sibling import name``, so that is the only form in which core modules may import each other.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = "mat2seq_hf"
ROOT = Path(__file__).resolve().parent.parent / PACKAGE

CORE = (
    *("errors", "elements", "tables", "wyckoff", "grid", "vocabulary", "sequence", "operations", "lattice"),
    *("cif_symmetry", "cif_reading", "reduction", "cell", "symmetry", "normalizer"),
    *("forms", "fixed_point", "canonical", "cif", "coordinates"),
    *("feasibility", "wishes"),
    *("prompts", "choices", "state_kinds", "states", "grammar", "automaton"),
    *("sampling_settings", "tokenizer", "constraints", "reader", "sampling"),
    *("presets", "samples", "ranking", "pipeline"),
)
#: Modules and folders that only the installed package needs, from the bottom up.
ABOVE = (
    *("registration", "corpora", "generation", "training", "evaluation", "publishing", "doctor"),
    *("commands", "cli"),
)
#: Entry points: they may import everything and nothing imports them.
TOP = ("__init__",)
RANK = {name: rank for rank, name in enumerate((*CORE, *ABOVE, *TOP))}
HEAVY = {"torch", "transformers"}


def own_imports(node: ast.AST, parts: tuple[str, ...]) -> list[str]:
    """First part below the package of whatever a statement imports from it (``""`` for the package itself)."""
    if isinstance(node, ast.Import):
        found = [alias.name.split(".") for alias in node.names if alias.name.split(".")[0] == PACKAGE]
        return [(names + [""])[1] for names in found]
    if not isinstance(node, ast.ImportFrom):
        return []
    if node.level:
        base = [PACKAGE, *parts[:-1]]
        base = base[: len(base) - node.level + 1]
    else:
        base = []
    names = base + (node.module.split(".") if node.module else [])
    if not names or names[0] != PACKAGE:
        return []
    return [names[1]] if len(names) > 1 else [alias.name if alias.name in RANK else "" for alias in node.names]


def outside_imports(node: ast.AST) -> set[str]:
    """Top-level names of the other packages that a statement imports."""
    if isinstance(node, ast.Import):
        return {alias.name.split(".")[0] for alias in node.names}
    if isinstance(node, ast.ImportFrom) and not node.level and node.module:
        return {node.module.split(".")[0]}
    return set()


def is_core_form(node: ast.AST) -> bool:
    """Whether an import of the own package is written ``from .sibling import name``."""
    return isinstance(node, ast.ImportFrom) and node.level == 1 and node.module is not None and "." not in node.module


def problems(path: str, source: str) -> list[str]:
    """Every breach of the order in a module; ``path`` is relative to the package, such as ``corpora/feature.py``."""
    parts = tuple(path.removesuffix(".py").split("/"))
    unit = parts[0]
    if unit not in RANK:
        return [f"{path} is missing from the order: add {unit!r} to CORE or ABOVE in {Path(__file__).name}"]
    if unit in CORE and len(parts) > 1:
        return [f"{path}: the core is flat, {unit!r} must not be a folder"]
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Import | ast.ImportFrom):
            continue
        place = f"{path}:{node.lineno}"
        targets = own_imports(node, parts)
        if unit in CORE:
            if targets and not is_core_form(node):
                found.append(f"{place} must be written `from .sibling import name`: {ast.unparse(node)}")
            if RANK[unit] < RANK["tokenizer"] and (heavy := outside_imports(node) & HEAVY):
                found.append(f"{place} imports {', '.join(sorted(heavy))} below the tokenizer")
        for target in targets:
            if target and target not in RANK:
                found.append(f"{place} imports {target!r}, which is missing from the order")
            elif target in TOP or (not target and unit not in TOP):
                found.append(f"{place} imports the package itself or an entry point, which stand above {unit!r}")
            elif target and RANK[target] >= RANK[unit] and not (target == unit and len(parts) > 1):
                found.append(f"{place} imports {target!r}, which does not stand before {unit!r}")
    return found


def test_every_import_points_down_the_order() -> None:
    modules = sorted(ROOT.rglob("*.py"))
    assert modules, f"no modules found under {ROOT}"
    found = [
        problem for module in modules for problem in problems(module.relative_to(ROOT).as_posix(), module.read_text())
    ]
    assert not found, "\n" + "\n".join(found)


def test_every_name_of_the_order_is_a_module_or_a_folder() -> None:
    missing = [
        name for name in (*CORE, *ABOVE, *TOP) if not ((ROOT / f"{name}.py").is_file() or (ROOT / name).is_dir())
    ]
    assert not missing


def test_the_order_is_the_one_that_contributors_read() -> None:
    text = (ROOT.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
    lines = text.partition("## The order of modules")[2].partition("\n## ")[0].splitlines()
    listed = [name for line in lines if line.startswith("    ") for name in line.replace("·", " ").split()]
    assert [name.rstrip("/") for name in listed] == [*CORE, *ABOVE]
    assert [name for name in listed if name.endswith("/")] == [f"{n}/" for n in ABOVE if (ROOT / n).is_dir()]


@pytest.mark.parametrize(
    ("path", "source", "said"),
    [
        ("numbers.py", "", "missing from the order"),
        ("grid.py", "from .vocabulary import TOKENS", "does not stand before 'grid'"),
        ("grid.py", "from .grid import quantize", "does not stand before 'grid'"),
        ("grid.py", "from . import errors", "from .sibling import name"),
        ("grid.py", "import mat2seq_hf.errors", "from .sibling import name"),
        ("grid.py", "from mat2seq_hf.errors import DecodeError", "from .sibling import name"),
        ("grid.py", "from .nonsense import thing", "missing from the order"),
        ("canonical.py", "def f():\n    import torch.nn", "imports torch below the tokenizer"),
        ("grammar.py", "from transformers import GPT2Config", "imports transformers below the tokenizer"),
        ("pipeline.py", "from .corpora.feature import Crystal", "does not stand before 'pipeline'"),
        ("pipeline.py", "import mat2seq_hf", "entry point"),
        ("corpora/feature.py", "from ..training.data import pack", "does not stand before 'corpora'"),
        ("corpora/feature.py", "from mat2seq_hf import canonicalize", "entry point"),
        ("grammar/state.py", "", "the core is flat"),
    ],
)
def test_a_breach_of_the_order_is_found(path: str, source: str, said: str) -> None:
    assert any(said in problem for problem in problems(path, source)), problems(path, source)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("grid.py", "from .errors import DecodeError\nimport numpy as np"),
        ("tokenizer.py", "from transformers import TokenizersBackend\nfrom .grammar import Grammar"),
        ("corpora/feature.py", "from ..canonical import canonicalize\nfrom .prepare import rows"),
        ("evaluation/report.py", "from mat2seq_hf.corpora.feature import Crystal"),
        ("cli.py", "from .evaluation.report import Report"),
        ("__init__.py", "from .canonical import canonicalize\nfrom . import errors"),
    ],
)
def test_an_import_down_the_order_is_accepted(path: str, source: str) -> None:
    assert problems(path, source) == []
