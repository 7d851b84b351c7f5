"""The cloud tier: the whole model, behind a backbone.

It answers every text that reaches it; no tier is behind it. Change its defaults here: `python -m services.cloud`,
`make demo`, `make serve` and the container start this role.
"""

from shared.web.settings import Role

ROLE = Role(tier="cloud", port=8082, threads=2)
