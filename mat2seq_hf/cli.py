"""The command ``mat2seq``.

Heavy imports stand inside the commands, so that ``mat2seq --help`` answers at once.
"""

from __future__ import annotations

import argparse
import errno
import os
import re
import sys
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from .errors import Mat2SeqError, PromptError

if TYPE_CHECKING:
    from .canonical import CanonicalCrystal
    from .samples import Sample

__all__ = ["build_parser", "main"]

_CHUNK = 16  # samples drawn together: the progress bar moves, and a CPU gains nothing from more

_EXAMPLES = {
    "mat2seq": """examples:
  mat2seq generate BaTiO3 -n 4 -o out/      four crystals of a formula, as CIFs and as a table
  mat2seq encode quartz.cif POSCAR          canonical text of each file
  mat2seq encode quartz.cif | mat2seq decode -
  mat2seq doctor                            versions, the shipped model, a self test
""",
    "generate": """examples:
  mat2seq generate BaTiO3 -n 4 -o out/
  mat2seq generate NaCl LiFePO4 --seed 0 --temperature 0.7 --top-k 10
  mat2seq generate TiO2 --space-group P4_2/mnm --formula-units 2
  mat2seq generate --elements Li Fe P O --max-atoms 28 -n 8
  mat2seq generate --formulas formulas.txt -o out/
  mat2seq generate                          any crystal
""",
    "encode": """examples:
  mat2seq encode *.cif > texts.txt
  mat2seq encode POSCAR --symprec 0.1
""",
    "decode": """examples:
  mat2seq decode texts.txt -o out/
  echo 'Na1 Cl1 [Fm-3m] 5.6402 5.6402 5.6402 90 90 90 Na 4a 0 0 0 Cl 4b 1/2 1/2 1/2' | mat2seq decode --format poscar
""",
    "prepare": """examples:
  mat2seq prepare mp_20/train.parquet -o prepared/mp_20/train
  mat2seq prepare folder_of_cifs/ -o prepared/mine --num-proc 8
""",
    "doctor": """example:
  mat2seq doctor
""",
}


