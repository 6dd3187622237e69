"""Lets the command be run as `python -m cli`."""

from cli import main

main()
