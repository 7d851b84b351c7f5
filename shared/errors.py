"""Every error that Tierwise raises on purpose, in one tree, with what each means to a caller.

A caller reads the status, the kind (`urn:tierwise:KIND`) and the title in the problem document; `rejected_total` counts
by the rejection. A class inherits what it does not say.

    error                  status  kind                title                     rejection
    TierwiseError             500  internal            Failed inside
      Refused                 400  bad-request         Bad request               bad_request
        BadJson               400  bad-json            Bad request               bad_request
        Unauthorized          401  unauthorized        No valid key              unauthorized
        NoSuchPath            404  no-such-path        No such path
        MethodNotAllowed      405  method-not-allowed  Method not allowed
        SlowBody              408  slow-body           The body came too slowly  slow_body
        TooLarge              413  too-large           Too large                 too_large
        HeadersTooLarge       431  headers-too-large   Headers too large         too_large
        UnsupportedMedia      415  unsupported-media   Send application/json     unsupported_media
      BadInput                422  bad-input           Cannot classify this      invalid
        UnreadableText        422  bad-input           Cannot classify this      invalid
        UnknownPolicy         422  bad-input           Cannot classify this      invalid
        BadState              422  bad-state           Cannot go on from this    invalid
        BadLinkChange         422  bad-link-change     Cannot change this link
      NotHeld                 421  not-held            Nobody holds the layers
      QueueFull               429  queue-full          Too busy                  queue_full
      CallerLeft              499  caller-left         The caller left           abandoned
      Draining                503  draining            Shutting down             draining
      ConnectionsFull         503  connections-full    Too many connections
      ModelStopped            503  model-stopped       The model stopped
      DeadlinePassed          504  deadline-passed     Deadline passed           deadline
      BadSetting              500  internal            Failed inside
        WrongWeights          500  internal            Failed inside
      UpstreamFailure         500  internal            Failed inside
      BadDecision             500  internal            Failed inside
      Failed                  500  internal            Failed inside
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from shared.contracts import DegradedReason


def one_line(error: Exception) -> str:
    """An error's message on one line of at most 300 characters; its class where it has none."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def did_you_mean(name: str, known: Iterable[str], *, likeness: float = 0.85) -> str:
    """What follows an unknown name in a message: the known one that was probably meant, or nothing."""
    near = difflib.get_close_matches(name, sorted(known), n=1, cutoff=likeness)
    return f" (did you mean {near[0]}?)" if near else ""


def plain(message: str) -> str:
    """A validator's message without pydantic's prefix."""
    return message.removeprefix("Value error, ")


_EXPECTED = {  # the first word of a kind of pydantic's errors
    "string": "a text",
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "list": "a list",
    "dict": "a JSON object",
    "model": "a JSON object",
}
_WORDS = {
    "missing": "is missing",
    "extra_forbidden": "unknown key",
    "string_unicode": "has half of a surrogate pair, which is no unicode text",
}


def in_words(kind: str, message: str) -> str:
    """A validation error, by pydantic's kind and message, for a reader who knows nothing of pydantic.

    >>> in_words("bool_parsing", "..."), in_words("greater_than", "Input should be greater than 0")
    ('expected true or false', 'must be greater than 0')
    """
    of, _, fault = kind.partition("_")
    if of in _EXPECTED and fault in ("type", "parsing", "from_float", "attributes_type"):
        return f"expected {_EXPECTED[of]}"
    must = re.sub(r"^(Input|String|List|Dictionary) should ", "must ", plain(message))
    return _WORDS.get(kind, must.replace(" after validation", ""))


class TierwiseError(Exception):
    """The root; its message is one line for a person and says what to do."""

    status: ClassVar[int] = 500
    kind: ClassVar[str] = "internal"
    title: ClassVar[str] = "Failed inside"
    rejection: ClassVar[str | None] = None  # label of `rejected_total`; null: not counted there
    hangs_up: ClassVar[bool] = False  # the rest of the body is not read, so the connection ends
    retry_after_s: float | None = None  # when another try is worth it
    errors: Sequence[Mapping[str, str]] = ()  # every problem of a body, each with its place


class Refused(TierwiseError):
    """The tier does not take this request; the pipeline never sees it."""

    status, kind, title = 400, "bad-request", "Bad request"
    rejection: ClassVar[str | None] = "bad_request"


class BadJson(Refused):
    """The body is not JSON."""

    kind = "bad-json"


class Unauthorized(Refused):
    """The request lacks the tier's key."""

    status, kind, title, rejection = 401, "unauthorized", "No valid key", "unauthorized"
    hangs_up = True


