"""HTTP clients for tiers and for services beside them. Each reaches its one address, and nothing else.

The machine's environment has no say: no proxy (HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, NO_PROXY) ever sees a text, and what
these name wrongly stops nobody. Certificates are still the machine's: SSL_CERT_FILE, SSL_CERT_DIR.
Left out: the Hugging Face hub, which is outside and may need a proxy (shared/model/weights.py).
"""

from __future__ import annotations

import ssl
from typing import Any

import httpx

from shared.errors import BadSetting
from shared.links.address import fault_of


class AsyncClient(httpx.AsyncClient):  # noqa: TID251 - everything else uses these two
    """A client of what answers at `url`; `options` are httpx's.

    Raises:
        BadSetting: no usable address, or certificates of the machine that cannot be read.
    """

    def __init__(self, url: str, **options: Any) -> None:
        super().__init__(**_given(url), **options)


class Client(httpx.Client):  # noqa: TID251
    """The same for code that is not asynchronous."""

    def __init__(self, url: str, **options: Any) -> None:
        super().__init__(**_given(url), **options)


def _given(url: str) -> dict[str, Any]:
    return {"base_url": address(url), "verify": trusted(url), "trust_env": False}


def address(url: str) -> httpx.URL:
    """An address as httpx takes it.

    Raises:
        BadSetting: it cannot be used.
    """
    if fault := fault_of(url):
        raise BadSetting(f"an address cannot be used: {fault}")
    try:
        return httpx.URL(url)
    except httpx.InvalidURL as error:
        raise BadSetting(f"{url!r} is no address: {error}") from error


def trusted(url: str) -> ssl.SSLContext | bool:
    """The certificates that this machine trusts (BadSetting: they cannot be read); false for an address without TLS."""
    if not url.lower().startswith("https:"):
        return False
    try:
        return httpx.create_ssl_context()
    except (OSError, ssl.SSLError) as error:
        raise BadSetting(f"SSL_CERT_FILE, SSL_CERT_DIR: cannot read certificates: {error}") from error
