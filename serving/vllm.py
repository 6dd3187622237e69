"""vLLM instead of this process, for those who outgrow it: the command that serves the same models."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import durable
from config import Config, Paths
from errors import UsageError
from serving.access import access_rules, is_loopback
from serving.catalogue import BASE, CURRENT, BaseModel, Catalogue
from serving.client import write_address
from training.versions import Version, VersionStore

PROGRAM = "vllm"
API_KEY = "VLLM_API_KEY"
RANKS = (8, 16, 32, 64, 128, 256, 512)
"""What all versions of vLLM accept as the largest rank."""
RUNTIME_UPDATES = "VLLM_ALLOW_RUNTIME_LORA_UPDATING"


def vllm_command(
    config: Config, base: BaseModel, adapters: Mapping[str, Path], largest_rank: int
) -> Sequence[str]:
    """Return the command that serves `base` with `adapters` by name, under the same limits.

    Raises UsageError for a rank that vLLM cannot hold.
    """
    serving = config.serving
    longest = serving.max_prompt_tokens + serving.max_output_tokens
    if base.window_tokens is not None:  # vLLM does not start with more
        longest = min(longest, base.window_tokens)
    names = [BASE] if CURRENT in adapters else [BASE, CURRENT]
    command = [PROGRAM, "serve", str(base.folder), "--served-model-name", *names]
    command += ["--host", serving.host, "--port", str(serving.inference_port)]
    command += ["--max-num-seqs", str(serving.max_batch)]
    command += ["--max-model-len", str(longest), "--allowed-origins", "[]"]
    if config.model.precision != "auto":
        command += ["--dtype", config.model.precision]
    if config.model.load_in_4bit:
        command += ["--quantization", "bitsandbytes"]
    if adapters:
        # As `name=path`, a path could not hold "=" or ",".
        modules = [json.dumps({"name": name, "path": str(folder)}) for name, folder in adapters.items()]
        command += [
            "--enable-lora",
            "--max-lora-rank",
            str(_room_for(largest_rank)),
            "--lora-modules",
            *modules,
        ]
    return command


def _room_for(rank: int) -> int:
    """Return the smallest `--max-lora-rank` that holds a rank."""
    for room in RANKS:
        if rank <= room:
            return room
    raise UsageError(
        f"serving.engine: found an adapter of rank {rank}, and vLLM holds ranks up to {RANKS[-1]}; set "
        "serving.engine: transformers, or merge it with: trainbox versions consolidate"
    )


def vllm_environment(environment: Mapping[str, str], token: str | None) -> dict[str, str]:
    """Return vLLM's environment: the token, which a command line would show to everybody.

    What a unit says about where our modules lie is left out: vLLM's are others.
    """
    changed = {name: value for name, value in environment.items() if name != "PYTHONPATH"}
    if token is not None:
        changed[API_KEY] = token
        # Whoever knows the token may load a later version without a restart.
        changed[RUNTIME_UPDATES] = "True"
    return changed


def become_vllm(paths: Paths, config: Config, environment: Mapping[str, str]) -> None:
    """Replace this process by vLLM; UsageError when it is not installed, or others could reach it.

    `current` stays what it is now until vLLM is started again or told otherwise. Our clients find it by the
    address that is written here: a process keeps its number when it becomes another program.
    """
    rules = access_rules(config.serving, paths.base, environment)
    if not is_loopback(config.serving.host):
        raise UsageError(
            f"serving.host: found {config.serving.host!r} with serving.engine: vllm, which asks for the "
            "token under /v1 only; set it to 127.0.0.1 and put a proxy in front, or set serving.engine: "
            "transformers"
        )
    program = shutil.which(PROGRAM)
    if program is None:
        raise UsageError(
            "serving.engine: found 'vllm' and no program of that name, expected it on the PATH; install "
            "vLLM into an environment of its own, or set serving.engine: transformers"
        )
    store = VersionStore(paths)
    current = store.current()
    base = Catalogue(paths, config.model).find(CURRENT).base
    versions = served_versions(store.list(), current)
    ranks = [_rank(folder) for folder in versions.values()]
    command = vllm_command(config, base, versions, max(ranks, default=0))
    _tell_address(paths, config)
    os.execve(program, list(command), vllm_environment(environment, rules.token))


def served_versions(versions: Sequence[Version], current: Version | None) -> dict[str, Path]:
    """Return by name the folders of `current` and of all versions on the same base."""
    if current is None:
        return {}
    alike = {
        each.name: each.folder for each in versions if each.facts.base_sha256 == current.facts.base_sha256
    }
    return {CURRENT: current.folder, **alike}


def _tell_address(paths: Paths, config: Config) -> None:
    """Tell where vLLM will listen; a port that it chooses itself is not known."""
    serving = config.serving
    if serving.inference_port:
        host = f"[{serving.host}]" if ":" in serving.host else serving.host
        write_address(paths, f"http://{host}:{serving.inference_port}")


def _rank(folder: Path) -> int:
    return int(durable.read_json(folder / "adapter_config.json")["r"])
