"""`python -m services.shaper.ctl '{"do":"set","link":"end-edge","profile":"lte"}'`: one command, one JSON answer.

show; or with `link`: set (profile), trace (text, packed or path; name), cut, heal, counters, probe.
Exit status 2 where the answer is an error.
"""

from __future__ import annotations

import json
import os
import socket
import sys

CONTROL = "/run/shaper/control.sock"


def main() -> int:
    """Send the command; print the answer."""
    try:
        with socket.socket(socket.AF_UNIX) as control:
            control.connect(os.environ.get("TIERWISE_SHAPER_CONTROL", CONTROL))
            control.sendall(" ".join(sys.argv[1:]).replace("\n", " ").encode() + b"\n")
            answer = control.makefile().readline() or '{"error": "the shaper ended"}'
    except OSError as error:
        answer = json.dumps({"error": f"no shaper answers here: {error}"})
    print(answer.strip())
    return 2 if "error" in json.loads(answer) else 0


if __name__ == "__main__":
    sys.exit(main())
