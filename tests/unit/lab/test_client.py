"""The client of the lab: what is not a tier is told in one line."""

import asyncio

import httpx
import pytest

from lab.live.client import NoAnswer, classify, info_of


@pytest.mark.parametrize("content", [b"{}", b"[]", b"<html></html>"])
@pytest.mark.parametrize("ask", [info_of, lambda client: classify(client, "a text", {})])
def test_what_is_no_tier_is_told(content, ask):
    async def asked():
        transport = httpx.MockTransport(lambda _: httpx.Response(200, content=content))
        async with httpx.AsyncClient(transport=transport, base_url="http://other") as client:
            await ask(client)

    with pytest.raises(NoAnswer, match="other is no tier of ours"):
        asyncio.run(asked())
