"""Sets of items that stay the same, so that models can be compared: ours, and any the user brings."""

from evaluation.suites.catalogue import load_suite, suite_names
from evaluation.suites.reading import Suite, read_suite

__all__ = ["Suite", "load_suite", "read_suite", "suite_names"]
