"""Results that are kept from run to run, in a file of JSON lines."""

from __future__ import annotations

import hashlib
import json
from importlib import metadata
from pathlib import Path
from typing import Any

__all__ = ["Store", "packages_fingerprint"]


class Store:
    """Results by key, one JSON line each, appended as they come: a killed run loses at most the line it was writing.

    Only results are kept: what failed, ran out of time or crashed is tried again by the next run.

    Args:
        path: file, made if it is not there; None keeps results for this run alone.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._values: dict[str, Any] = {}
        if path is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            content = path.read_text(encoding="utf-8")
            for line in content.splitlines():
                try:
                    entry = json.loads(line)
                    if entry["value"] is not None:
                        self._values[entry["key"]] = entry["value"]
                except (ValueError, KeyError, TypeError):
                    continue  # cut off when a run was killed
            if content and not content.endswith("\n"):
                with path.open("a", encoding="utf-8") as handle:
                    handle.write("\n")

    @staticmethod
    def key(*parts: str) -> str:
        """Key of whatever determines a result."""
        return hashlib.sha256("\0".join(parts).encode("utf-8", "replace")).hexdigest()[:32]

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def get(self, key: str) -> Any:
        """The result, None if there is none."""
        return self._values.get(key)

    def keep(self, key: str, value: Any) -> None:
        """Add a result; None is none."""
        if value is None:
            return
        self._values[key] = value
        if self._path is None:
            return
        with self._path.open("a", encoding="utf-8") as handle:
            handle.write(json.dumps({"key": key, "value": value}) + "\n")


def packages_fingerprint(own: str) -> str:
    """What numbers computed with pymatgen depend on: ``own``, the version of the code, and those of the packages."""
    packages = []
    for name in ("pymatgen", "pymatgen-core", "numpy"):
        try:
            packages.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:  # pymatgen-core is one of its own only in late versions
            continue
    return ", ".join([own, *packages])
