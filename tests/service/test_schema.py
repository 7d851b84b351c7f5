"""The served OpenAPI document, taken at its word: whatever it allows or forbids, nothing gives a 500 or 502.

TEST_CASES examples an operation (CI runs 1,000).
"""

import os

import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode

CASES = int(os.environ.get("TEST_CASES", "40"))
ALLOWED = {200, 400, 401, 404, 405, 408, 413, 415, 422, 504}  # 504: a deadline of a millisecond


UNDECLARED = {404, 405}  # no operation of the document


def sends(operation, statuses):
    """A test of one operation that keeps the statuses it saw."""

    @given(case=st.one_of(operation.as_strategy(generation_mode=mode) for mode in GenerationMode))
    @settings(max_examples=CASES, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    def send(case):
        response = case.call()
        status = response.status_code
        statuses.add(status)
        assert status in ALLOWED, (status, case.method, case.path, str(case.body)[:500], response.text[:500])
        declared = operation.definition.raw["responses"].get(str(status))
        assert declared or status in UNDECLARED
        told = declared["content"] if declared else {"application/problem+json"}
        assert status < 400 or response.headers["content-type"][0] in told

    return send


def test_every_operation_keeps_to_its_statuses(serve):
    """Generated requests, right and wrong ones, to every operation of the document."""
    schema = schemathesis.openapi.from_asgi("/openapi.json", serve(tier="end").app)  # its lifespan ends with the test
    seen = {}
    for found in schema.get_all_operations():
        operation = found.ok()
        sends(operation, seen.setdefault(operation.path, set()))()
    assert seen["/v1/classify"] >= {200, 422}
    ours = {
        "/v1/classify",
        "/v1/infer",
        "/v1/continue",
        "/livez",
        "/readyz",
        "/health",
        "/info",
        "/v1/policies",
        "/metrics",
        "/v1/links/{to}",
    }
    model = "/v2/models/{name}"
    v2 = {"/v2", "/v2/health/live", "/v2/health/ready", model, f"{model}/ready", f"{model}/infer"}
    assert set(seen) == ours | v2 | {"/", "/predict"}
