"""The link shaper: one small daemon per tier that owns the tier's network namespace and shapes its links with netem.

shape.py     what one end of a link does to its packets      state.py    which profile or trace is in force
netlink.py   from a shape to the kernel and back
probe.py     exchanges and paced UDP between two shapers     verify.py   does the link do what its profile says?
daemon.py    all of it in one process                        ctl.py      one command to a running shaper
"""
