"""Laws of the servers: what a provider holds arrives crystal by crystal, through the real clients and protocols."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from pymatgen.core import Structure

from mat2seq_hf.canonical import canonicalize
from mat2seq_hf.corpora.prepare import prepare_rows
from mat2seq_hf.corpora.remote import load_rows, materials_project_rows, optimade_rows
from mat2seq_hf.errors import Mat2SeqError


@pytest.fixture(scope="module")
def optimade_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The reference server of optimade with its own test structures, in pages of five."""
    pytest.importorskip("optimade.server", reason="the extra `optimade` is not installed with its server")
    pytest.importorskip("uvicorn")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {
        "aliases": {"structures": {"id": "task_id"}},  # as in the server's own configuration for its test structures
        "provider_fields": {"structures": ["chemsys"]},
        "insert_test_data": True,
        "database_backend": "mongomock",
        "page_limit": 5,
        "page_limit_max": 50,
    }
    config = tmp_path_factory.mktemp("optimade") / "config.json"
    config.write_text(json.dumps(settings))
    command = [sys.executable, "-m", "uvicorn", "optimade.server.main:app", "--port", str(port)]
    environment = {**os.environ, "OPTIMADE_CONFIG_FILE": str(config)}
    server = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    for _ in range(600):
        try:
            urllib.request.urlopen(f"{url}/v1/info", timeout=5).close()
            break
        except OSError:
            assert server.poll() is None, "the reference server does not start"
            time.sleep(0.1)
    yield url
    server.terminate()
    server.wait()


@pytest.mark.slow
def test_all_pages_of_an_optimade_provider_arrive(optimade_url: str, tmp_path: Path) -> None:
    rows = list(optimade_rows(optimade_url, properties=["_exmpl_chemsys", "nsites"]))
    with urllib.request.urlopen(f"{optimade_url}/v1/structures", timeout=30) as answer:
        assert len(rows) == json.load(answer)["meta"]["data_available"] > 10
    assert len({row.id for row in rows}) == len(rows)
    report = prepare_rows(iter(rows), tmp_path, num_proc=1, progress=False)
    assert report.read == len(rows) == report.encoded + report.rejected
    assert report.encoded > 0
    dataset = load_rows(rows)
    assert len(dataset) == len(rows)
    assert all((row["structure"] is None) == (row["error"] is not None) for row in dataset)
    good = next(row for row in dataset if row["structure"] is not None)
    assert good["nsites"] == len(good["structure"])
    assert good["_exmpl_chemsys"].split("-") == sorted(good["structure"].symbol_set)


@pytest.mark.slow
def test_optimade_filters_and_limits_hold_and_errors_are_named(optimade_url: str) -> None:
    rows = list(optimade_rows(optimade_url, "nsites<=20"))
    assert 0 < len(rows) < len(list(optimade_rows(optimade_url)))
    assert len(list(optimade_rows(optimade_url, max_results=3))) == 3
    with pytest.raises(Mat2SeqError):
        list(optimade_rows(optimade_url, "this is no filter"))
    with pytest.raises(Mat2SeqError, match="127"):
        list(optimade_rows("http://127.0.0.1:9"))


def test_a_limit_that_asks_for_nothing_is_refused() -> None:
    for limit in (0, -1):
        with pytest.raises(Mat2SeqError, match="max_results is at least 1"):
            next(optimade_rows("http://127.0.0.1:9", max_results=limit))


@pytest.fixture
def materials_project(crystals: dict[str, Structure]) -> Iterator[tuple[str, list[dict[str, list[str]]]]]:
    """A server that answers what mp-api asks: the heartbeat, and pages of the summary, to whoever has the key."""
    pytest.importorskip("mp_api", reason="the extra `materials-project` is not installed")
    documents = [
        {
            "material_id": f"mp-{number}",
            "structure": crystal.as_dict(),
            "band_gap": 0.5 * number,
            "energy_above_hull": 0.25 * number,
        }
        for number, crystal in enumerate(crystals.values(), start=1)
    ]
    queries: list[dict[str, list[str]]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            url = urlsplit(self.path)
            query = parse_qs(url.query)
            if url.path == "/heartbeat":
                answer: dict[str, Any] = {"status": "OK", "version": "0.90.0", "db_version": "2026.11.1"}
                answer["access_controlled_batch_ids"] = []
            elif self.headers.get("X-API-KEY") != "k" * 32:
                self.send_error(401)
                return
            elif url.path != "/materials/summary/":
                self.send_error(404)
                return
            else:
                queries.append(query)
                chosen = documents
                if "elements" in query:
                    wanted = set(query["elements"][0].split(","))
                    chosen = [d for d in documents if wanted <= {e.symbol for e in _elements(d)}]
                skip, limit = int(query.get("_skip", ["0"])[0]), int(query.get("_limit", ["100"])[0])
                answer = {"data": chosen[skip : skip + limit], "meta": {"total_doc": len(chosen)}}
            body = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{http.server_address[1]}/", queries
    http.shutdown()
    http.server_close()
    thread.join()


def _elements(document: dict[str, Any]) -> Any:
    return Structure.from_dict(document["structure"]).composition.elements


@pytest.mark.slow
def test_the_materials_project_is_read_through_its_client(
    materials_project: tuple[str, list[dict[str, list[str]]]], crystals: dict[str, Structure], tmp_path: Path
) -> None:
    url, queries = materials_project
    rows = list(
        materials_project_rows("k" * 32, endpoint=url, elements=["O"], properties=["band_gap", "energy_above_hull"])
    )
    expected = {canonicalize(crystal).text for crystal in crystals.values() if "O" in crystal.symbol_set}
    dataset = load_rows(rows)
    assert {canonicalize(structure).text for structure in dataset["structure"]} == expected
    assert all(row["band_gap"] == 0.5 * int(row["id"].removeprefix("mp-")) for row in dataset)
    assert all(row["e_above_hull"] == 0.5 * row["band_gap"] for row in dataset)
    assert queries[0]["elements"] == ["O"]
    report = prepare_rows(iter(rows), tmp_path, num_proc=1, progress=False)
    assert report.encoded == len(expected)
    with pytest.raises(Mat2SeqError, match="MP_API_KEY"):
        list(materials_project_rows("x" * 32, endpoint=url, elements=["O"]))
