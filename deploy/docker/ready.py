"""Health check of a tier's container: is it ready? A bare socket: importing an HTTP client takes longer than asking."""

import os
import socket
import sys

with socket.create_connection(("127.0.0.1", int(os.environ["TIERWISE_PORT"])), timeout=3) as tier:
    tier.sendall(b"GET /readyz HTTP/1.0\r\n\r\n")
    sys.exit(0 if b" 200 " in tier.recv(64) else 1)
