"""vLLM instead of this process, for those who outgrow it: the command that serves the same models."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import durable
from config import Config, Paths
from errors import UsageError
from serving.access import access_rules
from serving.catalogue import BASE, CURRENT
from training.full_models import base_under
from training.versions import Version, VersionStore

PROGRAM = "vllm"
API_KEY = "VLLM_API_KEY"
RUNTIME_UPDATES = "VLLM_ALLOW_RUNTIME_LORA_UPDATING"


def vllm_command(
    config: Config, base: Path, adapters: Mapping[str, Path], longest_rank: int
) -> Sequence[str]:
    """Return the command that serves `base` with `adapters` by name, under the same limits."""
    serving = config.serving
    command = [PROGRAM, "serve", str(base), "--served-model-name", BASE]
    command += ["--host", serving.host, "--port", str(serving.inference_port)]
    command += ["--max-num-seqs", str(serving.max_batch)]
    command += ["--max-model-len", str(serving.max_prompt_tokens + serving.max_output_tokens)]
    if config.model.precision != "auto":
        command += ["--dtype", config.model.precision]
    if config.model.load_in_4bit:
        command += ["--quantization", "bitsandbytes"]
    if adapters:
        modules = [f"{name}={folder}" for name, folder in adapters.items()]
        command += ["--enable-lora", "--max-lora-rank", str(longest_rank), "--lora-modules", *modules]
    return command


def vllm_environment(environment: Mapping[str, str], token: str | None) -> dict[str, str]:
    """Return vLLM's environment: the token, which a command line would show to everybody."""
    changed = {**environment, **({} if token is None else {API_KEY: token})}
    if token is not None:
        # Whoever knows the token may load a later version without a restart.
        changed[RUNTIME_UPDATES] = "True"
    return changed


def become_vllm(paths: Paths, config: Config, environment: Mapping[str, str]) -> None:
    """Replace this process by vLLM; UsageError when it is not installed.

    `current` stays what it is now until vLLM is started again or told otherwise.
    """
    rules = access_rules(config.serving, paths.base, environment)
    program = shutil.which(PROGRAM)
    if program is None:
        raise UsageError(
            "serving.engine: found 'vllm' and no program of that name, expected it on the PATH; install "
            "vLLM into an environment of its own, or set serving.engine: transformers"
        )
    store = VersionStore(paths)
    current = store.current()
    if current is not None:
        store.verify(current)
    base = base_under(paths, config.model, None if current is None else current.facts)
    versions = served_versions(store.list(), current)
    ranks = [_rank(folder) for folder in versions.values()]
    command = vllm_command(config, base, versions, max(ranks, default=0))
    os.execve(program, list(command), vllm_environment(environment, rules.token))


def served_versions(versions: Sequence[Version], current: Version | None) -> dict[str, Path]:
    """Return by name the folders of `current` and of all versions on the same base."""
    if current is None:
        return {}
    alike = {
        each.name: each.folder for each in versions if each.facts.base_sha256 == current.facts.base_sha256
    }
    return {CURRENT: current.folder, **alike}


def _rank(folder: Path) -> int:
    return int(durable.read_json(folder / "adapter_config.json")["r"])
