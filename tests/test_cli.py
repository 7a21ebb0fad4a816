"""The commands do what their help says, and name what is wrong in one line."""

from __future__ import annotations

import errno
import gzip
import io
import re
import shlex
import shutil
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pymatgen.core import Structure
from transformers import GPT2LMHeadModel
from transformers.pipelines import PIPELINE_REGISTRY

from mat2seq_hf import build_tokenizer, canonicalize, doctor, gpt2_config
from mat2seq_hf.cli import build_parser, main
from mat2seq_hf.commands.generate import _write
from mat2seq_hf.generation import load_pipeline
from mat2seq_hf.publishing import save_model_folder
from mat2seq_hf.registration import DEFAULT_MODEL, TASK

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    network = GPT2LMHeadModel(gpt2_config("tiny", n_embd=16, n_layer=1, n_head=2, n_positions=128))
    return str(save_model_folder(network, build_tokenizer(), tmp_path_factory.mktemp("model"), with_code=False))


@pytest.fixture
def files(tmp_path: Path, crystals: dict[str, Structure]) -> list[str]:
    crystals["NaCl"].to(str(tmp_path / "salt.cif"))
    crystals["quartz"].to(str(tmp_path / "POSCAR"))
    return [str(tmp_path / "salt.cif"), str(tmp_path / "POSCAR")]


@pytest.mark.parametrize("command", ["generate", "encode", "decode", "prepare", "doctor"])
def test_every_command_has_help_with_examples(command: str, capsys: Capture) -> None:
    with pytest.raises(SystemExit, match="0"):
        main([command, "--help"])
    assert f"mat2seq {command}" in capsys.readouterr().out.split("example")[1]


def test_the_commands_of_the_readme_are_ones() -> None:
    readme = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    lines = re.findall(r"^mat2seq .*", readme, re.MULTILINE)
    assert len(lines) > 8
    for line in lines:
        build_parser().parse_args(shlex.split(line, comments=True)[1:])  # exits where an option is unknown


def test_a_command_is_required(capsys: Capture) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([])
    assert "COMMAND" in capsys.readouterr().err
    assert build_parser().prog == "mat2seq"


def test_encode_prints_the_canonical_text_of_each_file(
    files: list[str], crystals: dict[str, Structure], capsys: Capture
) -> None:
    assert main(["encode", *files]) == 0
    expected = [canonicalize(crystals[name]).text for name in ("NaCl", "quartz")]
    assert capsys.readouterr().out.splitlines() == expected


def test_encode_names_bad_files_and_does_the_others(files: list[str], tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "prose.cif").write_text("once upon\na time\n")
    (tmp_path / "bytes.cif").write_bytes(b"\xff\xfe\x00")
    bad = [str(tmp_path / name) for name in ("prose.cif", "absent.cif", "bytes.cif")]
    assert main(["encode", files[0], *bad, files[1]]) == 1
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == 2
    lines = captured.err.splitlines()
    assert [line.split(": ")[0] for line in lines] == bad
    assert "no crystal" in lines[0]
    assert "No such file" in lines[1]
    assert "no crystal" in lines[2]


def test_standard_input_and_capital_suffixes_are_read_as_files_are(
    files: list[str], tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["encode", files[0]]) == 0
    text = capsys.readouterr().out
    data = Path(files[0]).read_bytes()
    (tmp_path / "X.CIF.GZ").write_bytes(gzip.compress(data))
    with zipfile.ZipFile(tmp_path / "Z.ZIP", "w") as archive:
        archive.writestr("x.cif", data)
    assert main(["encode", str(tmp_path / "X.CIF.GZ"), str(tmp_path / "Z.ZIP")]) == 0
    assert capsys.readouterr().out == 2 * text
    for given in (b"\xef\xbb\xbf" + data, b"# M\xfcller\r\n" + data.replace(b"\n", b"\r\n")):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(given), "utf-8"))
        assert main(["encode", "-"]) == 0
        assert capsys.readouterr().out == text
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"M\xfcller\n"), "utf-8"))
    assert main(["decode", "-"]) == 1
    assert "-: is not a text file" in capsys.readouterr().err


@pytest.mark.parametrize("file_format", ["cif", "poscar"])
def test_decode_undoes_encode(
    files: list[str], file_format: str, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    main(["encode", *files])
    texts = capsys.readouterr().out
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(texts.encode())))
    assert main(["decode", "-", "--format", file_format, "-o", str(tmp_path / "out")]) == 0
    written = capsys.readouterr().out.splitlines()
    suffix = {"cif": "cif", "poscar": "vasp"}[file_format]
    assert [Path(path).name for path in written] == [f"NaCl_Fm-3m_1.{suffix}", f"Si3O6_P3_221_2.{suffix}"]
    assert main(["encode", *written]) == 0
    assert capsys.readouterr().out == texts


