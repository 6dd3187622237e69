"""What the intake tests share: a small real chat template and a way to check bytes as a file."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import orjson
import pytest

from chat_template import ChatTemplate
from config import DataConfig
from intake.report import ReportCard
from intake.validation import PlanInputs, check_file

Checker = Callable[..., ReportCard]


@pytest.fixture(scope="session")
def template(tiny_model: Path) -> ChatTemplate:
    return ChatTemplate.load(tiny_model)


@pytest.fixture
def check(tmp_path: Path, template: ChatTemplate) -> Checker:
    """Check bytes, or records as JSON lines, as a file of the given suffix; the rest goes to `check_file`."""

    def check_content(
        content: bytes | Iterable[Any],
        suffix: str = ".jsonl",
        config: DataConfig | None = None,
        **arguments: Any,
    ) -> ReportCard:
        path = tmp_path / f"file{suffix}"
        if not isinstance(content, bytes):
            content = b"".join(orjson.dumps(record) + b"\n" for record in content)
        path.write_bytes(content)
        settings: dict[str, Any] = {
            "seed": 1,
            "name": path.name,
            "plan": PlanInputs(8, 1),
            "template": template,
        } | arguments
        return check_file(path, config or DataConfig(), **settings)

    return check_content
