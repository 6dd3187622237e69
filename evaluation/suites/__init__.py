"""Sets of items that stay the same, so that models can be compared: ours, and any the user brings."""

from evaluation.suites.catalogue import DEFAULT_SUITES, load_suite, suite_names
from evaluation.suites.reading import Suite, read_suite

__all__ = ["DEFAULT_SUITES", "Suite", "load_suite", "read_suite", "suite_names"]
