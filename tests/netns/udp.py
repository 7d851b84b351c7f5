"""`python -m tests.netns.udp echo PORT | ping HOST PORT`: a datagram every 20 ms; prints `sent_at rtt`, seconds."""

import socket
import sys
import threading
import time


def echo(port):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.bind(("", port))
        while True:
            udp.sendto(*udp.recvfrom(64))


def ping(host, port):
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.connect((host, port))

    def listen():
        while True:
            sent = float(udp.recv(64))
            print(f"{sent:.6f} {time.monotonic() - sent:.6f}", flush=True)

    threading.Thread(target=listen, daemon=True).start()
    while True:
        udp.send(f"{time.monotonic():.6f}".encode())
        time.sleep(0.02)


if __name__ == "__main__":
    echo(int(sys.argv[2])) if sys.argv[1] == "echo" else ping(sys.argv[2], int(sys.argv[3]))
