"""What every test shares: no network, repeatable examples, and a few crystals built in code."""

from __future__ import annotations

import os
import tempfile

# Before the first import of a Hugging Face library, which reads these once. A cache of the user's own would make a
# test pass here and fail elsewhere.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="mat2seq-tests-")
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from pymatgen.core import Lattice, Structure

# Derandomised, so that a run repeats; no deadline, because a slow machine is no failure.
settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
settings.load_profile("repeatable")


@pytest.fixture(scope="session", autouse=True)
def _remove_hugging_face_cache() -> Iterator[None]:
    yield
    shutil.rmtree(os.environ["HF_HOME"], ignore_errors=True)


def build_crystals() -> dict[str, Structure]:
    """Textbook crystals of different systems, some chiral, polar or pseudo-symmetric; coordinates from ITA settings."""
    quartz = Lattice.hexagonal(4.9134, 5.4052)
    wurtzite = Lattice.hexagonal(3.2495, 5.2069)
    return {
        # Pm-3m, the cubic perovskite
        "BaTiO3": Structure.from_spacegroup(
            "Pm-3m", Lattice.cubic(4.0094), ["Ba", "Ti", "O"], [[0.5, 0.5, 0.5], [0, 0, 0], [0, 0, 0.5]]
        ),
        # Fm-3m, face-centred
        "NaCl": Structure.from_spacegroup("Fm-3m", Lattice.cubic(5.6402), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]]),
        # Fd-3m, origin choice 2
        "diamond": Structure.from_spacegroup("Fd-3m:2", Lattice.cubic(3.567), ["C"], [[1 / 8, 1 / 8, 1 / 8]]),
        # P4_2/mnm
        "rutile": Structure.from_spacegroup(
            "P4_2/mnm", Lattice.tetragonal(4.5937, 2.9587), ["Ti", "O"], [[0, 0, 0], [0.3048, 0.3048, 0]]
        ),
        # Pnma, the orthorhombic perovskite
        "CaTiO3": Structure.from_spacegroup(
            "Pnma",
            Lattice.orthorhombic(5.4424, 7.6417, 5.3807),
            ["Ca", "Ti", "O", "O"],
            [[0.036, 0.25, 0.9932], [0, 0, 0.5], [0.4838, 0.25, 0.0714], [0.2888, 0.0371, 0.7112]],
        ),
        # P2_1/c, monoclinic: baddeleyite
        "ZrO2": Structure.from_spacegroup(
            "P2_1/c",
            Lattice.monoclinic(5.1505, 5.2116, 5.3173, 99.23),
            ["Zr", "O", "O"],
            [[0.2754, 0.0395, 0.2083], [0.07, 0.3317, 0.3447], [0.4496, 0.7569, 0.4792]],
        ),
        # P3_221 and its mirror image P3_121
        "quartz": Structure.from_spacegroup(
            "P3_221", quartz, ["Si", "O"], [[0.4697, 0, 2 / 3], [0.4135, 0.2669, 0.7858]]
        ),
        "quartz mirrored": Structure.from_spacegroup(
            "P3_121", quartz, ["Si", "O"], [[0.4697, 0, 1 / 3], [0.4135, 0.2669, 0.2142]]
        ),
        # R-3m on hexagonal axes
        "LiCoO2": Structure.from_spacegroup(
            "R-3m", Lattice.hexagonal(2.816, 14.05), ["Li", "Co", "O"], [[0, 0, 0.5], [0, 0, 0], [0, 0, 0.2605]]
        ),
        # P6_3mc, polar
        "ZnO": Structure.from_spacegroup("P6_3mc", wurtzite, ["Zn", "O"], [[1 / 3, 2 / 3, 0], [1 / 3, 2 / 3, 0.3821]]),
        # P1, no symmetry at all: made up
        "triclinic": Structure(
            Lattice.from_parameters(4.1, 5.2, 6.3, 81.0, 95.0, 102.0),
            ["K", "B", "O", "F"],
            [[0.013, 0.027, 0.041], [0.31, 0.42, 0.17], [0.62, 0.13, 0.55], [0.21, 0.77, 0.83]],
        ),
    }


@pytest.fixture(scope="session")
def crystals() -> dict[str, Structure]:
    """The crystals of :func:`build_crystals`; tests must not change them."""
    return build_crystals()


@pytest.fixture
def run_arguments(tmp_path: Path) -> list[str]:
    """Arguments of a small run with dropout, of 40 steps in 3 and a bit epochs."""
    from runs import small_run  # not before it is needed: it takes seconds

    return small_run(tmp_path, 60, 0.1, max_steps=40, save_steps=4, eval_steps=4, logging_steps=4)