def test_decode_names_the_line_that_is_no_crystal(tmp_path: Path, capsys: Capture) -> None:
    salt = "Na1 Cl1 [Fm-3m] 5.6402 5.6402 5.6402 90 90 90 Na 4a 0 0 0 Cl 4b 1/2 1/2 1/2"
    (tmp_path / "texts.txt").write_text(f"{salt}\n\n{salt} Cl\n")
    assert main(["decode", str(tmp_path / "texts.txt")]) == 1
    captured = capsys.readouterr()
    assert captured.out.startswith("data_Na1Cl1\n")
    assert captured.err.startswith(f"{tmp_path / 'texts.txt'}:3: ")


def test_generate_writes_cifs_and_prints_a_table(model: str, tmp_path: Path, capsys: Capture) -> None:
    arguments = ["generate", "NaCl", "BaTiO3", "-n", "3", "--seed", "4", "--max-atoms", "6", "--model", model, "--all"]
    assert main([*arguments, "-o", str(tmp_path / "out")]) == 0
    table = capsys.readouterr().out
    assert len(table.splitlines()) >= 3 + 6 + 2
    for word in ("formula", "space group", "density", "log-probability", "of 6 valid"):
        assert word in table
    written = sorted((tmp_path / "out").iterdir())
    assert len(written) == 6
    formulas = [Structure.from_file(path).composition.reduced_formula for path in written]
    assert sorted(formulas) == ["BaTiO3"] * 3 + ["NaCl"] * 3
    for path in written:
        assert path.name in table
    assert main([*arguments, "-o", str(tmp_path / "again")]) == 0
    for path in written:
        assert (tmp_path / "again" / path.name).read_text() == path.read_text()


def test_generate_at_scale_writes_a_table_and_goes_on_where_it_stopped(
    model: str, tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "formulas.txt").write_text("NaCl\nXx\nLiF\n")
    arguments = ["generate", "--formulas", str(tmp_path / "formulas.txt"), "-n", "2", "--max-atoms", "6"]
    arguments += ["--candidates", "3", "--model", model, "-o", str(tmp_path / "out")]
    assert main(arguments) == 1  # one formula cannot be read
    first = capsys.readouterr().out
    assert "4 samples of 2 prompts" in first
    assert "'Xx' is not an element" in first
    part = next((tmp_path / "out" / "parts").iterdir())
    written = part.stat().st_mtime_ns
    (tmp_path / "out" / "samples.parquet").unlink()
    assert main(arguments) == 1
    assert capsys.readouterr().out == first
    assert part.stat().st_mtime_ns == written
    assert main([*arguments, "--property", "band_gap"]) == 2
    assert "write for instance band_gap=1.1" in capsys.readouterr().err
    assert main([*arguments, "--property", "band_gap=1:2"]) == 2
    assert "not trained with the prefix field band_gap" in capsys.readouterr().err


