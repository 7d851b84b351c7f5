"""Every error that Tierwise raises on purpose, in one tree.

TierwiseError
  BadInput                 the caller's text or option; `shared/web/problems.py` gives the status
    UnreadableText         no word that the tokenizer knows
    UnknownPolicy
  BadSetting               a setting or a bundle that cannot be used; stops a service at start
    WrongWeights           bytes that are not the pinned ones, or adapters that do not fit their base
  UpstreamFailure          the next tier gave no usable answer; carries the `degraded` reason
  DeadlinePassed           no exit was reached in time
  Refused                  by the surface, before the pipeline sees it; carries its status
  QueueFull, Draining      refused at the door
  CallerLeft               nobody waits for the answer any more
  Failed                   an exception that nobody expected; its cause is logged, never sent
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shared.contracts import DegradedReason


def plain(message: str) -> str:
    """What a validator of ours said, without what pydantic puts before it."""
    return message.removeprefix("Value error, ")


class TierwiseError(Exception):
    """The root; its message is one line for a person and says what to do."""


class BadInput(TierwiseError):
    """The request is wrong."""


class UnreadableText(BadInput):
    """A text has no word that the tokenizer knows."""


class UnknownPolicy(BadInput):
    """A policy that does not exist, or parameters it does not have."""


class BadSetting(TierwiseError):
    """A setting, bundle or environment that cannot be used."""


class WrongWeights(BadSetting):
    """Weights that are missing, not the pinned bytes, or that do not fit."""


class UpstreamFailure(TierwiseError):
    """The next tier gave no usable answer; `status` is the HTTP status, where there was one."""

    def __init__(self, reason: DegradedReason, detail: str, *, status: int | None = None) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.status = reason, status


class DeadlinePassed(TierwiseError):
    """No exit was reached before the deadline."""


class QueueFull(TierwiseError):
    """The tier's queue is full; it is worth another try after `retry_after_s`."""

    def __init__(self, detail: str, *, retry_after_s: float = 1.0) -> None:
        super().__init__(detail)
        self.retry_after_s = retry_after_s


class Draining(TierwiseError):
    """The tier is shutting down."""


class CallerLeft(TierwiseError):
    """Nobody waits for the answer any more."""


class Failed(TierwiseError):
    """Something broke inside: a bug of ours, or of a user's policy."""

    def __init__(self) -> None:
        super().__init__("this tier failed on the request; its log has the error, under this request id")


class Refused(TierwiseError):
    """A request that the surface refuses before the pipeline sees it."""

    def __init__(self, status: int, kind: str, detail: str, errors: list[dict[str, str]] | None = None) -> None:
        super().__init__(detail)
        self.status, self.kind, self.errors = status, kind, errors or []
