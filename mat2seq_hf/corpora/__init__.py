"""Corpora of crystals: from files to token sequences."""
