"""The command line that serves the same models with vLLM; vLLM itself is not run here."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import durable
from config import load_config
from errors import UsageError
from serving.catalogue import BaseModel
from serving.vllm import API_KEY, become_vllm, served_versions, vllm_command, vllm_environment
from tests.serving.published import make_base, publish
from training.versions import VersionStore

ROOT = Path(__file__).parent.parent.parent


def test_the_base_and_every_version_are_named_under_the_same_limits(tmp_path: Path) -> None:
    config = load_config(
        tmp_path,
        ["serving.max_batch=7", "serving.max_prompt_tokens=100", "serving.max_output_tokens=28"],
    )
    adapters = {"current": Path("/box, r=16/v0002"), "v0002": Path("/box, r=16/v0002")}
    assert list(vllm_command(config, base_of(1000), adapters, 12)) == [
        *("vllm", "serve", "/models/base", "--served-model-name", "base"),
        *("--host", "127.0.0.1", "--port", "9000", "--max-num-seqs", "7", "--max-model-len", "128"),
        *("--allowed-origins", "[]"),
        *("--enable-lora", "--max-lora-rank", "16"),
        *("--lora-modules", '{"name": "current", "path": "/box, r=16/v0002"}'),
        '{"name": "v0002", "path": "/box, r=16/v0002"}',
    ]


def base_of(window_tokens: int | None) -> BaseModel:
    """Describe a base that nothing is loaded from."""
    template: Any = None
    return BaseModel(Path("/models/base"), "0" * 64, template, window_tokens)


@pytest.mark.parametrize(("window", "length"), [(100, "100"), (None, "128")])
def test_no_more_is_asked_for_than_the_window_of_the_model(
    tmp_path: Path, window: int | None, length: str
) -> None:
    config = load_config(tmp_path, ["serving.max_prompt_tokens=100", "serving.max_output_tokens=28"])
    command = list(vllm_command(config, base_of(window), {}, 0))
    assert command[command.index("--max-model-len") + 1] == length


@pytest.mark.parametrize(("rank", "room"), [(1, "8"), (8, "8"), (24, "32"), (320, "512")])
def test_the_room_for_a_rank_is_one_that_vllm_has(tmp_path: Path, rank: int, room: str) -> None:
    command = list(vllm_command(load_config(tmp_path), base_of(None), {"v0001": tmp_path}, rank))
    assert command[command.index("--max-lora-rank") + 1] == room


def test_a_rank_that_vllm_cannot_hold_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"rank 513.*consolidate"):
        vllm_command(load_config(tmp_path), base_of(None), {"v0001": tmp_path}, 513)


def test_a_base_without_versions_is_served_alone(tmp_path: Path) -> None:
    config = load_config(tmp_path, ["model.load_in_4bit=true", "model.precision=bfloat16"])
    command = list(vllm_command(config, base_of(None), {}, 0))
    assert "--enable-lora" not in command
    assert command[3:6] == ["--served-model-name", "base", "current"]
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


def test_vllm_is_kept_from_others_since_its_token_guards_but_a_part(tmp_path: Path, tiny_model: Path) -> None:
    paths = make_base(tmp_path / "box", tiny_model, "serving.engine=vllm")
    token = tmp_path / "token"
    token.write_text("t" * 32)
    token.chmod(0o600)
    config = load_config(paths.base, ["serving.host=0.0.0.0", f"serving.token_file={token}"])
    with pytest.raises(UsageError, match=r"serving\.host.*127\.0\.0\.1"):
        become_vllm(paths, config, {})


def test_this_process_becomes_vllm(tmp_path: Path, tiny_model: Path) -> None:
    """A program of that name writes down what it was started with."""
    paths = make_base(tmp_path / "box", tiny_model, "serving.engine=vllm")
    version = publish(paths, tiny_model, 1)
    program = tmp_path / "vllm"
    program.write_text(
        f"#!{sys.executable}\nimport json, os, sys\n"
        "print(json.dumps([os.getpid(), os.environ.get('PYTHONPATH'), *sys.argv[1:]]))\n"
    )
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    port = ["--set", "serving.inference_port=9123"]
    served = subprocess.run(
        [sys.executable, "-m", "cli", "serve", "--base", str(paths.base), *port],
        cwd=ROOT,
        env={**os.environ, "PATH": str(tmp_path), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    process, its_modules, *arguments = json.loads(served.stdout)
    address = durable.read_json(paths.inference_address)
    assert (address["url"], address["pid"]) == ("http://127.0.0.1:9123", process)
    assert its_modules is None
    assert arguments[:2] == ["serve", str(tiny_model)]
    assert arguments[-3] == "--lora-modules"
    modules = [json.loads(each) for each in arguments[-2:]]
    assert modules == [{"name": name, "path": str(version.folder)} for name in ("current", "v0001")]


def test_only_versions_of_the_same_base_are_named(tmp_path: Path, tiny_model: Path) -> None:
    paths = make_base(tmp_path, tiny_model)
    version = publish(paths, tiny_model, 1)
    assert list(served_versions(VersionStore(paths).list(), version)) == ["current", "v0001"]
    assert served_versions([version], None) == {}
