"""Servers can load a saved model folder as it is: stock classes, a tokenizer and a generation config."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from mat2seq_hf import CanonicalCrystal
from mat2seq_hf.publishing import save_model_folder
from mat2seq_hf.registration import DEFAULT_MODEL
from mat2seq_hf.tokenizer import build_tokenizer

for needed in ("openai", "fastapi", "uvicorn"):  # pip install "transformers[serving]"
    pytest.importorskip(needed)


def ask(url: str, question: dict[str, Any] | None = None) -> Any:
    data = None if question is None else json.dumps(question).encode()
    request = urllib.request.Request(url, data=data, headers={"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


@pytest.mark.slow
def test_transformers_serve_completes_a_formula(tmp_path: Path) -> None:
    folder = save_model_folder(
        AutoModelForCausalLM.from_pretrained(DEFAULT_MODEL), build_tokenizer(), tmp_path / "model"
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(folder), "--port", str(port)]
    environment = dict(os.environ) | {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    log = (tmp_path / "log").open("w")
    server = subprocess.Popen([*command, "--device", "cpu"], env=environment, stdout=log, stderr=log)
    try:
        for _ in range(240):
            try:
                ask(f"http://127.0.0.1:{port}/health")
                break
            except urllib.error.URLError:
                assert server.poll() is None, (tmp_path / "log").read_text()
                time.sleep(0.5)
        question = {"model": str(folder), "prompt": "Ba1 Ti1 O3", "max_tokens": 80, "temperature": 0.01}
        answer = ask(f"http://127.0.0.1:{port}/v1/completions", question)
    finally:
        server.terminate()
        server.wait(timeout=30)
        log.close()
    assert answer["usage"]["prompt_tokens"] == 7
    assert answer["usage"]["completion_tokens"] > 0
    crystal = CanonicalCrystal.from_text(f"Ba1 Ti1 O3 {answer['choices'][0]['text']}")
    assert crystal.formula == "Ba1 Ti1 O3"
