"""A saved folder works on a machine without this package, and importing the package costs little."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import textwrap
from importlib.metadata import requires
from pathlib import Path
from typing import Any

import pytest
import torch
from pymatgen.core import Structure
from transformers import AutoModelForCausalLM, PretrainedConfig
from transformers import pipeline as make_pipeline
from transformers.dynamic_module_utils import get_imports

from mat2seq_hf import build_tokenizer, canonicalize, gpt2_config, llama_config
from mat2seq_hf.errors import PromptError
from mat2seq_hf.publishing import save_model_folder

# Stands for a virtual environment that has the dependencies of the package and not the package.
WITHOUT_PACKAGE = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "mat2seq_hf":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
"""


def run(code: str, *arguments: str, home: Path, without_package: bool = False) -> dict[str, object]:
    """Run a program in a Python of its own; it prints a JSON object in its last line."""
    environment = dict(os.environ) | {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    program = (WITHOUT_PACKAGE if without_package else "") + textwrap.dedent(code)
    result = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False, env=environment
    )
    assert result.returncode == 0, result.stderr
    answer = json.loads(result.stdout.splitlines()[-1])
    assert isinstance(answer, dict)
    return answer


SMALL_MODELS: dict[str, PretrainedConfig] = {  # transformers has a tokenizer for the first and none for the second
    "gpt2": gpt2_config("tiny", n_embd=16, n_layer=1, n_head=2, n_positions=128),
    "llama": llama_config("tiny", hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2),
}


@pytest.fixture(scope="module", params=SMALL_MODELS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(SMALL_MODELS[request.param])
    return save_model_folder(model, build_tokenizer(), tmp_path_factory.mktemp(request.param))


def test_a_saved_folder_gives_tokenizer_and_pipeline_without_the_package(
    folder: Path, tmp_path: Path, crystals: dict[str, Structure]
) -> None:
    crystals["quartz"].to(str(tmp_path / "quartz.cif"))
    code = """
        import json, sys
        from pymatgen.core import Structure
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from transformers.dynamic_module_utils import get_class_from_dynamic_module

        folder, cif = sys.argv[1:]
        structure = Structure.from_file(cif)
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
        model = AutoModelForCausalLM.from_pretrained(folder)
        Pipeline = get_class_from_dynamic_module("pipeline.CrystalGenerationPipeline", folder)
        pipe = Pipeline(model=model, tokenizer=tokenizer, device="cpu")
        ids = tokenizer(structure)["input_ids"]
        answer = pipe("NaCl", formula_units=1, num_return_sequences=2, seed=0)
        drawn = model.generate(
            custom_generate=folder, trust_remote_code=True, formula=["NaCl", "Li2O"], num_beams=2, do_sample=False,
            formula_units=1,
        )
        plain, refused = (AutoTokenizer.from_pretrained(folder, trust_remote_code=trust) for trust in (None, False))
        text = tokenizer.decode(ids, skip_special_tokens=True)
        print(json.dumps({
            "class": type(tokenizer).__name__,
            "model": type(model).__module__,
            "ids": ids,
            "batch": tokenizer([structure, text], padding=True)["input_ids"],
            "formula": tokenizer.decode_structure(ids).composition.formula,
            "generated": [sample["formula"] for sample in answer],
            "drawn": [tokenizer.decode_structure(row).composition.formula for row in drawn],
            "plain": [type(plain).__name__, type(refused).__name__],
            "plain_ids": plain.encode(text),
            "package": "mat2seq_hf" in sys.modules,
        }))
    """
    answer = run(code, str(folder), str(tmp_path / "quartz.cif"), home=tmp_path, without_package=True)
    tokenizer = build_tokenizer()
    expected = tokenizer.encode(canonicalize(crystals["quartz"]).text)
    architecture = json.loads((folder / "config.json").read_text())["model_type"]
    assert answer == {
        "class": "Mat2SeqTokenizer",
        "model": f"transformers.models.{architecture}.modeling_{architecture}",
        "ids": expected,
        "batch": [expected, expected],
        "formula": "Si3 O6",
        "generated": ["Na1 Cl1", "Na1 Cl1"],
        "drawn": ["Na1 Cl1", "Li2 O1"],
        "plain": ["TokenizersBackend", "TokenizersBackend"],
        "plain_ids": expected,
        "package": False,
    }


def test_a_folder_demands_nothing_but_dependencies_of_the_package(folder: Path) -> None:
    # transformers refuses to load code whose imports, those inside functions too, are not all installed
    demanded = {name for path in folder.glob("*.py") for name in get_imports(path)} - sys.stdlib_module_names
    required = {re.split(r"[^\w-]", line)[0] for line in requires("mat2seq-hf") or [] if "extra ==" not in line}
    assert {"torch", "pymatgen"} <= demanded <= required


def test_a_model_that_is_loaded_with_trust_generates_by_formula_and_by_tokens(folder: Path) -> None:
    stock: Any = AutoModelForCausalLM.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    tokenizer = build_tokenizer()
    ids = tokenizer("Na1 Cl1", return_tensors="pt")["input_ids"]
    greedy: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False}
    expected = stock.generate(ids, **greedy).tolist()
    assert model.generate(ids, **greedy).tolist() == expected
    assert model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **greedy).tolist() == expected
    (drawn,) = model.generate(formula="NaCl", formula_units=1, do_sample=False)
    assert tokenizer.decode_structure(drawn).composition.formula == "Na1 Cl1"
    again = {"custom_generate": str(folder), "trust_remote_code": True, "formula": "NaCl", "formula_units": 1}
    assert torch.equal(model.generate(**again, do_sample=False)[0], drawn)
    with pytest.raises(PromptError, match="inputs would be overlooked beside a formula"):
        model.generate(ids, formula="NaCl")


