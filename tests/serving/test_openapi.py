"""What the OpenAPI document promises holds for requests that a machine makes up."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.strategies import SearchStrategy
from schemathesis import APIOperation, GenerationMode

import durable
from monitoring.training_status import TrainingStatus
from tests.serving.served import Client, Served
from tests.training.ledger.run_folders import Folder, plan, steps
from tests.waiting import PATIENCE_SECONDS

EXAMPLES = 8
"""Requests made up for each route, each way of making them up, and each job."""
Operation = APIOperation[Any, Any, Any, Any]
ENDLESS = "/api/events"
COUNTED = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """Return a base folder with a daemon's status and a run."""
    folder = Folder(tmp_path_factory.mktemp("base"))
    folder.job(1, plan(), *steps(range(1, 11)))
    status = TrainingStatus(status_seconds=1e6)
    durable.write_json(folder.paths.status_file, status.model_dump(mode="python"))
    return folder


@pytest.fixture(scope="module")
def client(folder: Folder) -> Iterator[Client]:
    with Served(folder.paths) as client:
        yield client


@pytest.fixture(scope="module")
def operations(client: Client) -> list[Operation]:
    schema = schemathesis.openapi.from_dict(client.get("/openapi.json").json())
    found = [schema[path]["get"] for path in schema if path != ENDLESS]
    assert len(found) > 10
    return found


def test_no_request_that_a_machine_makes_up_meets_an_error_of_ours(
    client: Client, folder: Folder, operations: list[Operation]
) -> None:
    (job,) = folder.store.all()
    for operation in operations:
        ask(client, operation.as_strategy(GenerationMode.POSITIVE))
        if "{job_id}" in operation.path:
            known = {"job_id": job.job_id}
            ask(client, operation.as_strategy(GenerationMode.POSITIVE, path_parameters=known))
        if operation.definition.raw.get("parameters"):
            ask(client, operation.as_strategy(GenerationMode.NEGATIVE))


def ask(client: Client, cases: SearchStrategy[Any]) -> None:
    """Send some of the requests, and hold the answers against the document."""

    @COUNTED
    @given(case=cases)
    def ask_once(case: Any) -> None:
        response = case.call(base_url=f"http://{client.host}:{client.port}", timeout=PATIENCE_SECONDS)
        assert response.status_code < 500, case.as_curl_command()
        case.operation.validate_response(response)

    ask_once()
