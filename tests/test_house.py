"""Imports point down, torch stays in its rooms, every key and command is documented."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import typer
import yaml

from config import Config, config_keys

ROOT = Path(__file__).parent.parent

FLOORS = [
    {"errors"},
    {"durable", "jinja_sandbox"},
    {"config", "chat_template"},
    {"monitoring", "evaluation"},
    {"intake"},
    {"training"},
    {"serving", "reports"},
    {"daemon", "doctor", "service"},
    {"cli"},
]
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
TORCH = {"torch", "transformers", "trl", "peft", "datasets", "accelerate"}
TORCH_ROOMS = {
    *("training.worker", "training.dataset", "training.model", "training.trainer", "training.callbacks"),
    *("training.batches", "training.adapter", "training.optimization"),
    *("training.tuning", "training.base_model", "training.merging", "training.gguf_file"),
    *("monitoring.live_monitor", "monitoring.lora_monitor"),
    *("evaluation.generation", "evaluation.losses", "evaluation.fixed_eval", "serving.inference"),
    "evaluation.short_memory",
    "evaluation.examination",
    "training.version_test",
    *("serving.adapters", "serving.batching", "serving.decoding", "serving.sampling"),
}


def source_files() -> Iterator[tuple[str, Path]]:
    """Yield module name and path of every module of the house, the examples and benchmarks left out."""
    for path in sorted(ROOT.glob("*.py")):
        yield path.stem, path
    for room in sorted(set(FLOOR_OF) & {path.name for path in ROOT.iterdir() if path.is_dir()}):
        for path in sorted((ROOT / room).rglob("*.py")):
            yield ".".join(path.relative_to(ROOT).with_suffix("").parts), path


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """Yield every imported module of a file with its line, imports inside functions included."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module, node.lineno


def test_every_module_lives_on_a_floor() -> None:
    homeless = [name for name, _ in source_files() if name.partition(".")[0] not in FLOOR_OF]
    assert homeless == []


def test_imports_point_down() -> None:
    upward = [
        f"{path.relative_to(ROOT)}:{line} imports {imported}"
        for name, path in source_files()
        for imported, line in imports(path)
        if (target := imported.partition(".")[0]) in FLOOR_OF
        and target != name.partition(".")[0]
        and FLOOR_OF[target] >= FLOOR_OF[name.partition(".")[0]]
    ]
    assert upward == []


def test_torch_stays_in_its_rooms() -> None:
    strays = [
        f"{path.relative_to(ROOT)}:{line} imports {imported}"
        for name, path in source_files()
        if name not in TORCH_ROOMS
        for imported, line in imports(path)
        if imported.partition(".")[0] in TORCH
    ]
    assert strays == []


def test_no_module_is_named_after_nothing() -> None:
    vague = {"utils", "helpers", "common", "manager", "misc"}
    assert [name for name, _ in source_files() if vague & set(name.split("."))] == []


def test_config_yaml_lists_every_key_with_its_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRAINBOX_SERVING__MONITOR", raising=False)  # set for all tests
    document = yaml.safe_load((ROOT / "config.yaml").read_text(encoding="utf-8"))
    assert Config.model_validate(document) == Config()
    assert {f"{section}.{key}" for section, keys in document.items() for key in keys} == set(config_keys())


def test_config_yaml_comments_every_key() -> None:
    lines = (ROOT / "config.yaml").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if re.match(r"\s+\w+:", line) and "#" not in line] == []


@cache
def nodes_of_tests() -> tuple[ast.AST, ...]:
    """Return every node of every test module, parsed once."""
    paths = (ROOT / "tests").rglob("test_*.py")
    return tuple(node for path in paths for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


@cache
def keys_with_a_test() -> frozenset[object]:
    """Return what the tests name in their mark ``config_key``."""
    return frozenset(
        constant.value
        for node in nodes_of_tests()
        if isinstance(node, ast.Call) and getattr(node.func, "attr", None) == "config_key"
        for constant in ast.walk(node)
        if isinstance(constant, ast.Constant)
    )


@pytest.mark.parametrize("key", list(config_keys()))
def test_every_key_has_a_test_that_it_changes_something(key: str) -> None:
    assert key in keys_with_a_test()


def command_names(app: typer.Typer) -> Iterator[str]:
    """Yield every command as a person types it, for instance ``versions verify``."""
    for command in app.registered_commands:
        assert command.callback is not None
        yield command.name or command.callback.__name__.replace("_", "-")
    for group in app.registered_groups:
        assert group.typer_instance is not None
        yield from (f"{group.name} {name}" for name in command_names(group.typer_instance))


def test_every_command_is_in_the_readme() -> None:
    from cli import app

    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    names = list(command_names(app))
    assert names
    assert [name for name in names if f"trainbox {name}" not in readme] == []


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150
    assert len((ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8").splitlines()) <= 120


def test_nothing_of_a_run_is_tracked_by_git() -> None:
    tracked = subprocess.run(
        ["git", "ls-files", "inbox", "status", "models", "logs"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if tracked.returncode != 0:
        pytest.skip("not a git checkout")
    assert {Path(name).name for name in tracked.stdout.split()} == {".gitkeep"}


def test_every_promise_names_tests_that_exist() -> None:
    text = (ROOT / "docs" / "guarantees.md").read_text(encoding="utf-8")
    promised = set(re.findall(r"`(test_\w+)`", text))
    defined = {node.name for node in nodes_of_tests() if isinstance(node, ast.FunctionDef)}
    assert promised
    assert promised - defined == set()
