"""The edge tier: near the user, behind a mobile network.

It answers what the end was unsure of with a larger model, decides again, and passes on to the cloud what it is unsure
of, and what is meant for the cloud. Change its defaults here: `python -m services.edge`, `make demo`, `make serve` and
the container start this role.
"""

from shared.web.settings import Role

ROLE = Role(
    tier="edge",
    port=8081,
    upstreams={"cloud": "http://127.0.0.1:8082"},
    links={"cloud": "metro"},
    threads=2,
)
