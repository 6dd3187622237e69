"""The command line that serves the same models with vLLM; vLLM itself is not run here."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from config import load_config
from errors import UsageError
from serving.vllm import API_KEY, become_vllm, served_versions, vllm_command, vllm_environment
from tests.serving.published import make_base, publish
from training.versions import VersionStore

ROOT = Path(__file__).parent.parent.parent


def test_the_base_and_every_version_are_named_under_the_same_limits(tmp_path: Path) -> None:
    config = load_config(
        tmp_path,
        ["serving.max_batch=7", "serving.max_prompt_tokens=100", "serving.max_output_tokens=28"],
    )
    adapters = {"current": Path("/box/v0002"), "v0002": Path("/box/v0002")}
    assert list(vllm_command(config, Path("/models/base"), adapters, 16)) == [
        *("vllm", "serve", "/models/base", "--served-model-name", "base"),
        *("--host", "127.0.0.1", "--port", "9000", "--max-num-seqs", "7", "--max-model-len", "128"),
        *("--enable-lora", "--max-lora-rank", "16"),
        *("--lora-modules", "current=/box/v0002", "v0002=/box/v0002"),
    ]


def test_a_base_without_versions_is_served_alone(tmp_path: Path) -> None:
    config = load_config(tmp_path, ["model.load_in_4bit=true", "model.precision=bfloat16"])
    command = list(vllm_command(config, Path("/models/base"), {}, 0))
    assert "--enable-lora" not in command
    assert command[-4:] == ["--dtype", "bfloat16", "--quantization", "bitsandbytes"]


def test_the_token_is_handed_on_where_nobody_sees_it() -> None:
    assert vllm_environment({"HOME": "/root"}, "secret")[API_KEY] == "secret"
    assert vllm_environment({"HOME": "/root"}, None) == {"HOME": "/root"}


@pytest.mark.config_key("serving.engine")
def test_without_vllm_it_is_said_what_to_do(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = make_base(tmp_path / "box", tiny_model, "serving.engine=vllm")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match=r"serving\.engine: transformers"):
        become_vllm(paths, load_config(paths.base), {})


def test_this_process_becomes_vllm(tmp_path: Path, tiny_model: Path) -> None:
    """A program of that name writes down what it was started with."""
    paths = make_base(tmp_path / "box", tiny_model, "serving.engine=vllm")
    version = publish(paths, tiny_model, 1)
    program = tmp_path / "vllm"
    program.write_text(f"#!{sys.executable}\nimport json, sys\nprint(json.dumps(sys.argv[1:]))\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    served = subprocess.run(
        [sys.executable, "-m", "cli", "serve", "--base", str(paths.base)],
        cwd=ROOT,
        env={**os.environ, "PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    arguments = json.loads(served.stdout)
    assert arguments[:2] == ["serve", str(tiny_model)]
    assert arguments[-3:] == ["--lora-modules", f"current={version.folder}", f"v0001={version.folder}"]


def test_only_versions_of_the_same_base_are_named(tmp_path: Path, tiny_model: Path) -> None:
    paths = make_base(tmp_path, tiny_model)
    version = publish(paths, tiny_model, 1)
    assert list(served_versions(VersionStore(paths).list(), version)) == ["current", "v0001"]
    assert served_versions([version], None) == {}
