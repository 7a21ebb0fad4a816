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
import torch
from transformers import GPT2LMHeadModel

from mat2seq_hf.presets import gpt2_config
from mat2seq_hf.publishing import save_model_folder
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
    torch.manual_seed(0)
    model = GPT2LMHeadModel(gpt2_config("tiny", n_embd=16, n_layer=1, n_head=2, n_positions=64))
    folder = save_model_folder(model, build_tokenizer(), tmp_path / "model")
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
        question = {"model": str(folder), "prompt": "Ba1 Ti1 O3", "max_tokens": 20, "temperature": 1.0}
        answer = ask(f"http://127.0.0.1:{port}/v1/completions", question)
    finally:
        server.terminate()
        server.wait(timeout=30)
        log.close()
    assert answer["usage"]["prompt_tokens"] == 7
    assert answer["usage"]["completion_tokens"] > 0
    words = answer["choices"][0]["text"]
    assert "<unk>" not in build_tokenizer().tokenize(words)
