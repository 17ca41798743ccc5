"""The service keeps to its OpenAPI document, whatever it is asked."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from serving.app import create_app
from serving.settings import Settings
from tests.behaviour.champions import FULL
from tests.monitoring.states import written
from tests.serving.served import served

EXAMPLES = 100 if FULL else 20
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
DOCUMENT = create_app(Settings()).openapi()
OPERATIONS = [
    (mode, method.upper(), path)
    for path, methods in DOCUMENT["paths"].items()
    for method, operation in methods.items()
    for mode in GenerationMode
    # what takes nothing cannot be asked wrongly
    if mode is GenerationMode.POSITIVE or {"parameters", "requestBody"} & set(operation)
]


@pytest.fixture(scope="module")
def url(tmp_path_factory) -> Iterator[str]:
    home = tmp_path_factory.mktemp("home")
    state = f"sqlite:{home / 'state' / 'trailwatch' / 'drift.db'}"
    written(state, 0.2, every_s=86_400)[0].close()
    limits = Settings(home=home, history="memory:", most_rows=50, most_body_mib=1)
    with served(limits) as (client, _):
        yield str(client.base_url)


@pytest.fixture(scope="module")
def schema(url: str) -> schemathesis.openapi.OpenApiSchema:
    return schemathesis.openapi.from_url(f"{url}/openapi.json")


def test_the_document_is_valid(schema):
    schema.validate()


@pytest.mark.parametrize(("mode", "method", "path"), OPERATIONS)
def test_answers_keep_to_the_document(schema, url: str, mode, method: str, path: str):
    # files are judged by models only, and there is none: 503 says so
    checks = CHECKS[1:] if (method, path) == ("POST", "/jobs") else CHECKS

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(case=schema[path][method].as_strategy(generation_mode=mode))
    def keeps(case: schemathesis.Case) -> None:
        assert case.call_and_validate(base_url=url, checks=checks).status_code != 500

    keeps()
