"""The client of the lab: what is not a tier is told in one line."""

import asyncio

import httpx
import pytest

from lab.live.client import NoAnswer, classify, info_of
from shared.errors import Failed, QueueFull
from shared.web.problems import document


@pytest.mark.parametrize("content", [b"{}", b"[]", b"<html></html>"])
@pytest.mark.parametrize("ask", [info_of, lambda client: classify(client, "a text", {})])
def test_what_is_no_tier_is_told(content, ask):
    async def asked():
        transport = httpx.MockTransport(lambda _: httpx.Response(200, content=content))
        async with httpx.AsyncClient(transport=transport, base_url="http://other") as client:
            await ask(client)

    with pytest.raises(NoAnswer, match="other is no tier of ours"):
        asyncio.run(asked())


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (Failed(), "500: this tier failed on the request; its log has the error, under this request id: r-7$"),
        (QueueFull("too many"), "429: too many$"),
    ],
)
def test_a_tier_that_failed_is_told_with_the_id_that_its_log_has(error, told):
    async def asked():
        problem = document(error, "r-7", {})
        transport = httpx.MockTransport(lambda _: httpx.Response(problem.status_code, content=problem.body))
        async with httpx.AsyncClient(transport=transport, base_url="http://tier") as client:
            await classify(client, "a text", {})

    with pytest.raises(NoAnswer, match=told):
        asyncio.run(asked())


@pytest.mark.parametrize(
    ("url", "hint"),
    [
        ("http://127.0.0.1:8080", "try `make serve`"),
        ("http://127.0.0.1:8190", "try `tierwise serve --port 8190`"),
        ("http://10.0.0.7:8080", "is it up, and is the address right?"),
    ],
)
@pytest.mark.parametrize("ask", [info_of, lambda client: classify(client, "a text", {})])
def test_the_hint_after_a_refusal_starts_tiers_at_that_address(url, hint, ask):
    def refuse(request):
        raise httpx.ConnectError("refused", request=request)

    async def asked():
        async with httpx.AsyncClient(transport=httpx.MockTransport(refuse), base_url=url) as client:
            await ask(client)

    with pytest.raises(NoAnswer, match="no tier answers") as told:
        asyncio.run(asked())
    assert str(told.value).endswith(hint)
