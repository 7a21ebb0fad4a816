"""Sampling at scale: many prompts, several processes, resumable."""

from .bulk import Job, merge, run_job
from .loading import load_pipeline
from .prompt_files import Asked, prompt_json, property_value, read_prompts
from .results import summary, write_cifs
from .schema import REJECTED_PROMPTS, SAMPLES

__all__ = [
    "REJECTED_PROMPTS",
    "SAMPLES",
    "Asked",
    "Job",
    "load_pipeline",
    "merge",
    "prompt_json",
    "property_value",
    "read_prompts",
    "run_job",
    "summary",
    "write_cifs",
]
