"""Benchmark suites: questions with known answers, the same in every release."""
