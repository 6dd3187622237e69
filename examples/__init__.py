"""Small things to try trainbox with: a task a small model can learn in two minutes, and a guided run."""
