"""Sampling for many prompts, in parts that a killed run does not lose.

The prompts are sorted by the length of their answers and cut into batches, the same ones for every run of a job. The
samples of a batch depend on nothing but the job, so that any process can draw any batch at any time: what is there when
a run is killed is kept, and the next run, with however many processes, draws what is missing.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from ..corpora.encode import write_table, write_tables
from ..errors import Mat2SeqError, PromptError
from ..sampling_settings import MAX_SEED
from ..wishes import Prompt
from .loading import weights_fingerprint
from .prompt_files import Asked, prompt_json
from .schema import REJECTED_PROMPTS, SAMPLES

__all__ = ["Job", "merge", "run_job"]

_PLAN = "plan.json"
_PARTS = "parts"
_BYTES = 256 << 20  # of rows that are in memory when parts are joined; a column of text cannot hold 2 GiB


@dataclass(frozen=True)
class Job:
    """What is drawn.

    Attributes:
        samples: kept for each prompt.
        candidates: drawn for each prompt; the best are kept (:mod:`..ranking`). None for as many as are kept.
        seed: with it, the model's weights and a prompt's number, a sample repeats.
        rows: sequences in one batch.
        settings: arguments for the pipeline, such as temperature and top_k.
        wishes: fields of :class:`Prompt` for all prompts.
    """

    samples: int = 1
    candidates: int | None = None
    seed: int = 0
    rows: int = 128
    settings: tuple[tuple[str, Any], ...] = ()
    wishes: tuple[tuple[str, Any], ...] = ()

    def __post_init__(self) -> None:
        for name, least, most in (("samples", 1, 2**31 - 1), ("rows", 1, 2**31 - 1), ("seed", -MAX_SEED, MAX_SEED)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
                raise PromptError(f"{name} must be a whole number from {least} to {most}, not {value!r}")
        if self.candidates is not None and self.candidates < self.samples:
            raise PromptError(f"{self.samples} samples cannot be the best of {self.candidates} candidates")

    @property
    def drawn(self) -> int:
        """Sequences drawn for each prompt."""
        return max(self.samples, self.candidates or 0)


@dataclass(frozen=True)
class _Part:
    """A batch: its file, and the numbers of its prompts."""

    path: Path
    numbers: tuple[int, ...]


@dataclass(frozen=True)
class _Plan:
    """The batches of a job, and its prompts: by number, where they can be fulfilled."""

    parts: tuple[_Part, ...]
    prompts: dict[int, Prompt]
    rejected: tuple[tuple[int, str], ...]


def _expected_length(prompt: Prompt, pipe: Any) -> tuple[int, ...]:
    """Something that grows with the length of the answers: tokens that are given, atoms."""
    given = len(pipe.grammar.forced_prefix(prompt))
    return (given, prompt.n_atoms or prompt.max_atoms or 0)


def _plan(pipe: Any, asked: Sequence[Asked], job: Job, folder: Path) -> _Plan:
    prompts: dict[int, Prompt] = {}
    rejected: list[tuple[int, str]] = []
    for number, one in enumerate(asked):
        try:
            prompts[number] = pipe.prompt(one.prompt, **dict(job.wishes))
        except Mat2SeqError as error:
            rejected.append((number, str(error)))
    order = sorted(prompts, key=lambda number: (_expected_length(prompts[number], pipe), number))
    size = max(1, job.rows // job.drawn)
    groups = [tuple(order[start : start + size]) for start in range(0, len(order), size)]
    parts = tuple(_Part(folder / _PARTS / f"part-{i:06d}.parquet", group) for i, group in enumerate(groups))
    return _Plan(parts, prompts, tuple(rejected))


def _record(pipe: Any, asked: Sequence[Asked], job: Job, model: str) -> dict[str, Any]:
    """What decides the samples of a job: a folder holds those of one job only."""
    lines = "\n".join(f"{one.prompt_id}\t{json.dumps(one.prompt, sort_keys=True, default=str)}" for one in asked)
    settings = pipe.sampling_settings(job.drawn, candidates=job.candidates is not None, **dict(job.settings))
    return {
        **asdict(job),
        "model": model,
        "weights": weights_fingerprint(pipe.model),
        "scheme": pipe.tokenizer.scheme,
        "model_record": getattr(pipe.model.config, "mat2seq", None),
        "sampling": asdict(settings),
        "prompts": len(asked),
        "prompts_sha256": hashlib.sha256(lines.encode()).hexdigest()[:16],
    }


def _open_folder(folder: Path, record: dict[str, Any]) -> None:
    """Write down the job of a folder, or check that it is the folder of this job."""
    plan = folder / _PLAN
    text = json.dumps(record, indent=1) + "\n"
    if not plan.is_file():
        _replace(plan, text.encode())
        return
    try:
        found = json.loads(plan.read_text(encoding="utf-8"))
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise Mat2SeqError(f"{plan} is no plan of a job; remove the folder or name another one")
    wanted = json.loads(text)
    for name in [*wanted, *(set(found) - set(wanted))]:
        if found.get(name) != wanted.get(name):
            raise Mat2SeqError(
                f"{folder} holds samples of another job: {name} was {found.get(name)!r} and is now "
                f"{wanted.get(name)!r}; use the same settings to go on, or another folder"
            )


def _replace(path: Path, content: bytes) -> None:
    """Write a file so that it is there in full or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(content)
    temporary.replace(path)


