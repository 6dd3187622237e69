"""A job becomes a version."""
