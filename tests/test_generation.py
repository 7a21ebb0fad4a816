"""Sampling at scale: what is drawn depends on no kill, process or batch, and no prompt is lost or repeated."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
import transformers
from runs import write_report
from transformers import GPT2LMHeadModel, LlamaForCausalLM

from mat2seq_hf.errors import Mat2SeqError
from mat2seq_hf.generation import (
    SAMPLES,
    Asked,
    Job,
    bulk,
    load_pipeline,
    merge,
    prompt_json,
    property_value,
    read_prompts,
    run_job,
    summary,
    write_cifs,
)
from mat2seq_hf.generation.loading import weights_fingerprint
from mat2seq_hf.pipeline import CrystalGenerationPipeline
from mat2seq_hf.presets import gpt2_config, llama_config
from mat2seq_hf.prompts import make_plan
from mat2seq_hf.tokenizer import build_tokenizer
from mat2seq_hf.wishes import Prompt, read_prompt

FORMULAS = ("NaCl", "BaTiO3", "C", "Fe2O3", "LiF", "MgB2", "CuZn")
ASKED = [Asked(f"p{number}", formula) for number, formula in enumerate(FORMULAS)]
JOB = Job(samples=2, seed=5, rows=4, settings=(("top_k", 8),), wishes=(("max_atoms", 10),))


@pytest.fixture(scope="module")
def pipe() -> CrystalGenerationPipeline:
    torch.manual_seed(0)
    model = GPT2LMHeadModel(gpt2_config("tiny", n_embd=32, n_layer=1, n_head=2)).eval()
    return CrystalGenerationPipeline(model=model, tokenizer=build_tokenizer(), device="cpu")


def finish(pipe: Any, folder: Path, asked: Sequence[Asked] = ASKED, job: Job = JOB, processes: int = 1) -> pd.DataFrame:
    for rank in range(processes):
        list(run_job(pipe, asked, job, folder, model="test", rank=rank, processes=processes))
    return pd.read_parquet(merge(folder, asked))


@pytest.fixture(scope="module")
def samples(pipe: CrystalGenerationPipeline, tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    return finish(pipe, tmp_path_factory.mktemp("whole"))


def test_every_prompt_has_its_samples_in_order_and_all_columns_are_there(samples: pd.DataFrame) -> None:
    assert list(samples.columns) == SAMPLES.names
    assert list(zip(samples.prompt_id, samples.sample_index, strict=True)) == [
        (one.prompt_id, index) for one in ASKED for index in range(2)
    ]
    assert samples.finished.all()
    assert samples.n_tokens.min() > 15
    assert json.loads(samples.prompt[0]) == {"formula": "NaCl", "max_atoms": 10}


def test_a_killed_run_goes_on_with_any_number_of_processes(
    pipe: CrystalGenerationPipeline, samples: pd.DataFrame, tmp_path: Path
) -> None:
    assert len(list(islice(run_job(pipe, ASKED, JOB, tmp_path, model="test"), 2))) == 2
    parts = sorted((tmp_path / "parts").iterdir())
    assert len(parts) == 2
    with pytest.raises(Mat2SeqError, match="prompts have no samples yet"):
        merge(tmp_path, ASKED)
    for left in ("parts/part-000003.77.tmp", "samples.77.tmp"):  # by a kill
        (tmp_path / left).write_bytes(b"half of a fi")
    before = [path.stat().st_mtime_ns for path in parts]
    again = finish(pipe, tmp_path, processes=3)
    assert [path.stat().st_mtime_ns for path in parts] == before, "a finished part was drawn once more"
    pd.testing.assert_frame_equal(again, samples)
    assert not list(tmp_path.rglob("*.tmp"))


def test_samples_do_not_depend_on_the_size_of_a_batch(
    pipe: CrystalGenerationPipeline, samples: pd.DataFrame, tmp_path: Path
) -> None:
    pd.testing.assert_frame_equal(finish(pipe, tmp_path, job=replace(JOB, rows=100)), samples)
    answers = pipe(list(FORMULAS), num_return_sequences=2, seed=5, top_k=8, max_atoms=10, batch_size=3)
    assert [sample["text"] for answer in answers for sample in answer] == samples.text.tolist()


def test_parts_are_joined_without_holding_all_of_them(
    pipe: CrystalGenerationPipeline, samples: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = finish(pipe, tmp_path)
    size = sum(pq.ParquetFile(path).read().nbytes for path in (tmp_path / "parts").iterdir())
    for share in (3, 100):  # several rows at once, and one
        monkeypatch.setattr(bulk, "_BYTES", size // share + 1)
        path = merge(tmp_path, ASKED)
        assert pq.ParquetFile(path).num_row_groups == min(share, len(whole))
        pd.testing.assert_frame_equal(pd.read_parquet(path), samples)
        assert pq.read_schema(path).equals(SAMPLES)


def test_a_part_that_is_damaged_is_drawn_again(
    pipe: CrystalGenerationPipeline, samples: pd.DataFrame, tmp_path: Path
) -> None:
    finish(pipe, tmp_path)
    parts = sorted((tmp_path / "parts").iterdir())
    data, table = parts[0].read_bytes(), pq.ParquetFile(parts[2]).read()
    parts[0].write_bytes(data[: len(data) // 2])
    parts[1].write_bytes(b"")
    pq.write_table(table.slice(1), parts[2])
    kept = parts[3].stat().st_mtime_ns
    with pytest.raises(Mat2SeqError, match=r"part-000000\.parquet cannot be read: run the command again"):
        merge(tmp_path, ASKED)
    (tmp_path / "parts" / "part-000001.77.tmp").write_bytes(b"half of a fi")  # what a kill leaves
    pd.testing.assert_frame_equal(finish(pipe, tmp_path), samples)
    assert sorted((tmp_path / "parts").iterdir()) == parts
    assert parts[3].stat().st_mtime_ns == kept


def test_two_runs_do_not_draw_the_same_share(pipe: CrystalGenerationPipeline, tmp_path: Path) -> None:
    first = run_job(pipe, ASKED, JOB, tmp_path, model="test")
    next(first)
    with pytest.raises(Mat2SeqError, match=r"another run is writing to .*; wait for it, or name another folder"):
        next(run_job(pipe, ASKED, JOB, tmp_path, model="test"))
    next(run_job(pipe, ASKED, JOB, tmp_path, model="test", rank=1, processes=2))
    first.close()  # type: ignore[attr-defined]
    next(run_job(pipe, ASKED, JOB, tmp_path, model="test"))


def test_a_plan_that_is_none_is_named(pipe: CrystalGenerationPipeline, tmp_path: Path) -> None:
    for content in ("[]", "{", "null"):
        (tmp_path / "plan.json").write_text(content)
        with pytest.raises(Mat2SeqError, match=r"plan\.json is no plan of a job; remove the folder"):
            next(run_job(pipe, ASKED, JOB, tmp_path, model="test"))


def test_a_folder_of_another_job_is_refused(pipe: CrystalGenerationPipeline, tmp_path: Path) -> None:
    next(run_job(pipe, ASKED, JOB, tmp_path, model="test"))
    others: list[tuple[Sequence[Asked], Job, str]] = [
        (ASKED, replace(JOB, seed=6), "seed was 5 and is now 6"),
        (ASKED[::-1], JOB, "prompts_sha256"),
        (ASKED, replace(JOB, candidates=4), "candidates was None and is now 4"),
    ]
    for asked, job, said in others:
        with pytest.raises(Mat2SeqError, match=said):
            next(run_job(pipe, asked, job, tmp_path, model="test"))


def test_a_job_does_not_go_on_when_the_model_samples_differently(
    pipe: CrystalGenerationPipeline, tmp_path: Path
) -> None:
    job = replace(JOB, settings=())
    next(run_job(pipe, ASKED, job, tmp_path, model="test"))
    next(run_job(pipe, ASKED, job, tmp_path, model="test"))
    config, record = pipe.model.generation_config, pipe.model.config.mat2seq
    config.temperature = 0.25
    try:
        with pytest.raises(Mat2SeqError, match=r"sampling was .*1\.0.* and is now .*0\.25"):
            next(run_job(pipe, ASKED, job, tmp_path, model="test"))
    finally:
        config.temperature = 1.0
    pipe.model.config.mat2seq = {**record, "max_atoms": 33}
    try:
        with pytest.raises(Mat2SeqError, match=r"model_record was .*33"):
            next(run_job(pipe, ASKED, job, tmp_path, model="test"))
    finally:
        pipe.model.config.mat2seq = record


@pytest.mark.parametrize(
    ("job", "said"),
    [
        ({"samples": 0}, "samples must be a whole number from 1"),
        ({"samples": 1.5}, "samples must be"),
        ({"rows": 0}, "rows must be"),
        ({"seed": 2**63}, "seed must be"),
        ({"samples": 4, "candidates": 2}, "4 samples cannot be the best of 2 candidates"),
    ],
)
def test_a_job_of_bad_numbers_is_refused(job: dict[str, Any], said: str) -> None:
    with pytest.raises(Mat2SeqError, match=said):
        Job(**job)


def test_prompts_that_cannot_be_fulfilled_are_set_aside_with_a_reason(
    pipe: CrystalGenerationPipeline, tmp_path: Path
) -> None:
    asked = [Asked("../up", "NaCl"), Asked("bad", "Xx2"), Asked("small", {"formula": "BaTiO3", "n_atoms": 3})]
    wrong: tuple[dict[str, Any], ...]
    wrong = ({"formula": ["CsCl"]}, {"elements": 5}, {"formula": "KCl", "properties": 3}, {"formula": ""}, {"a": 1})
    asked += [Asked(f"wrong {number}", prompt) for number, prompt in enumerate(wrong)]
    table = finish(pipe, tmp_path, asked)
    assert set(table.prompt_id) == {"../up"}
    rejected = pd.read_parquet(tmp_path / "rejected.parquet")
    assert rejected.prompt_id.tolist() == ["bad", "small", *(f"wrong {number}" for number in range(5))]
    assert "not an element" in rejected.reason[0]
    assert "5 atoms in a formula unit" in rejected.reason[1]
    assert "7 prompts cannot be fulfilled" in summary(tmp_path)
    written = write_cifs(tmp_path / "samples.parquet", tmp_path / "cifs")
    assert written == table.valid.sum() == len(list((tmp_path / "cifs").iterdir()))
    with pytest.raises(Mat2SeqError, match="none of 1 prompts can be fulfilled"):
        next(run_job(pipe, asked[1:2], JOB, tmp_path / "none", model="test"))


def test_prompts_are_read_from_every_kind_of_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("NaCl\n\n BaTiO3 \n")
    assert read_prompts(tmp_path / "a.txt") == [Asked("1", "NaCl"), Asked("2", "BaTiO3")]
    (tmp_path / "b.jsonl").write_text('{"id": "x", "elements": ["Li", "O"]}\n{"formula": "C", "space_group": 227}\n')
    assert read_prompts(tmp_path / "b.jsonl") == [
        Asked("x", {"elements": ["Li", "O"]}),
        Asked("2", {"formula": "C", "space_group": 227}),
    ]
    (tmp_path / "c.csv").write_text("material_id,formula,n_atoms\nm1,NaCl,2\nm2,KCl,\n")
    expected = [Asked("m1", {"formula": "NaCl", "n_atoms": 2}), Asked("m2", {"formula": "KCl"})]
    assert read_prompts(tmp_path / "c.csv") == expected
    pd.read_csv(tmp_path / "c.csv").to_parquet(tmp_path / "c.parquet")
    assert read_prompts(tmp_path / "c.parquet") == expected
    (tmp_path / "prepared").mkdir()
    texts = {"id": ["m"], "text": ["Ba2 Ti2 O6 [Pm-3m] 4.0000 4.0000 4.0000 90 90 90 Ba 1a 0 0 0"]}
    pd.DataFrame(texts).to_parquet(tmp_path / "prepared" / "part-00000.parquet")
    with pytest.raises(Mat2SeqError, match=r"prepared has no report\.json: .* start the same command again"):
        read_prompts(tmp_path / "prepared")
    write_report(tmp_path / "prepared", 1)
    assert read_prompts(tmp_path / "prepared") == [Asked("m", {"formula": "Ba1Ti1O3", "formula_units": 2})]
    shard = tmp_path / "prepared" / "part-00000.parquet"
    data = bytearray(shard.read_bytes())
    data[8:40] = bytes(32)
    shard.write_bytes(data)
    with pytest.raises(Mat2SeqError, match=r"part-00000\.parquet is damaged .* start the same `mat2seq prepare`"):
        read_prompts(tmp_path / "prepared")


def test_a_file_of_ids_chooses_prompts_in_its_order(tmp_path: Path) -> None:
    prompts, ids = tmp_path / "p.csv", tmp_path / "ids.txt"
    prompts.write_text("material_id,formula\nm1,NaCl\nm2,KCl\nm3,LiF\n")
    ids.write_text("m3\nm1\n")
    assert read_prompts(prompts, ids) == [Asked("m3", {"formula": "LiF"}), Asked("m1", {"formula": "NaCl"})]
    ids.write_text("m3\nm4\n")
    with pytest.raises(Mat2SeqError, match=r"1 ids of .*ids.txt are not in .*p.csv, such as 'm4'"):
        read_prompts(prompts, ids)
    with pytest.raises(Mat2SeqError, match=r"absent\.txt does not exist"):
        read_prompts(prompts, tmp_path / "absent.txt")


def test_a_table_asks_for_what_its_columns_say(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(
        ",id,formula,space_group,elements,n_atoms,band_gap,e_above_hull,condition\n"
        "0,a,NaN,225,,2.0,1.5,0:0.1,true\n"
        "1,b, NaCl ,Fm-3m,,,,,\n"
        "2,c,,,\"['Li', 'O']\",,,,\n"
        "3,d,,,Li-Fe P O,4\n"
        "4,e,,,,,2,,\n"
        "5,f,,,,,,,\n"
    )
    expected = [
        Asked("a", {"formula": "NaN", "space_group": 225, "n_atoms": 2, "band_gap": 1.5, "e_above_hull": (0.0, 0.1)}),
        Asked("b", {"formula": "NaCl", "space_group": "Fm-3m"}),
        Asked("c", {"elements": ["Li", "O"]}),
        Asked("d", {"elements": ["Li", "Fe", "P", "O"], "n_atoms": 4}),
        Asked("e", {"band_gap": 2}),
        Asked("f", {"formula": ""}),  # which is refused: an empty row does not ask for any crystal
    ]
    assert isinstance(expected[0].prompt, dict)
    expected[0].prompt["condition"] = True
    assert read_prompts(path) == expected
    for one in expected[:-1]:
        make_plan(read_prompt(one.prompt))
    table = {
        "id": ["a", "b", "c"],
        "formula": ["NaN", None, None],
        "elements": [None, ["Li", "O"], None],
        "band_gap": [1.5, float("nan"), None],
        "n_atoms": [2, None, None],
    }
    pd.DataFrame(table, index=[3, 4, 7]).to_parquet(tmp_path / "a.parquet")
    assert read_prompts(tmp_path / "a.parquet") == [
        Asked("a", {"formula": "NaN", "band_gap": 1.5, "n_atoms": 2}),
        Asked("b", {"elements": ["Li", "O"]}),
        Asked("c", {"formula": ""}),
    ]


def test_a_formula_that_is_missing_in_a_line_of_json_asks_for_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(
        '{"id": "a", "formula": null}\n{"id": "b"}\n{"formula": "NaCl", "band_gap": null, "n_atoms": null}\n'
    )
    assert [one.prompt for one in read_prompts(path)] == [
        {"formula": ""},
        {},  # any crystal
        {"formula": "NaCl", "band_gap": None},  # a value that is unknown
    ]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.txt", b"", "holds no prompts"),
        ("a.txt", b"\xff\xfe\x00", "not a text file"),
        ("a.jsonl", b"{'formula'}", "a.jsonl:1 is no JSON"),
        ("a.jsonl", b"[1]", "an object of prompt fields"),
        ("a.jsonl", b"[" * 100_000, "a.jsonl:1 is no JSON"),
        ("a.jsonl", b'{"formula": "NaCl", "formula": "KCl"}', "a key occurs twice among formula, formula"),
        ("a.csv", b"x,y\n1,2\n", "none of the columns"),
        ("a.csv", b"", "none of the columns"),
        ("a.csv", b"formula,spacegroup,note\nNaCl,225,x\n", "'spacegroup', 'note' is unknown"),
        ("a.csv", b"formula,n_atoms,n_atoms\nNaCl,2,4\n", "'n_atoms' is unknown or there twice"),
        ("a.csv", b"formula,n_atoms\nNaCl,2,4\n", "row 1 has 3 cells, the head 2"),
        ("a.parquet", b"PAR1 not really", "cannot be read as a table"),
        ("a.csv", b"id,formula\n1,NaCl\n1,KCl\n", "occurs twice"),
        ("absent.txt", None, "does not exist"),
    ],
)
def test_a_file_that_holds_no_prompts_is_refused(tmp_path: Path, name: str, content: bytes | None, said: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(Mat2SeqError, match=said):
        read_prompts(tmp_path / name)


def test_the_fingerprint_of_weights_is_that_of_all_bits_and_of_nothing_else() -> None:
    torch.manual_seed(0)
    model: Any = LlamaForCausalLM(llama_config("tiny", num_hidden_layers=1)).bfloat16()
    threads = torch.get_num_threads()
    found = set()
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        found |= {weights_fingerprint(model.float()), weights_fingerprint(model.bfloat16())}
    torch.set_num_threads(threads)
    assert len(found) == 1
    weight = model.model.norm.weight.data
    weight[0] += 1
    once = weights_fingerprint(model)
    weight[:2] = weight[:2].flip(0)
    assert len({*found, once, weights_fingerprint(model)}) == 3
    assert weights_fingerprint(model, values=False) not in found


def test_prompts_from_standard_input_are_utf_8_whatever_the_system_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "sys.stdin", io.TextIOWrapper(io.BytesIO(b"\xef\xbb\xbfNaCl\r\nBaTiO\xe2\x82\x83\n"), "latin-1")
    )
    assert read_prompts("-") == [Asked("1", "NaCl"), Asked("2", "BaTiO₃")]
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\xfcber\n"), "latin-1"))
    with pytest.raises(Mat2SeqError, match="- is not a text file"):
        read_prompts("-")


def test_prompt_files_are_read_as_they_are_written(tmp_path: Path) -> None:
    (tmp_path / "P.CSV").write_text("id,formula\nx,NaCl\n")
    assert read_prompts(tmp_path / "P.CSV") == [Asked("x", {"formula": "NaCl"})]
    (tmp_path / "u.jsonl").write_text('{"id": "a\u2028b", "formula": "NaCl"}\r\n', encoding="utf-8")
    assert read_prompts(tmp_path / "u.jsonl") == [Asked("a\u2028b", {"formula": "NaCl"})]
    assert property_value("1_5") == "1_5"
    assert property_value("1: 2.5") == (1.0, 2.5)


def test_names_of_cifs_differ_in_more_than_capitals(tmp_path: Path) -> None:
    row = {"sample_index": 0, "cif": "data", "valid": True}
    pd.DataFrame([{**row, "prompt_id": name} for name in ("CO", "Co")]).to_parquet(tmp_path / "samples.parquet")
    assert write_cifs(tmp_path / "samples.parquet", tmp_path / "cifs") == 2
    assert len({path.name.lower() for path in (tmp_path / "cifs").iterdir()}) == 2


def test_loading_a_model_leaves_what_transformers_says_to_the_caller() -> None:
    logging: Any = transformers.logging
    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_info()
    logging.enable_progress_bar()
    load_pipeline()
    found = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(before[0])
    assert found == (logging.INFO, True)


def test_a_prompt_written_as_json_is_the_same_prompt() -> None:
    prompt = Prompt("NaCl", elements=("Na", "Cl"), properties={"band_gap": (1.0, 2.0)}, condition=True)
    assert Prompt(**json.loads(prompt_json(prompt))) == prompt
