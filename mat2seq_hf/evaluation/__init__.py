"""Measuring: uniqueness of descriptions, completeness, generation."""