@contextmanager
def _alone(folder: Path, rank: int) -> Iterator[None]:
    """Let no other run draw this share of a job."""
    try:
        with FileLock(folder / f".lock-{rank}", timeout=0):
            yield
    except Timeout as error:
        raise Mat2SeqError(f"another run is writing to {folder}; wait for it, or name another folder") from error


def _read_part(path: Path) -> pa.Table:
    """All of a part.

    Raises:
        Mat2SeqError: it cannot be read, or has other columns.
    """
    try:
        table = pq.ParquetFile(path).read()
    except (OSError, ValueError, pa.ArrowException) as error:
        raise Mat2SeqError(f"{path} cannot be read: run the command again, which draws it anew") from error
    if not table.schema.equals(SAMPLES):
        raise Mat2SeqError(f"{path} has other columns: run the command again, which draws it anew")
    return table


def _is_whole(part: _Part, asked: Sequence[Asked], job: Job) -> bool:
    """Whether a part can be kept: a machine that goes down can leave anything under its name."""
    try:
        table = _read_part(part.path)
    except Mat2SeqError:
        return False
    found = zip(table["prompt_id"].to_pylist(), table["sample_index"].to_pylist(), strict=True)
    return [*found] == [(asked[number].prompt_id, i) for number in part.numbers for i in range(job.samples)]


def _remove_unfinished(folder: Path, stems: set[str]) -> None:
    """Remove what killed runs have left of the files of these names, which no other run may be writing."""
    for path in folder.glob("*.tmp"):
        if path.name.split(".")[0] in stems:
            path.unlink(missing_ok=True)


def _rows_of(pipe: Any, asked: Sequence[Asked], job: Job, plan: _Plan, part: _Part, model: str) -> list[dict[str, Any]]:
    prompts = [plan.prompts[number] for number in part.numbers]
    answers = pipe.answer(
        prompts,
        numbers=part.numbers,
        seed=job.seed,
        num_return_sequences=job.samples,
        num_candidates=job.candidates,
        **dict(job.settings),
    )
    names = {name for name in SAMPLES.names if name not in ("prompt_id", "prompt", "sample_index", "seed", "model")}
    rows = []
    for number, prompt, samples in zip(part.numbers, prompts, answers, strict=True):
        for index, sample in enumerate(samples):
            row = {name: sample[name] for name in names & sample.keys()}
            row |= {"prompt_id": asked[number].prompt_id, "prompt": prompt_json(prompt), "sample_index": index}
            row |= {"seed": job.seed, "model": model, "scheme": pipe.tokenizer.scheme}
            row["n_tokens"] = 2 + len(pipe.tokenizer.encode_text(sample["text"]))
            rows.append(row)
    return rows


