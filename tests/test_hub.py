"""Models are published to a Hub and loaded from it, with this package and without; the Hub is a local server."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from hub_server import hub

PUBLISH = """
import sys
import torch
from transformers import GenerationConfig, LlamaForCausalLM
from mat2seq_hf import CrystalGenerationPipeline, build_tokenizer, llama_config
torch.manual_seed(0)
shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
model = LlamaForCausalLM(llama_config("tiny", **shape, max_position_embeddings=128))
model.generation_config = GenerationConfig(do_sample=True, bos_token_id=1, eos_token_id=2, pad_token_id=0)
pipe = CrystalGenerationPipeline(model=model, tokenizer=build_tokenizer(), device="cpu")
pipe.push_to_hub("me/pushed")
pipe.save_pretrained(sys.argv[1], push_to_hub=True, repo_id="me/saved")
print(pipe("NaCl", n_atoms=4, seed=0)[0]["text"])
"""

WITH_PACKAGE = """
import sys
from transformers import pipeline
import mat2seq_hf
print(pipeline("crystal-generation", model=sys.argv[1], device="cpu")("NaCl", n_atoms=4, seed=0)[0]["text"])
"""

WITHOUT_PACKAGE = """
import sys
sys.modules["mat2seq_hf"] = None
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.dynamic_module_utils import get_class_from_dynamic_module
name = sys.argv[1]
assert type(AutoTokenizer.from_pretrained(name)).__name__ == "TokenizersBackend"  # encodes text, runs no code
Pipe = get_class_from_dynamic_module("pipeline.CrystalGenerationPipeline", name)
tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=True)
pipe = Pipe(model=AutoModelForCausalLM.from_pretrained(name), tokenizer=tokenizer, device="cpu")
print(pipe("NaCl", n_atoms=4, seed=0)[0]["text"])
"""


def run(code: str, argument: str, url: str, home: Path) -> str:
    settings = {"HF_ENDPOINT": url, "HF_HOME": str(home), "HF_TOKEN": "hf_dummy", "HF_HUB_DISABLE_XET": "1"}
    environment = {**os.environ, **settings, "HF_HUB_OFFLINE": "0", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, argument]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def test_a_published_pipeline_is_loaded_from_the_hub(tmp_path: Path) -> None:
    with hub() as url:
        drawn = run(PUBLISH, str(tmp_path / "model"), url, tmp_path / "publisher")
        for name in ("me/pushed", "me/saved"):
            assert run(WITH_PACKAGE, name, url, tmp_path / "with") == drawn
            assert run(WITHOUT_PACKAGE, name, url, tmp_path / "without") == drawn
