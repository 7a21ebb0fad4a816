"""The benchmark corpora of the field: where they are published, how large they are, and who must be cited."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import Mat2SeqError
from .download import download

__all__ = ["BENCHMARKS", "Benchmark", "check_rows", "download_benchmark", "find_benchmark", "named_benchmark"]

logger = logging.getLogger(__name__)

_CDVAE = "https://raw.githubusercontent.com/txie-93/cdvae/f857f598d6f6cca5dc1ea0582d228f12dcc2c2ea/data"
_DIFFCSP = "https://raw.githubusercontent.com/jiaor17/DiffCSP/7121d159826efa2ba9500bf299250d96da37f146/data"


@dataclass(frozen=True)
class Benchmark:
    """A published corpus with its splits.

    Attributes:
        name: as in the literature.
        url: folder of ``<split>.csv``, at a fixed commit.
        rows: crystals of each split, as published.
        checksums: SHA-1 of each file as a git blob, which the repository itself lists.
        description: what it holds.
        licence: of the data.
        citation: what to cite.
    """

    name: str
    url: str
    rows: dict[str, int]
    checksums: dict[str, str]
    description: str
    licence: str
    citation: str


_XIE = "Xie et al., Crystal Diffusion Variational Autoencoder, ICLR 2022, arXiv:2110.06197"
_JAIN = "Jain et al., The Materials Project, APL Materials 1, 011002 (2013), doi:10.1063/1.4812323"

#: The corpora by name.
BENCHMARKS: dict[str, Benchmark] = {
    "perov_5": Benchmark(
        "perov_5",
        f"{_CDVAE}/perov_5",
        {"train": 11356, "val": 3787, "test": 3785},
        {
            "train": "0769074b5d51d293b765c4371b8f55c468c9c9f2",
            "val": "4a2c8dde98347dd0e01fa83dcf3982c2abe98f9f",
            "test": "d3c5d5af4b27a2a139149f2bb73c8a3dba9d8ac1",
        },
        "18,928 cubic perovskites ABX3, five atoms in the cell",
        "MIT (the collection of CDVAE)",
        f"Castelli et al., Energy Environ. Sci. 5, 5814 and 9034 (2012); {_XIE}",
    ),
    "carbon_24": Benchmark(
        "carbon_24",
        f"{_CDVAE}/carbon_24",
        {"train": 6091, "val": 2032, "test": 2030},
        {
            "train": "5e7ae970fbad8ddc46b6963e8cd6e425f11783a6",
            "val": "b3e29b927883642426ca1d9632d00359b412742b",
            "test": "9beca843fde489de1fe288b32f9e3ff710d42803",
        },
        "10,153 crystals of carbon, 6 to 24 atoms in the cell, many of them more than once",
        "MIT (the collection of CDVAE)",
        f"Pickard, AIRSS data for carbon at 10 GPa, Materials Cloud Archive 2020.0026/v1; {_XIE}",
    ),
    "mp_20": Benchmark(
        "mp_20",
        f"{_CDVAE}/mp_20",
        {"train": 27136, "val": 9047, "test": 9046},
        {
            "train": "b1c9d498565ac2fd8d075a51ff2ef5e51ba6c21f",
            "val": "7efe4d7ebeb4f460ceaad35e5326c42111d9c9a1",
            "test": "5dc643041df53f5ce4970a79930ad262b4f07acd",
        },
        "45,229 crystals of the Materials Project with at most 20 atoms in the primitive cell",
        "CC BY 4.0 (Materials Project)",
        f"{_JAIN}; {_XIE}",
    ),
    "mpts_52": Benchmark(
        "mpts_52",
        f"{_DIFFCSP}/mpts_52",
        {"train": 27380, "val": 5000, "test": 8096},
        {
            "train": "28c53b0a0fd3f32fb8078aca8e5b484e372790c6",
            "val": "a377ba0ca7bee37ee69d9f50f8362eaa35d9f690",
            "test": "2e8af159618f63be346b6527f155514323964423",
        },
        "40,476 crystals of the Materials Project with at most 52 atoms, split by the year of discovery",
        "CC BY 4.0 (Materials Project)",
        f"{_JAIN}; Baird et al., xtal2png, JOSS 7, 4528 (2022); Jiao et al., DiffCSP, NeurIPS 2023, arXiv:2309.04475",
    ),
}


def download_benchmark(
    benchmark: Benchmark, folder: Path, split: str | None = None, url: str | None = None
) -> dict[str, Path]:
    """Files by split, downloaded into ``folder`` unless they are there with the right checksum.

    Args:
        benchmark: which one.
        folder: made if it is not there.
        split: only this one.
        url: a mirror, in place of the published location.

    Raises:
        Mat2SeqError: no network, or not the published bytes.
    """
    found = {}
    for name in (split,) if split else benchmark.rows:
        path = folder / f"{name}.csv"
        download(f"{url or benchmark.url}/{name}.csv", path, benchmark.checksums[name])
        found[name] = path
    return found


def _local(benchmark: Benchmark, folder: Path) -> dict[str, Path]:
    found = {}
    for split in benchmark.rows:
        paths = [folder / benchmark.name / f"{split}{suffix}" for suffix in (".parquet", ".csv", ".csv.gz")]
        if (path := next((path for path in paths if path.is_file()), None)) is not None:
            found[split] = path
    return found


def find_benchmark(
    benchmark: Benchmark, data_dir: str | Path | None = None, split: str | None = None
) -> dict[str, Path]:
    """Files by split: of ``data_dir`` if that is given, else of the cache, downloaded where needed.

    A warning names the splits that ``data_dir`` lacks.

    Raises:
        Mat2SeqError: they are not there, or cannot be downloaded.
    """
    if split is not None and split not in benchmark.rows:
        raise Mat2SeqError(f"{benchmark.name} has the splits {', '.join(benchmark.rows)}, not {split!r}")
    if data_dir is not None:
        found = _local(benchmark, Path(data_dir))
        if not found or (split is not None and split not in found):
            raise Mat2SeqError(
                f"{split or ', '.join(benchmark.rows)} of {benchmark.name} is not in {data_dir}: expected "
                f"{Path(data_dir) / benchmark.name / (split or 'train')}.parquet or .csv"
            )
        if split is not None:
            return {split: found[split]}
        if missing := [name for name in benchmark.rows if name not in found]:
            logger.warning("%s of %s is not in %s: left out", ", ".join(missing), benchmark.name, data_dir)
        return found
    from datasets import config

    folder = Path(config.HF_DATASETS_CACHE) / "mat2seq_hf" / benchmark.name
    wanted = (split,) if split else benchmark.rows
    if config.HF_HUB_OFFLINE and not all((folder / f"{name}.csv").exists() for name in wanted):
        raise Mat2SeqError(
            f"{split or 'all'} of {benchmark.name} is not on this machine, and HF_HUB_OFFLINE forbids to download it; "
            f"give data_dir with a copy of {benchmark.url}"
        )
    return download_benchmark(benchmark, folder, split)


def named_benchmark(source: object, data_dir: str | Path | None) -> Benchmark | None:
    """The benchmark corpus that ``source`` names, else None.

    Raises:
        Mat2SeqError: ``data_dir`` is given, and ``source`` names none; or it is not given, and a file or folder here
            has the name, too.
    """
    benchmark = BENCHMARKS.get(source) if isinstance(source, str) else None
    if benchmark is None and data_dir is not None:
        raise Mat2SeqError(
            f"the data directory {data_dir} is for copies of the benchmark corpora {', '.join(BENCHMARKS)}, and "
            f"{source} is none of them; leave it out, or give the name of one"
        )
    if benchmark is not None and data_dir is None and Path(benchmark.name).exists():
        raise Mat2SeqError(
            f"{benchmark.name} is a benchmark corpus, and {Path(benchmark.name).absolute()} has its name: give "
            f"./{benchmark.name} for what is here, or a data directory with copies of the benchmark corpora"
        )
    return benchmark


def check_rows(benchmark: Benchmark, rows: Mapping[Any, int]) -> None:
    """Warn where splits of a local copy have other numbers of rows than those of the published corpus."""
    for name, count in rows.items():
        if count != (expected := benchmark.rows[str(name)]):
            logger.warning("%s/%s has %d crystals here, %d as published", benchmark.name, name, count, expected)
