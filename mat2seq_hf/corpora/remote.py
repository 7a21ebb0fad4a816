"""Crystals from servers: the Materials Project through mp-api, any OPTIMADE provider through the optimade client."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from ..errors import CrystalError, Mat2SeqError
from .rows import InputRow, cut, scalars

__all__ = ["load_rows", "materials_project_rows", "optimade_rows"]

_OPTIMADE_FIELDS = (
    "id",
    "lattice_vectors",
    "cartesian_site_positions",
    "species",
    "species_at_sites",
    "dimension_types",
)
_FIELDS = {"energy_above_hull": "e_above_hull"}  # names of prefix fields, where they are others


def materials_project_rows(
    api_key: str | None = None,
    *,
    properties: Sequence[str] = ("formation_energy_per_atom", "energy_above_hull", "band_gap"),
    endpoint: str | None = None,
    **criteria: Any,
) -> Iterator[InputRow]:
    """Crystals of the Materials Project (CC BY 4.0: cite it), one row each.

    Args:
        api_key: of your account; without it the environment variable ``MP_API_KEY``.
        properties: fields of the summary to carry along; ``energy_above_hull`` becomes ``e_above_hull``, the name of
            the prefix field.
        endpoint: another server.
        criteria: what ``MPRester.materials.summary.search`` takes, such as ``elements=["Li", "O"]`` or
            ``num_sites=(1, 20)``.

    Raises:
        Mat2SeqError: mp-api is not installed, or the server cannot be reached or refuses.

    Example:
        >>> rows = materials_project_rows(elements=["Li", "O"], num_sites=(1, 20))  # doctest: +SKIP
        >>> prepare_rows(rows, "prepared/oxides")  # doctest: +SKIP
    """
    try:
        from mp_api.client import MPRester
    except ImportError as error:
        raise Mat2SeqError("the Materials Project needs mp-api: pip install 'mat2seq-hf[materials-project]'") from error
    place: dict[str, Any] = {"endpoint": endpoint} if endpoint else {}
    try:
        with MPRester(api_key, mute_progress_bars=True, **place) as client:
            fields = ["material_id", "structure", *properties]
            documents = client.materials.summary.search(fields=fields, **criteria)
    except Exception as error:
        raise Mat2SeqError(
            f"the Materials Project does not answer ({type(error).__name__}: {error}); check the network, the key "
            "(MP_API_KEY) and the criteria"
        ) from error
    for document in documents:
        name = str(document.material_id)
        values = {_FIELDS.get(key, key): getattr(document, key, None) for key in properties}
        text = json.dumps(document.structure.as_dict())
        yield InputRow(name, text, f"materials project:{name}", scalars(values))


def _optimade_structure(attributes: dict[str, Any]) -> dict[str, Any]:
    """An OPTIMADE structure in the form of pymatgen's ``as_dict``; a vacancy becomes an occupancy below 1."""
    lattice = np.array(attributes["lattice_vectors"], dtype=np.float64)
    positions = np.array(attributes["cartesian_site_positions"], dtype=np.float64)
    species = {
        entry["name"]: [
            {"element": symbol, "occu": share}
            for symbol, share in zip(entry["chemical_symbols"], entry["concentration"], strict=True)
            if symbol != "vacancy"
        ]
        for entry in attributes["species"]
    }
    names = attributes["species_at_sites"]
    coords = (positions @ np.linalg.inv(lattice)).tolist()
    sites = [{"species": species[name], "abc": abc} for name, abc in zip(names, coords, strict=True)]
    periodic = [bool(flag) for flag in attributes.get("dimension_types") or (1, 1, 1)]
    return {"lattice": {"matrix": lattice.tolist(), "pbc": periodic}, "sites": sites}


def optimade_rows(
    url: str, filter_: str | None = None, *, properties: Sequence[str] = (), max_results: int | None = None
) -> Iterator[InputRow]:
    """Structures of an OPTIMADE provider, one row each; pages are followed, failed requests repeated by the client.

    Args:
        url: base URL of the provider, such as ``https://optimade.materialsproject.org``.
        filter_: in the OPTIMADE language, such as ``elements HAS ALL "Li","O" AND nsites<=20``.
        properties: further fields to carry along, such as ``_mp_stability``; only scalars are kept.
        max_results: stop after so many, at least 1.

    Raises:
        Mat2SeqError: ``max_results`` is below 1, optimade is not installed, the filter is wrong, or the server cannot
            be reached or refuses.

    Example:
        >>> rows = optimade_rows("https://optimade.materialsproject.org", "nsites<=20")  # doctest: +SKIP
    """
    if max_results is not None and max_results < 1:
        raise Mat2SeqError(f"max_results is at least 1, or None for all, not {max_results}")
    try:
        from optimade.client import OptimadeClient
    except ImportError as error:
        raise Mat2SeqError("OPTIMADE needs its client: pip install 'mat2seq-hf[optimade]'") from error
    try:
        client = OptimadeClient(
            base_urls=[url], max_results_per_provider=max_results or -1, use_async=False, silent=True
        )
        found = client.get(filter_, endpoint="structures", response_fields=[*_OPTIMADE_FIELDS, *properties])
    except Exception as error:
        raise Mat2SeqError(f"{url}: the query fails ({type(error).__name__}: {error})") from error
    for answers in found["structures"].values():
        for place, answer in answers.items():
            if answer["errors"]:
                raise Mat2SeqError(f"{place}: {'; '.join(map(str, answer['errors']))}")
            yield from _entries(answer["data"][:max_results], place, properties)


def _entries(entries: Iterable[dict[str, Any]], place: str, properties: Sequence[str]) -> Iterator[InputRow]:
    for entry in entries:
        attributes, name = entry.get("attributes") or {}, str(entry.get("id"))
        values = {key: attributes.get(key) for key in properties}
        kept = scalars(values)
        source = f"{place}:{name}"
        try:
            text = json.dumps(_optimade_structure(attributes))
        except (KeyError, TypeError, ValueError, np.linalg.LinAlgError) as error:
            yield InputRow(name, "", source, kept, f"no complete structure ({type(error).__name__}: {error})")
        else:
            yield InputRow(name, text, source, kept)


def load_rows(rows: Iterable[InputRow]) -> Any:
    """A ``Dataset`` in memory of rows: ``id``, ``structure``, ``source``, the properties, and ``error`` or None.

    Example:
        >>> dataset = load_rows(optimade_rows(url, "nelements=2", max_results=1000))  # doctest: +SKIP
    """
    from datasets import Dataset, Features, Value

    from .columns import column_of
    from .feature import Crystal

    feature = Crystal()
    entries = []
    for row in rows:
        entry: dict[str, Any] = {"id": row.id, "structure": None, "source": row.source, "error": row.problem or None}
        try:
            entry |= {"structure": None if row.problem else feature.encode_text(row.text)}
        except CrystalError as error:
            entry["error"] = cut(str(error))
        entries.append(entry | {column_of(name): value for name, value in json.loads(row.properties).items()})
    names = sorted({name for entry in entries for name in entry} - {"id", "structure", "source", "error"})
    kinds = {
        name: "string" if any(isinstance(entry.get(name), str) for entry in entries) else "float64" for name in names
    }
    columns = {"id": Value("string"), "structure": feature, "source": Value("string"), "error": Value("string")}
    features = Features(columns | {name: Value(kind) for name, kind in kinds.items()})
    complete = [{name: entry.get(name) for name in features} for entry in entries]
    return Dataset.from_list(complete, features=features)
