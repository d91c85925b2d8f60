"""raw_client.py JSON: an FTP client with a TCP of its own, whose packets are as no kernel sends them.

JSON: {"host": H, "source": ADDRESS, "fragment": BYTES or 0, "ip_options": BOOL, "steps": [STEP, ...]}
Segments longer than `fragment` bytes, a multiple of 8, go as IP fragments, the last one first; `ip_options`
puts a router alert into each packet. IPv4 only. Nothing is retransmitted, so the network must lose nothing, and
the host must keep its own resets back.
A STEP is {"send": TEXT}, or {"send": TEXT, "edge": BYTES}: the server may send as many bytes, and the next step is when
it has sent them or is silent; `TEXT` goes in two segments, if not "whole". Each other line is followed by a reply; so is
the handshake.
Prints one JSON object: {"replies": [TEXT, ...], "rest": TEXT that no step took, "error": TEXT or null}.
"""
import json
import os
import random
import socket
import struct
import sys
import time

FIN, SYN, PSH, ACK = 1, 2, 8, 16
plan = json.loads(sys.argv[1])
# The factor for busy and emulated machines, as in the rest of the lab.
PATIENCE = float(os.environ.get("FTP_ALG_LAB_PATIENCE", "1"))
source, host = (socket.inet_aton(plan[key]) for key in ("source", "host"))
port = random.randrange(20000, 30000)
wire = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP)
wire.setsockopt(socket.IPPROTO_IP, socket.IP_HDRINCL, 1)
wire.settimeout(0.05)
number, expected, window, edge = random.randrange(1 << 32), 0, 60000, None
identification = 1000
received = b""


def checksum(data):
    total = sum(struct.unpack(f"!{(len(data) + 1) // 2}H", data + b"\0" * (len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def send(flags, payload=b""):
    global number, identification, window
    if edge is not None:
        window = max(0, edge - len(received))
    def header(check):
        return struct.pack("!HHIIBBHHH", port, 21, number, expected, 0x50, flags, window, check, 0)
    pseudo = source + host + struct.pack("!BBH", 0, 6, 20 + len(payload))
    segment = header(checksum(pseudo + header(0) + payload)) + payload
    size = plan.get("fragment") or len(segment)
    identification += 1
    options = b"\x94\x04\0\0" if plan.get("ip_options") else b""
    for start in reversed(range(0, len(segment), size)):
        more = 0x2000 if start + size < len(segment) else 0
        part = segment[start:start + size]
        ip = struct.pack("!BBHHHBBH4s4s", 0x45 + len(options) // 4, 0, 0, identification, more | start // 8, 64, 6, 0,
                         source, host)
        wire.sendto(ip + options + part, (plan["host"], 0))
    number = (number + len(payload) + bool(flags & (SYN | FIN))) & 0xFFFFFFFF


def take():
    """Takes what arrives next, and acknowledges it."""
    global expected, received
    try:
        packet = wire.recv(65536)
    except TimeoutError:
        return
    segment = packet[(packet[0] & 15) * 4:]
    ours, theirs, seq, ack, offset, flags = struct.unpack("!HHIIBB", segment[:14])
    if packet[12:16] != host or (ours, theirs) != (21, port):
        return
    payload = segment[(offset >> 4) * 4:]
    if flags & SYN:
        expected = (seq + 1) & 0xFFFFFFFF
        send(ACK)
    elif (seq - expected) & 0xFFFFFFFF == 0xFFFFFFFF or (payload and not window):
        send(ACK)
    elif payload and seq == expected:
        expected = (expected + len(payload)) & 0xFFFFFFFF
        received += payload
        send(ACK)


def reply():
    global received
    deadline = time.monotonic() + 10 * PATIENCE
    while b"\n" not in received:
        if time.monotonic() > deadline:
            raise TimeoutError(f"no reply; {received!r}")
        take()
    line, received = received.split(b"\n", 1)
    return line.decode("latin-1").rstrip("\r")


def settle(limit):
    """Takes what comes, until nothing has come for `limit` seconds, or for less after something has."""
    heard, last = len(received), time.monotonic()
    while time.monotonic() < last + (0.5 if len(received) >= edge else limit):
        take()
        if len(received) > heard:
            heard, last, limit = len(received), time.monotonic(), 1.5 * PATIENCE


replies, error = [], None
try:
    send(SYN)
    replies.append(reply())
    for step in plan["steps"]:
        text = step["send"].encode("latin-1")
        if "edge" in step:
            edge = len(received) + step["edge"]
            # A smaller window counts with a new number only.
            for part in [text] if step.get("whole") else [text[:1], text[1:]]:
                if part:
                    send(ACK | PSH, part)
            settle(10 * PATIENCE)
            continue
        send(ACK | PSH, text)
        for _ in range(text.count(b"\n")):
            replies.append(reply())
except Exception as problem:
    error = repr(problem)
rest = received.decode("latin-1")
print(json.dumps({"replies": replies, "rest": rest, "error": error}))
