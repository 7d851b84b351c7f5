"""Load policies again while a tier runs: SIGHUP asks for it (`service.py`), the server does it between two requests.

The folder of policies (`TIERWISE_POLICY_DIR`) is read first, then the tier's default policy. A request keeps the policy
that it began with. If anything is wrong, the policy in force stays. One log line says what was loaded, or what failed
and where. Left out: every other setting, which a tier reads once, at start.
"""

from __future__ import annotations

from typing import Any

import structlog

from shared.errors import TierwiseError
from shared.failures import account
from shared.pipeline.front import Front
from shared.policies import named, own, reload, spec_of

log = structlog.get_logger()


def load_policy(front: Front, setting: str) -> bool:
    """Whether the policy that a setting names (a name, or a file .json) is in force now; else the old one stays."""
    before = front.default_policy
    facts: dict[str, Any] = {"tier": front.tier.name, "setting": setting}
    try:
        reload()
        front.use(named(setting))
    except TierwiseError as error:
        log.error("policy_not_loaded", **facts, detail=str(error), in_force=spec_of(before))
        return False
    except BaseException as error:  # noqa: BLE001 - a user's policy may raise anything; the tier goes on
        log.error("policy_not_loaded", **facts, **account(error), in_force=spec_of(before))
        return False
    log.info(
        "policy_loaded",
        **facts,
        in_force=spec_of(front.default_policy),
        changed=front.default_policy != before,
        own=own(),
    )
    return True
