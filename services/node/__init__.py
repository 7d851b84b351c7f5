"""A node of a mesh (MDI-Exit): any node may be asked, and sends texts on to neighbours whose queues are shorter.

app.py       its parts, put together      settings.py  what it is told
endpoints.py what it may be asked         metrics.py   what it counts
shared/mesh  its queues, decisions, links
Start one: `python -m services.node`; a mesh of them on this machine: `tierwise mesh`; as containers: `deploy/mesh/`.
"""
