"""Addresses of tiers and of services beside them: http(s)://HOST[:PORT][/PATH], without secrets in them.

Settings, `/info`, logs and error lines show addresses, so an address must not hold a password. Keys are in files.
"""

from __future__ import annotations

import re

from pydantic import AnyHttpUrl, TypeAdapter, ValidationError

from shared.errors import plain

_URL = TypeAdapter(AnyHttpUrl)
_FORM = re.compile(r"https?://[^/\\\s]+(/[^\\\s]*)?", re.IGNORECASE)  # what parsers of URLs agree about
SEPARATOR = "|"  # of the addresses of a tier's replicas
_SECRET = re.compile(r"[@?#]")


def may_hold_secret(value: object) -> bool:
    """Whether a text may hold what must not be shown: user and password, a query or a fragment of a URL."""
    return _SECRET.search(str(value)) is not None


def fault_of(url: str) -> str | None:
    """Why `url` cannot be used as an address; null where it can. Never quotes it.

    >>> fault_of("http://me:secret@edge:8081")
    'it holds a user or a password (...@): leave them out, and name a file with the key (TIERWISE_KEY_FILE)'
    """
    if "@" in url:
        return "it holds a user or a password (...@): leave them out, and name a file with the key (TIERWISE_KEY_FILE)"
    if may_hold_secret(url):
        return "it holds a query or a fragment (? or #): give http(s)://HOST:PORT/PATH alone"
    try:
        port = _URL.validate_python(url).port
    except ValidationError as error:
        return f"no http(s) URL: {plain(error.errors()[0]['msg'])}"
    if port == 0 or not _FORM.fullmatch(url):
        return "no http(s) URL: expected http(s)://HOST:PORT/PATH without white space"
    return None