def test_pipelines_that_trust_a_folder_generate(folder: Path) -> None:
    made: Any = make_pipeline
    trusted = {"model": str(folder), "trust_remote_code": True, "device": "cpu"}
    (sample,) = made("crystal-generation", **trusted)("NaCl", do_sample=False, formula_units=1)
    assert sample["formula"] == "Na1 Cl1"
    (answer,) = made("text-generation", **trusted)("Na1 Cl1", do_sample=False, max_new_tokens=3)
    assert len(answer["generated_text"]) > len("Na1 Cl1")


def test_the_folder_names_no_pipeline_that_would_shadow_the_package(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    assert "custom_pipelines" not in config
    assert "auto_map" not in config
    assert config["architectures"] == [{"gpt2": "GPT2LMHeadModel", "llama": "LlamaForCausalLM"}[config["model_type"]]]
    assert {"tokenizer.py", "pipeline.py", "canonical.py", "grammar.py"} <= {path.name for path in folder.glob("*.py")}


@pytest.mark.parametrize(
    "first",
    [
        "import mat2seq_hf; from transformers import AutoTokenizer, pipeline",
        "from transformers import AutoTokenizer, pipeline; import mat2seq_hf",
        "import mat2seq_hf.pipeline; from transformers import AutoTokenizer, pipeline",
    ],
)
def test_transformers_knows_the_classes_in_whatever_order_it_is_imported(
    folder: Path, tmp_path: Path, first: str
) -> None:
    code = f"""
        import json, sys
        {first}
        folder = sys.argv[1]
        tokenizer = AutoTokenizer.from_pretrained(folder)
        trusted = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
        pipe = pipeline("crystal-generation", model=folder, device="cpu")
        print(json.dumps({{
            "classes": [type(tokenizer).__module__, type(pipe).__module__], "trusted": type(trusted).__name__
        }}))
    """
    expected = {"classes": ["mat2seq_hf.tokenizer", "mat2seq_hf.pipeline"], "trusted": "Mat2SeqTokenizer"}
    assert run(code, str(folder), home=tmp_path) == expected


def test_importing_the_package_and_asking_for_help_load_nothing_heavy(tmp_path: Path) -> None:
    code = """
        import json, sys
        import mat2seq_hf
        from mat2seq_hf import cli
        try:
            cli.main(["--help"])
        except SystemExit:
            pass
        heavy = {"torch", "transformers", "numpy", "pymatgen", "spglib", "datasets", "rich"}
        print(json.dumps({"loaded": sorted(heavy & set(sys.modules))}))
    """
    assert run(code, home=tmp_path) == {"loaded": []}
