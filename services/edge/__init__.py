"""The edge tier: near the user, behind a mobile network.

A larger model answers the texts that the end was unsure of. The edge then decides again: it sends the cloud the texts
that it is unsure of, and those that are meant for the cloud. Change its defaults here: `python -m services.edge`,
`make demo`, `make serve` and the container start this role.
"""

from shared.web.settings import Role

ROLE = Role(
    tier="edge",
    port=8081,
    upstreams={"cloud": "http://127.0.0.1:8082"},
    links={"cloud": "metro"},
    threads=2,
)
