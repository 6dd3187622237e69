"""Answers become judgements; knows nothing of training."""