def run_job(
    pipe: Any,
    asked: Sequence[Asked],
    job: Job,
    folder: str | Path,
    *,
    model: str,
    rank: int = 0,
    processes: int = 1,
) -> Iterator[int]:
    """Draw what is missing of a job, and yield the number of prompts after each batch.

    Process ``rank`` of ``processes`` draws every batch whose number leaves the remainder ``rank``. A batch is one
    parquet file under ``folder/parts``; one that is there is kept if it can be read and has all its rows. :func:`merge`
    joins them when all processes have come to their end.

    Args:
        pipe: a :class:`~mat2seq_hf.CrystalGenerationPipeline`.
        asked: the prompts; those that cannot be fulfilled are set aside in ``folder/rejected.parquet`` with a reason.
        job: what is drawn for each.
        folder: where it is written. If it holds parts of the same job they are kept.
        model: the name of the model, written in every row.
        rank, processes: which share of the batches is drawn here.

    Raises:
        Mat2SeqError: the folder belongs to another job, another run draws the same share, two prompts have one id, or
            no prompt can be fulfilled.
    """
    folder = Path(folder)
    names = Counter(one.prompt_id for one in asked)
    if twice := [name for name, count in names.items() if count > 1]:
        raise Mat2SeqError(f"the prompt id {twice[0]!r} occurs twice: give each prompt an id of its own")
    plan = _plan(pipe, asked, job, folder)
    if not plan.prompts:
        raise Mat2SeqError(f"none of {len(asked)} prompts can be fulfilled; the first one: {plan.rejected[0][1]}")
    (folder / _PARTS).mkdir(parents=True, exist_ok=True)
    with _alone(folder, rank):
        _open_folder(folder, _record(pipe, asked, job, model))
        if plan.rejected and rank == 0:
            rows = [
                {"prompt_id": asked[n].prompt_id, "prompt": json.dumps(asked[n].prompt, default=str), "reason": reason}
                for n, reason in plan.rejected
            ]
            write_table(pa.Table.from_pylist(rows, REJECTED_PROMPTS), folder / "rejected.parquet")
        share = plan.parts[rank::processes]
        _remove_unfinished(folder / _PARTS, {part.path.stem for part in share})
        for part in share:
            if not _is_whole(part, asked, job):
                rows = _rows_of(pipe, asked, job, plan, part, model)
                write_table(pa.Table.from_pylist(rows, SAMPLES), part.path)
            yield len(part.numbers)


@dataclass(frozen=True)
class _Rows:
    """The rows of all parts, one after the other: arrays of shape (rows,).

    Attributes:
        paths: the parts.
        part: index of each row's part.
        row: its index there.
        place: number of its prompt.
        sample: its number among the samples of the prompt.
        size: its bytes, of each part the mean.
    """

    paths: list[Path]
    part: NDArray[np.int64]
    row: NDArray[np.int64]
    place: NDArray[np.int64]
    sample: NDArray[np.int64]
    size: NDArray[np.float64]

    @classmethod
    def of(cls, paths: list[Path], place: dict[str, int]) -> _Rows:
        """Read every part once."""
        found: list[tuple[Any, ...]] = []
        for number, path in enumerate(paths):
            table = _read_part(path)
            places = [place[name] for name in table["prompt_id"].to_pylist()]
            size = np.full(len(table), table.nbytes / max(len(table), 1))
            samples = table["sample_index"].to_numpy()
            found.append((np.full(len(table), number), np.arange(len(table)), places, samples, size))
        return cls(paths, *(np.concatenate(columns) for columns in zip(*found, strict=True)))

    def batches(self) -> Iterator[pa.Table]:
        """All rows in the order of prompts and samples, as many at once as memory is meant to hold."""
        order = np.lexsort((self.sample, self.place))
        batch = np.cumsum(self.size[order]) // _BYTES
        for rows in np.split(order, np.flatnonzero(np.diff(batch)) + 1):
            inside = np.sort(rows)
            pieces = np.split(inside, np.flatnonzero(np.diff(self.part[inside])) + 1)
            tables = [_read_part(self.paths[self.part[piece[0]]]).take(self.row[piece]) for piece in pieces]
            yield pa.concat_tables(tables).take(np.searchsorted(inside, rows))


def merge(folder: str | Path, asked: Sequence[Asked]) -> Path:
    """Join the parts of a finished job in ``folder/samples.parquet``, in the order of the prompts.

    Raises:
        Mat2SeqError: prompts are missing, as when one of several processes was killed; a part is damaged; or another
            run is writing to the folder.
    """
    folder = Path(folder)
    paths = sorted((folder / _PARTS).glob("part-*.parquet"))
    if not paths:
        raise Mat2SeqError(f"{folder} holds no samples yet: run the command again")
    path, rejected = folder / "samples.parquet", folder / "rejected.parquet"
    with _alone(folder, 0):
        _remove_unfinished(folder, {path.stem})
        rows = _Rows.of(paths, {one.prompt_id: number for number, one in enumerate(asked)})
        aside = set(pq.read_table(rejected)["prompt_id"].to_pylist()) if rejected.is_file() else set()
        found = {asked[number].prompt_id for number in np.unique(rows.place).tolist()}
        missing = [one.prompt_id for one in asked if one.prompt_id not in found | aside]
        if missing:
            raise Mat2SeqError(
                f"{len(missing)} prompts have no samples yet, {missing[0]!r} first: run the command again"
            )
        write_tables(rows.batches(), SAMPLES, path)
    return path