class NoSuchPath(Refused):
    """The tier has no such path."""

    status, kind, title, rejection = 404, "no-such-path", "No such path", None


class MethodNotAllowed(Refused):
    """The path does not take this method."""

    status, kind, title, rejection = 405, "method-not-allowed", "Method not allowed", None


class SlowBody(Refused):
    """The body did not arrive in time."""

    status, kind, title, rejection = 408, "slow-body", "The body came too slowly", "slow_body"
    hangs_up = True


class TooLarge(Refused):
    """The body has too many bytes, values, pieces or inputs."""

    status, kind, title, rejection = 413, "too-large", "Too large", "too_large"
    hangs_up = True


class HeadersTooLarge(Refused):
    """The request's line and headers have too many bytes."""

    status, kind, title, rejection = 431, "headers-too-large", "Headers too large", "too_large"
    hangs_up = True


class UnsupportedMedia(Refused):
    """The body is not what the path takes: plain `application/json`, but for states."""

    status, kind, title, rejection = 415, "unsupported-media", "Send application/json", "unsupported_media"
    hangs_up = True


class BadInput(TierwiseError):
    """The caller's text or option is wrong."""

    status, kind, title = 422, "bad-input", "Cannot classify this"
    rejection: ClassVar[str | None] = "invalid"

    def __init__(self, detail: str, *, errors: Sequence[Mapping[str, str]] = ()) -> None:
        super().__init__(detail)
        self.errors = errors


class UnreadableText(BadInput):
    """A text has no word that the tokenizer knows."""


class UnknownPolicy(BadInput):
    """A policy that does not exist, or parameters it does not have."""


class BadState(BadInput):
    """A network's state that this tier cannot go on from: altered, of another network, or after another layer."""

    kind, title = "bad-state", "Cannot go on from this"


class BadLinkChange(BadInput):
    """A change of a link that makes no sense, or that this tier cannot make."""

    kind, title, rejection = "bad-link-change", "Cannot change this link", None


class NotHeld(TierwiseError):
    """Neither this node nor a neighbour holds the segment that a text needs next."""

    status, kind, title = 421, "not-held", "Nobody holds the layers"


class QueueFull(TierwiseError):
    """The tier's queue is full; it is worth another try after `retry_after_s`."""

    status, kind, title, rejection = 429, "queue-full", "Too busy", "queue_full"

    def __init__(self, detail: str, *, retry_after_s: float = 1.0) -> None:
        super().__init__(detail)
        self.retry_after_s = retry_after_s


class CallerLeft(TierwiseError):
    """Nobody waits for the answer any more."""

    status, kind, title, rejection = 499, "caller-left", "The caller left", "abandoned"


class Draining(TierwiseError):
    """The tier is shutting down."""

    status, kind, title, rejection = 503, "draining", "Shutting down", "draining"
    hangs_up, retry_after_s = True, 1.0


class ConnectionsFull(TierwiseError):
    """The tier answers as many connections as it can."""

    status, kind, title = 503, "connections-full", "Too many connections"
    hangs_up, retry_after_s = True, 1.0


class ModelStopped(TierwiseError):
    """The model's thread has ended: only a new start of the tier helps."""

    status, kind, title = 503, "model-stopped", "The model stopped"


class DeadlinePassed(TierwiseError):
    """No exit was reached before the deadline."""

    status, kind, title, rejection = 504, "deadline-passed", "Deadline passed", "deadline"


class BadSetting(TierwiseError):
    """A setting, bundle or environment that cannot be used; it stops a service at start."""


class WrongWeights(BadSetting):
    """Weights that are missing, not the pinned bytes, or that do not fit their base."""


class UpstreamFailure(TierwiseError):
    """The next tier gave no usable answer, for the `degraded` reason; `answered` is its HTTP status, if it sent one."""

    def __init__(self, reason: DegradedReason, detail: str, *, answered: int | None = None) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.answered = reason, answered


class BadDecision(TierwiseError):
    """A user's policy decided what no tier can follow. The log says what; a caller reads `Failed`."""


class Failed(TierwiseError):
    """An exception that nobody expected, of ours or of a user's policy. The log has its cause; a caller never does."""

    def __init__(self) -> None:
        super().__init__("this tier failed on the request; its log has the error, under this request id")


def tree(root: type[TierwiseError] = TierwiseError) -> Iterator[type[TierwiseError]]:
    """The root and every error below it, as the table above lists them."""
    yield root
    for error in root.__subclasses__():
        yield from tree(error)
