"""``mat2seq doctor``: check the installation."""

from __future__ import annotations

import argparse

__all__ = ["EXAMPLES", "SUMMARY", "add_arguments", "run"]

SUMMARY = "check the installation"
EXAMPLES = """example:
  mat2seq doctor
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command: there are none."""


def run(args: argparse.Namespace) -> int:  # noqa: ARG001 - every command takes the parsed arguments
    """Run the command."""
    from ..doctor import examine

    healthy = True
    for finding in examine():
        print(f"{'ok ' if finding.passed else 'BAD'} {finding.name}: {finding.detail}")
        healthy = healthy and finding.passed
    return 0 if healthy else 1
