"""The policies that a tier offers, with their parameters, the values in force, and what values may be.

A policy that this bundle cannot run says why. Left out: `oracle`, which runs in replay only, and constant parameters.
"""

from __future__ import annotations

from typing import Any, Literal

import structlog
from pydantic import Field

from shared.contracts import Message, says
from shared.errors import UnknownPolicy
from shared.failures import account
from shared.pipeline.front import Front
from shared.policies import POLICIES, Learner, name_of, names, spec_of
from shared.policies.baselines.fixed import Only, Oracle

log = structlog.get_logger()
Kind = Literal["number", "integer", "boolean", "choice", "string", "json"]
Schema = dict[str, Any]  # JSON Schema
_KINDS: dict[str, Kind] = {"number": "number", "integer": "integer", "boolean": "boolean", "string": "string"}


class Parameter(Message):
    """A policy's parameter."""

    name: str = says("as in a request", "offload_threshold")
    description: str = says("what it does", "confidence below which a text is always sent on")
    kind: Kind = says("of one value; `json`: anything else", "number")
    value: Any = says("what holds where a request names the policy alone", {"end": 0.8, "edge": 0.6})
    per_tier: bool = says("whether it may be one value per tier: an object", True)
    nullable: bool = says("whether it may be null", False)
    minimum: float | None = Field(None, description="no value is below; null: no bound", examples=[0.0])
    maximum: float | None = Field(None, description="no value is above; null: no bound", examples=[1.0])
    choices: list[str] = Field([], description="of the kind `choice`", examples=[["sigmoid", "linear", "step"]])


class Offer(Message):
    """A policy on this tier."""

    name: str = says("as in a request", "collaborative")
    description: str = says("what it does", "Similarity exits, S-curve offloading to the next tier, pruning, ensemble.")
    learns: bool = says("whether it learns from every answer", False)
    refused: str | None = Field(None, description="why this tier cannot run it; null: it can", examples=[None])
    parameters: list[Parameter] = says("of a request", [])


class Offers(Message):
    """The policies of a tier."""

    policies: list[Offer] = says("in the order of the manual", [])


def offers(front: Front) -> Offers:
    """Every policy of the registry as this tier offers it, and the default one, whose file may be gone."""
    offered = dict.fromkeys([*names(front.tier.bundle.order), name_of(front.default_policy)])
    return Offers(policies=[_offer(front, name) for name in offered if name != Oracle.name])


def _offer(front: Front, name: str) -> Offer:
    kind, parameters, learns, refused = POLICIES.get(name, Only), list[Parameter](), False, None
    try:
        policy = front.tier.policy(name)
        learns = isinstance(policy, Learner) and policy.learns
        parameters = _parameters(kind.model_json_schema(), spec_of(policy)) if name in POLICIES else []
        front.admit(policy)
    except UnknownPolicy as error:
        refused = str(error)
    except Exception as error:  # noqa: BLE001 - a user's policy may raise anything, and spoils its own offer alone
        log.warning("policy_not_offered", policy=name, **account(error))
        refused = f"policy {name!r} failed; the log of this tier says how"
    description = (kind.__doc__ or "").strip().partition("\n")[0]
    return Offer(name=name, description=description, learns=learns, refused=refused, parameters=parameters)


def _parameters(schema: Schema, spec: Schema) -> list[Parameter]:
    kinds = schema.get("$defs", {})
    fields = schema.get("properties", {}).items()
    return [_parameter(name, field, spec[name], kinds) for name, field in fields if "const" not in field]


def _parameter(name: str, field: Schema, value: Any, kinds: Schema) -> Parameter:
    """One field of a policy's schema: a value, or null, or an object with a value for each tier.

    >>> ratio = {"type": "number", "minimum": 0, "maximum": 1}
    >>> found = _parameter("theta", {"anyOf": [ratio, {"type": "object", "additionalProperties": ratio}]}, 0.2, {})
    >>> found.kind, found.per_tier, found.minimum, found.maximum
    ('number', True, 0.0, 1.0)
    """
    forms = [kinds.get(form.get("$ref", "").rpartition("/")[2], form) for form in field.get("anyOf", [field])]
    types = [form.get("type") for form in forms]
    single = [form for form in forms if form.get("type") not in ("object", "null")]
    one = single[0] if len(single) == 1 else {}
    kind: Kind = "choice" if "enum" in one else _KINDS.get(one.get("type", ""), "json")
    return Parameter(
        name=name,
        description=field.get("description", ""),
        kind=kind,
        value=value,
        per_tier="object" in types and kind != "json",
        nullable="null" in types,
        minimum=_number(one.get("minimum", one.get("exclusiveMinimum"))),
        maximum=_number(one.get("maximum", one.get("exclusiveMaximum"))),
        choices=[str(choice) for choice in one.get("enum", [])],
    )


def _number(bound: float | None) -> float | None:
    return None if bound is None else float(bound)
