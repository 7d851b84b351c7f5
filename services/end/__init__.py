"""The end tier: on the user's device, before any network.

It answers the texts that its small model is sure of, and sends the words of the others on. Where the policy's
`pruning_coefficient` is above 0, words that received little attention stay behind. It reaches the cloud through the
edge, and directly for policies that choose a tier before inference.
Change its defaults here: `python -m services.end`, `make demo`, `make serve` and the container start this role.
"""

from shared.web.settings import Role

ROLE = Role(
    tier="end",
    port=8080,
    upstreams={"edge": "http://127.0.0.1:8081", "cloud": "http://127.0.0.1:8082"},
    links={"edge": "5g-nsa", "cloud": "5g-nsa+metro"},
)