def build_parser() -> argparse.ArgumentParser:
    """The parser of the command line; each command sets ``run``, a function of the parsed arguments."""
    parser = argparse.ArgumentParser(
        prog="mat2seq",
        description="Crystals as unique, complete token sequences, and models that generate them.",
        epilog=_EXAMPLES["mat2seq"],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_generate(_command(commands, "generate", "draw crystals from a model", _generate))
    _add_encode(_command(commands, "encode", "canonical text of crystal files", _encode))
    _add_decode(_command(commands, "decode", "crystal files from canonical texts", _decode))
    _add_prepare(_command(commands, "prepare", "encode whole corpora for training", _prepare))
    _command(commands, "doctor", "check the installation", _doctor)
    return parser


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from importlib.metadata import PackageNotFoundError, version

        try:
            print(f"mat2seq-hf {version('mat2seq-hf')}")
        except PackageNotFoundError:
            print("mat2seq-hf, not installed")
        parser.exit()


def _command(commands: Any, name: str, summary: str, run: Any) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.",
        epilog=_EXAMPLES[name],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    return parser


def _add_generate(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("formula", nargs="*", help="reduced formulas, such as BaTiO3; none: the model chooses")
    add("--formulas", type=Path, metavar="FILE", help="file with one formula a line, in addition")
    add("-n", "--samples", type=int, default=1, help="crystals for each formula (default: 1)")
    add("-o", "--output", type=Path, metavar="FOLDER", help="write CIFs of the valid crystals here")
    add("--all", action="store_true", help="write crystals that are not valid, too")
    add("--temperature", type=float, help="sampling temperature (default: the model's)")
    add("--top-k", type=int, help="draw from the k likeliest tokens (default: the model's)")
    add("--seed", type=int, help="makes the run repeat")
    add("--space-group", help="number or symbol, such as 225 or Fm-3m")
    add("--crystal-system", help="such as cubic")
    add("--formula-units", type=int, help="formula units in the primitive cell")
    add("--elements", nargs="+", metavar="EL", help="exactly these elements, in any counts")
    add("--n-atoms", type=int, help="atoms in the primitive cell")
    add("--max-atoms", type=int, help="at most so many atoms in the primitive cell")
    add("--model", help="folder or Hub name of a model (default: the one in the package)")


def _add_encode(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="+", metavar="FILE", help="CIF or POSCAR files; - reads standard input")
    parser.add_argument("--symprec", type=float, default=0.01, help="symmetry tolerance in angstrom (default: 0.01)")


def _add_decode(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="*", default=["-"], metavar="FILE", help="one text a line; -: standard input")
    parser.add_argument("-o", "--output", type=Path, metavar="FOLDER", help="write files (default: standard output)")
    parser.add_argument("--format", choices=("cif", "poscar"), default="cif", help="file format (default: cif)")


def _add_prepare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help="files and folders of crystals")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER", help="where the shards go")
    parser.add_argument("--symprec", type=float, default=0.01, help="symmetry tolerance in angstrom (default: 0.01)")
    parser.add_argument("--num-proc", type=int, default=os.cpu_count() or 1, help="processes (default: all cores)")


def _generate(args: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    if args.samples < 1:
        raise PromptError(f"-n must be at least 1, not {args.samples}")
    notes = Console(stderr=True)
    with notes.status("loading the model"):
        pipe = _load_pipeline(args.model)
    prompts = [pipe.prompt(asked, **_wishes(args)) for asked in _asked(args)]
    parts = -(-args.samples // _CHUNK)
    size = -(-args.samples // parts)
    settings = {
        name: getattr(args, name) for name in ("temperature", "top_k", "seed") if getattr(args, name) is not None
    }
    drawn = pipe((prompt for prompt in prompts for _ in range(parts)), num_return_sequences=size, **settings)
    rows: list[tuple[Sample, str]] = []
    columns = (TextColumn("sampling"), BarColumn(), MofNCompleteColumn(), TextColumn("crystals"), TimeElapsedColumn())
    with Progress(*columns, console=notes, transient=True) as progress:
        task = progress.add_task("sampling", total=len(prompts) * args.samples)
        for place, samples in enumerate(drawn):
            first = place % parts * size + 1
            kept = samples[: args.samples - first + 1]
            taken = {name for _, name in rows}
            rows += zip(kept, _write(kept, args.output, first, taken, keep_all=args.all), strict=True)
            progress.advance(task, len(kept))
    _print_table(rows, show_files=args.output is not None)
    return 0


def _asked(args: argparse.Namespace) -> list[str | None]:
    formulas: list[str | None] = list(args.formula)
    if args.formulas is not None:
        formulas += [line.strip() for _, line in _lines([str(args.formulas)])]
    return formulas or [None]


def _wishes(args: argparse.Namespace) -> dict[str, Any]:
    """Fields of the prompt that were given as options."""
    names = ("formula_units", "elements", "n_atoms", "max_atoms", "space_group", "crystal_system")
    wishes = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    if re.fullmatch(r"\d{1,9}", str(wishes.get("space_group", ""))):
        wishes["space_group"] = int(wishes["space_group"])
    return wishes


def _load_pipeline(model: str | None) -> Any:
    import transformers

    from .registration import DEFAULT_MODEL, TASK

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
        return make(TASK, model=model, model_kwargs={"use_safetensors": True})
    except Mat2SeqError:
        raise
    except Exception as error:  # a broken folder raises nearly every type
        reason = next(iter(str(error).splitlines()), "")
        name = model or "the model in the package"
        raise Mat2SeqError(f"{name} cannot be loaded: {type(error).__name__}: {reason}") from error


def _write(
    samples: Sequence[Sample], folder: Path | None, first: int, taken: AbstractSet[str], *, keep_all: bool
) -> list[str]:
    """Write the CIFs of samples and return their names, ``""`` for those that are not written.

    Names in ``taken`` are not used again: two prompts can ask for the same crystals.
    """
    names: list[str] = []
    for index, sample in enumerate(samples, start=first):
        name = ""
        if folder is not None and sample["structure"] is not None and (sample["valid"] or keep_all):
            folder.mkdir(parents=True, exist_ok=True)
            crystal = _crystal(sample["text"])
            name = next(n for n in (_file_name(crystal, i, "cif") for i in count(index)) if n not in {*taken, *names})
            (folder / name).write_text(sample["cif"] or "", encoding="utf-8")
        names.append(name)
    return names


def _crystal(text: str) -> CanonicalCrystal:
    from .canonical import CanonicalCrystal

    return CanonicalCrystal.from_text(text)


def _file_name(crystal: CanonicalCrystal, index: int, suffix: str) -> str:
    """Formula of the primitive cell, space group, index; the slash of P2_1/c is no part of a file name."""
    formula = "".join(f"{element}{count if count > 1 else ''}" for element, count in crystal.composition.items())
    return f"{formula}_{crystal.space_group.replace('/', '-')}_{index}.{suffix}"


def _print_table(rows: Sequence[tuple[Sample, str]], *, show_files: bool) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("formula", "space group")
    for name in ("a, b, c (Å)", "density (g/cm³)", "log-probability"):
        table.add_column(name, justify="right")
    table.add_column("valid")
    if show_files:
        table.add_column("file", overflow="fold")
    for sample, name in rows:
        lengths = density = ""
        if sample["structure"] is not None:
            lengths = "  ".join(f"{length:.4f}" for length in _crystal(sample["text"]).lattice[:3])
            density = f"{float(sample['structure'].density):.3f}"
        cells = [sample["formula"] or "", sample["space_group"] or "", lengths, density, f"{sample['log_prob']:.2f}"]
        table.add_row(*cells, "yes" if sample["valid"] else "no", *([name] if show_files else []))
    console = Console()
    if not console.is_terminal:
        console = Console(width=200)  # a file has no width to fit into
    console.print(table)
    valid = sum(sample["valid"] for sample, _ in rows)
    console.print(f"{valid} of {len(rows)} valid", highlight=False)
    for row, (sample, _) in enumerate(rows, start=1):
        if not sample["valid"]:
            console.print(f"row {row}: {sample['reason']}", highlight=False, markup=False)


def _encode(args: argparse.Namespace) -> int:
    from .canonical import canonicalize

    failures = 0
    for name in args.files:
        try:
            print(canonicalize(_read(name), args.symprec).text)
        except BrokenPipeError:
            raise
        except (Mat2SeqError, OSError, UnicodeDecodeError) as error:
            failures += 1
            print(f"{name}: {_reason(error)}", file=sys.stderr)
    return 1 if failures else 0


def _read(name: str) -> str:
    return sys.stdin.read() if name == "-" else Path(name).read_text(encoding="utf-8-sig")


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return "is not a text file (UTF-8)" if isinstance(error, UnicodeDecodeError) else str(error)


def _lines(names: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Place and text of every line that is not empty."""
    for name in names:
        try:
            text = _read(name)
        except UnicodeDecodeError as error:
            raise Mat2SeqError(f"{name} {_reason(error)}") from error
        for number, line in enumerate(text.splitlines(), start=1):
            if line.strip():
                yield f"{name}:{number}", line


def _decode(args: argparse.Namespace) -> int:
    failures = 0
    for index, (place, line) in enumerate(_lines(args.files), start=1):
        try:
            crystal = _crystal(line)
            content = _content(crystal, args.format)
        except Mat2SeqError as error:
            failures += 1
            print(f"{place}: {error}", file=sys.stderr)
            continue
        if args.output is None:
            _put(sys.stdout, content)
        else:
            args.output.mkdir(parents=True, exist_ok=True)
            path = args.output / _file_name(crystal, index, "cif" if args.format == "cif" else "vasp")
            path.write_text(content, encoding="utf-8")
            print(path)
    return 1 if failures else 0


def _content(crystal: CanonicalCrystal, file_format: str) -> str:
    if file_format == "cif":
        from .cif import cif_text

        return cif_text(crystal)
    from pymatgen.io.vasp import Poscar

    return str(Poscar(crystal.to_structure()).get_str(significant_figures=10))


def _put(stream: TextIO, content: str) -> None:
    stream.write(content if content.endswith("\n") else content + "\n")


def _prepare(args: argparse.Namespace) -> int:
    from .corpora.prepare import prepare

    print(prepare(args.inputs, args.output, symprec=args.symprec, num_proc=args.num_proc))
    return 0


def _doctor(args: argparse.Namespace) -> int:  # noqa: ARG001 - every command takes the parsed arguments
    from .doctor import examine

    healthy = True
    for finding in examine():
        print(f"{'ok ' if finding.passed else 'BAD'} {finding.name}: {finding.detail}")
        healthy = healthy and finding.passed
    return 0 if healthy else 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        0; 1 if some of several inputs failed; 2 for bad input or wrong usage; 130 if interrupted.
    """
    args = build_parser().parse_args(arguments)
    try:
        code = int(args.run(args))
        sys.stdout.flush()  # what cannot be written shows here, not as a complaint of the interpreter at its end
    except Mat2SeqError as error:
        print(f"mat2seq: {error}", file=sys.stderr)
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        _drop_output()
        return 1
    except OSError as error:
        print(f"mat2seq: {f'{error.filename}: ' if error.filename else ''}{_reason(error)}", file=sys.stderr)
        if error.errno == errno.ENOSPC:
            _drop_output()
    except KeyboardInterrupt:
        return 130
    else:
        return code
    return 2


def _drop_output() -> None:
    """Nothing more can be written: keep the interpreter from trying at its end."""
    sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123 - closed with the process


if __name__ == "__main__":
    sys.exit(main())
