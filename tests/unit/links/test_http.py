"""Clients of tiers: an address that can be used, the machine's certificates, and what a call between tiers says."""

import asyncio
import ssl

import httpx
import pytest

from shared.errors import BadSetting
from shared.links.clients import AsyncClient, Client
from shared.links.http import UpstreamHttp


@pytest.mark.parametrize("make", [Client, AsyncClient])
@pytest.mark.parametrize("url", ["http://me:secret@edge", "edge:8081", "http://edge/?a=secret", "http://xn--"])
def test_what_is_no_address_is_one_line_that_shows_no_secret(make, url):
    with pytest.raises(BadSetting) as caught:
        make(url)
    assert "secret" not in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(("variable", "given"), [("SSL_CERT_FILE", "cafile"), ("SSL_CERT_DIR", "capath")])
def test_certificates_are_those_of_the_machine(monkeypatch, tmp_path, variable, given):
    asked = []

    def take(**given):
        asked.append(given)
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)

    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    monkeypatch.setenv(variable, str(tmp_path))
    monkeypatch.setattr(ssl, "create_default_context", take)
    Client("https://edge").close()
    assert asked == [{given: str(tmp_path)}]


def test_certificates_that_cannot_be_read_are_one_line(monkeypatch, tmp_path):
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "missing"))
    with pytest.raises(BadSetting, match="SSL_CERT_FILE"):
        Client("https://edge")
    (tmp_path / "missing").write_text("no certificate")
    with pytest.raises(BadSetting, match="SSL_CERT_FILE"):
        Client("https://edge")


@pytest.mark.parametrize(
    ("url", "asked"),
    [("http://edge:8081", "http://edge:8081/v1/infer"), ("http://edge/a%2Fb/", "http://edge/a%2Fb/v1/infer")],
)
def test_a_call_goes_below_the_upstream_s_address_with_few_headers(url, asked):
    seen = []

    def answer(request):
        seen.append(request)
        return httpx.Response(200, content=b"a-call")

    async def post():
        http = UpstreamHttp(
            target="edge", url=url, link=None, timeout_s=5, key="k" * 16, transport=httpx.MockTransport(answer)
        )
        await http.post(b"{}", {"traceparent": "t"}, call="a-call", limit_bytes=100)

    asyncio.run(post())
    (request,) = seen
    assert (request.method, str(request.url), request.content) == ("POST", asked, b"{}")
    assert dict(request.headers) == {
        "host": request.url.netloc.decode(),
        "user-agent": "tierwise",
        "content-type": "application/json",
        "authorization": "Bearer " + "k" * 16,
        "traceparent": "t",
        "content-length": "2",
    }
    assert request.extensions["timeout"] == {"connect": 5, "read": 5, "write": 5, "pool": 5}


@pytest.mark.parametrize("url", ["http://me:secret@edge", "http://edge/?a=secret"])
def test_an_upstream_s_address_holds_no_secret(url):
    with pytest.raises(BadSetting) as caught:
        UpstreamHttp(target="edge", url=url, link=None, timeout_s=5)
    assert "secret" not in str(caught.value)