def test_generate_passes_wishes_on(model: str, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "formulas.txt").write_text("TiO2\n\n")
    arguments = ["--formulas", str(tmp_path / "formulas.txt"), "--space-group", "136", "--formula-units", "2"]
    assert main(["generate", *arguments, "--model", model, "--top-k", "5", "--temperature", "0.7"]) == 0
    table = capsys.readouterr().out
    assert "Ti2 O4" in table
    assert "P4_2/mnm" in table


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["Xx2"], "'Xx' is not an element"),
        (["NaCl", "-n", "0"], "-n must be at least 1"),
        (["NaCl", "-n", "4", "--candidates", "2"], "--candidates must be at least -n (4), not 2"),
        (["BaTiO3", "--n-atoms", "3"], "5 atoms in a formula unit"),
        (["NaCl", "--seed", "99999999999999999999"], "seed must be"),
        (["NaCl", "--temperature", "0"], "temperature must be"),
        (["NaCl", "--top-k", "-1"], "top_k must be"),
        (["Na" + "1" * 5000], "is not a count from 1"),
        (["--formulas", "absent.txt"], "absent.txt"),
        (["NaCl", "--all"], "name a folder for them with -o"),
        (["--property", "band_gap=1", "--property", "band_gap=2"], "names a property twice: band_gap=1 band_gap=2"),
    ],
)
def test_bad_wishes_end_in_one_line(model: str, arguments: list[str], message: str, capsys: Capture) -> None:
    assert main(["generate", *arguments, "--model", model]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("mat2seq: ")
    assert message in line


def test_a_folder_without_a_model_is_named(tmp_path: Path, capsys: Capture) -> None:
    assert main(["generate", "NaCl", "--model", str(tmp_path)]) == 2
    assert "no model folder" in capsys.readouterr().err


def test_prepare_writes_shards(files: list[str], tmp_path: Path, capsys: Capture) -> None:
    assert main(["prepare", files[0], "-o", str(tmp_path / "prepared"), "--num-proc", "1"]) == 0
    assert list((tmp_path / "prepared").rglob("*.parquet"))
    assert capsys.readouterr().out.strip()


def test_doctor_examines_versions_and_parts(capsys: Capture) -> None:
    code = main(["doctor"])
    lines = capsys.readouterr().out.splitlines()
    assert code == (1 if any(line.startswith("BAD") for line in lines) else 0)
    for part in ("python", "transformers", "scheme", "canonical form", "tokenizer", "shipped model"):
        assert any(f" {part}: " in line for line in lines)
    assert any(line.startswith("ok  canonical form") for line in lines)
    assert any(line.startswith("ok  tokenizer") for line in lines)


def test_doctor_says_that_the_shipped_model_is_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    damaged = shutil.copytree(DEFAULT_MODEL, tmp_path / "damaged")
    (damaged / "model.safetensors").write_bytes((DEFAULT_MODEL / "model.safetensors").read_bytes()[:1000])
    monkeypatch.setitem(PIPELINE_REGISTRY.supported_tasks[TASK]["default"], "model", (str(damaged), "main"))
    assert main(["doctor"]) == 1
    assert "BAD generation: the model in the package cannot be loaded: " in capsys.readouterr().out


def test_doctor_compares_the_weights_and_says_what_is_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    found = {finding.name: finding for finding in (doctor._checked("shipped model", doctor._model),)}
    assert found["shipped model"].passed, found  # what is written down agrees with the weights
    damaged = shutil.copytree(DEFAULT_MODEL, tmp_path / "damaged")
    monkeypatch.setattr(doctor, "DEFAULT_MODEL", damaged)
    size = (damaged / "model.safetensors").stat().st_size
    (damaged / "model.safetensors").write_bytes(bytes(size))
    assert main(["doctor"]) == 1
    assert "BAD shipped model: is damaged: sha256 " in capsys.readouterr().out
    shutil.copy(DEFAULT_MODEL / "model.safetensors", damaged)
    (damaged / "config.json").write_text("{")
    assert main(["doctor"]) == 1
    assert "BAD shipped model: JSONDecodeError: " in capsys.readouterr().out


def test_doctor_names_every_dependency() -> None:
    project = (Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8")
    listed = project.split("\ndependencies = [")[1].split("\n]")[0]
    names = re.findall(r'"([a-z-]+)[>=]', listed)
    assert len(names) > 15
    assert {*doctor._LIBRARIES} == {*names, "mat2seq-hf"}


def test_prompts_for_the_same_crystals_share_no_file(model: str, tmp_path: Path, capsys: Capture) -> None:
    wishes = ["--space-group", "225", "--max-atoms", "2", "--all"]
    assert main(["generate", "NaCl", "NaCl", "-n", "3", *wishes, "--model", model, "-o", str(tmp_path / "out")]) == 0
    assert "of 6 valid" in capsys.readouterr().out
    assert len(list((tmp_path / "out").iterdir())) == 6


def test_generate_draws_what_the_pipeline_draws(model: str, tmp_path: Path) -> None:
    wishes = ["--max-atoms", "4", "--all", "--seed", "3"]
    assert main(["generate", "NaCl", "-n", "20", *wishes, "--model", model, "-o", str(tmp_path / "out")]) == 0
    samples = load_pipeline(model)("NaCl", num_return_sequences=20, seed=3, max_atoms=4)
    expected = sorted(sample["cif"] for sample in samples if sample["structure"] is not None)
    assert sorted(path.read_text() for path in (tmp_path / "out").iterdir()) == expected


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv"])
def test_generate_reads_every_kind_of_prompts_without_an_output(
    name: str, model: str, tmp_path: Path, capsys: Capture
) -> None:
    lines = ['{"formula": "NaCl", "n_atoms": 2}'] if name == "a.jsonl" else ["formula,n_atoms", "NaCl,2"]
    (tmp_path / name).write_text("\n".join(lines))
    assert main(["generate", "--formulas", str(tmp_path / name), "--model", model]) == 0
    assert "Na1 Cl1" in capsys.readouterr().out


def test_formulas_may_come_from_windows(model: str, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "formulas.txt").write_bytes(b"\xef\xbb\xbfNaCl\r\n\r\n")
    assert main(["generate", "--formulas", str(tmp_path / "formulas.txt"), "--model", model, "--max-atoms", "2"]) == 0
    assert "Na1 Cl1" in capsys.readouterr().out


def test_lines_that_are_no_text_are_named(model: str, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "bytes.txt").write_bytes(b"NaCl\n\xff\n")
    assert main(["generate", "--formulas", str(tmp_path / "bytes.txt"), "--model", model]) == 2
    assert "bytes.txt is not a text file (UTF-8)" in capsys.readouterr().err


def test_decode_goes_on_after_a_file_that_cannot_be_read(tmp_path: Path, capsys: Capture) -> None:
    salt = "Na1 Cl1 [Fm-3m] 5.6402 5.6402 5.6402 90 90 90 Na 4a 0 0 0 Cl 4b 1/2 1/2 1/2\n"
    (tmp_path / "a.txt").write_text(salt)
    (tmp_path / "b.txt").write_bytes(b"NaCl\n\xff\n")
    names = [str(tmp_path / name) for name in ("a.txt", "b.txt", "missing", "a.txt")]
    assert main(["decode", *names, "-o", str(tmp_path / "out")]) == 1
    captured = capsys.readouterr()
    assert captured.err.splitlines() == [
        f"{names[1]}: is not a text file (UTF-8)",
        f"{names[2]}: No such file or directory",
    ]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["NaCl_Fm-3m_1.cif", "NaCl_Fm-3m_2.cif"]


def test_encode_names_a_folder_without_crystals(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "empty").mkdir()
    assert main(["encode", str(tmp_path / "empty")]) == 1
    assert capsys.readouterr().err == f"{tmp_path / 'empty'}: holds no crystals\n"


def test_letters_that_a_code_page_lacks_cost_no_results(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(written, "cp1251"))
    assert main(["generate", "NaCl", "--max-atoms", "2", "--model", model]) == 0
    sys.stdout.flush()
    assert "a, b, c (?)" in written.getvalue().decode("cp1251")


def test_file_names_differ_in_more_than_capitals(tmp_path: Path) -> None:
    places = [[0.0, 0.0, 0.0], [0.5, 0.5, 0.5]]
    names: list[str] = []
    for elements in (["C", "O"], ["Co"]):  # both Pmmm
        crystal = Structure(np.diag([4, 4.1, 4.2]), elements, places[: len(elements)])
        sample: Any = {"structure": True, "valid": True, "cif": "", "text": canonicalize(crystal).text}
        names += _write([sample], tmp_path, {name.lower() for name in names}, keep_all=False)
    assert names == ["CO_Pmmm_1.cif", "Co_Pmmm_2.cif"]


def test_a_file_is_no_output_folder(files: list[str], model: str, capsys: Capture) -> None:
    for output in (files[0], f"{files[0]}/more"):
        assert main(["generate", "NaCl", "-o", output, "--model", "absent"]) == 2  # before the model is loaded
        assert f"-o {output}: {files[0]} is a file; name a folder" in capsys.readouterr().err


def test_prompts_of_one_name_are_refused(model: str, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "a.jsonl").write_text('{"id": "argument 1", "formula": "KCl"}\n')
    arguments = ["generate", "NaCl", "--formulas", str(tmp_path / "a.jsonl"), "--model", model]
    assert main([*arguments, "-o", str(tmp_path / "out")]) == 2
    assert "the prompt id 'argument 1' occurs twice" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "content"),
    [("model.safetensors", b"\x08"), ("tokenizer.json", b"{"), ("config.json", b"{"), ("model.safetensors", None)],
)
def test_a_broken_model_folder_is_named(
    name: str, content: bytes | None, model: str, tmp_path: Path, capsys: Capture
) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(model, folder)
    if content is None:  # pickled weights are never read
        (folder / name).rename(folder / "pytorch_model.bin")
    else:
        (folder / name).write_bytes(content)
    assert main(["generate", "NaCl", "--model", str(folder)]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"mat2seq: {folder} ")


def test_encode_ends_when_nobody_reads_any_more(files: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    class Closed(io.StringIO):
        def write(self, _: str) -> int:
            raise BrokenPipeError

    monkeypatch.setattr("sys.stdout", Closed())
    monkeypatch.setattr("sys.stderr", io.StringIO())
    assert main(["encode", *files]) == 1
    assert sys.stderr.getvalue() == ""  # type: ignore[union-attr]


def test_a_broken_pipe_that_is_not_the_output_is_an_error(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    def run(_: object) -> int:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    monkeypatch.setattr("mat2seq_hf.commands.doctor.run", run)
    assert main(["doctor"]) == 2
    assert capsys.readouterr().err == "mat2seq: Broken pipe\n"


def test_output_that_fits_nowhere_is_an_error(files: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(io.StringIO):
        def flush(self) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("sys.stdout", Full())
    monkeypatch.setattr("sys.stderr", io.StringIO())
    assert main(["encode", *files]) == 2
    assert sys.stderr.getvalue() == "mat2seq: No space left on device\n"  # type: ignore[union-attr]
