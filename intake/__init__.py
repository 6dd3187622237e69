"""Intake: a dropped file becomes a job, and its bytes become checked records."""
