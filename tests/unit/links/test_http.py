"""Clients of tiers: an address that can be used, and the machine's certificates."""

import ssl

import pytest

from shared.errors import BadSetting
from shared.links.clients import AsyncClient, Client


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
