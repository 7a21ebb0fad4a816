"""Publishing models: folders that work on any machine, with or without this package."""

from __future__ import annotations

from .folder import save_model_folder

__all__ = ["save_model_folder"]
