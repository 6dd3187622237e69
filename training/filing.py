"""Where a file goes when its job has ended: done/, rejected/, skipped/ or failed/, its report beside it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import durable
from config import Paths, RunPaths
from training.jobs import Job


def file_away(paths: Paths, job: Job) -> Path:
    """Move the file of an ended job from processing/ to its last folder; safe to repeat at any point.

    Reports are written before the move, so that a file never lies there without its reason. Where the
    original was changed after it was claimed, a copy of what was trained is put there instead. Raises
    OSError while the inbox is not to be had.
    """
    run = paths.run(job.job_id)
    if not paths.inbox.is_dir():
        raise FileNotFoundError(f"{paths.inbox}: the folder is missing; make it again or mount it")
    _remove_unfinished(paths, job)
    folder = folder_for(paths, job)
    durable.make_folder(folder)
    place = folder / job.place
    durable.write_json(_beside(place, ".report.json"), {**_report(run), "job": _ending(job)})
    durable.write_bytes(_beside(place, ".report.txt"), _report_text(run, job).encode())
    if run.refused.is_file() and run.refused.stat().st_size:
        durable.copy_once(run.refused, _beside(place, ".refused.jsonl"))
    original = paths.processing / job.place
    if os.path.lexists(original):
        durable.move_file(original, place)
    else:
        durable.copy_once(run.input(job.suffix), place)
    return place


def folder_for(paths: Paths, job: Job) -> Path:
    """Return the folder in which the file of an ended job lies."""
    assert job.outcome is not None, "only an ended job is filed away"
    return {
        "completed": paths.done,
        "refused": paths.rejected,
        "skipped": paths.skipped,
        "failed": paths.failed,
    }[job.outcome]


def _remove_unfinished(paths: Paths, job: Job) -> None:
    """Remove what a killed worker left half done; no other worker comes to this run and finds it."""
    run = paths.run(job.job_id)
    torn = [folder for folder in run.folder.glob("checkpoint-*") if not (folder / durable.MANIFEST).is_file()]
    partial = f"*{durable.PARTIAL_SUFFIX}"
    for path in sorted([*torn, *run.folder.rglob(partial), *paths.held_out.glob(f".{job.job_id}{partial}")]):
        if path.is_dir() and not path.is_symlink():
            durable.remove_tree(path)
        else:
            path.unlink(missing_ok=True)  # it may have gone with its folder


def _ending(job: Job) -> dict[str, Any]:
    return {
        "job_id": job.job_id,
        "outcome": job.outcome,
        "kind": job.failure_kind,
        "message": job.message,
        "version": job.version,
        "attempts": job.attempts,
        "step": job.step,
    }


def _report(run: RunPaths) -> dict[str, Any]:
    document = durable.read_json(run.report) if run.report.is_file() else {}
    return document if isinstance(document, dict) else {}


def _report_text(run: RunPaths, job: Job) -> str:
    lines = [f"{job.name}: {job.outcome} (job {job.job_id})"]
    lines += [f"Version: {job.version}"] if job.version else []
    if job.message is not None:
        lines.append(f"{job.failure_kind or 'reason'}: {job.message}")
    card = run.report_text.read_text(encoding="utf-8") if run.report_text.is_file() else ""
    return "\n".join(lines) + "\n" + (f"\n{card}" if card else "")


def _beside(place: Path, companion: str) -> Path:
    return place.with_name(place.name + companion)
