"""dns.py FILE: a name server on 127.0.0.1 that answers what FILE says now.

FILE is JSON, {"NAME": {"A": ["198.51.100.7"], "AAAA": [], "ttl": 1}, ...}: a name that is absent does not exist, and
one that is null gets no answer. `"wrong": 5` sends five of each kind of wrong answer first: of another question's
number, too short, to another question. Each question is written to standard output as `NAME TYPE`.
"""
import ipaddress
import json
import socket
import struct
import sys

TYPES = {1: "A", 28: "AAAA"}
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(("127.0.0.1", 53))
print("ready", flush=True)
while True:
    query, peer = server.recvfrom(4096)
    labels, at = [], 12
    while query[at]:
        labels.append(query[at + 1:at + 1 + query[at]].decode().lower())
        at += 1 + query[at]
    question = query[12:at + 5]
    (number,) = struct.unpack("!H", query[at + 1:at + 3])
    name, kind = ".".join(labels), TYPES.get(number, str(number))
    print(name, kind, flush=True)
    with open(sys.argv[1]) as file:
        names = json.load(file)
    entry = names.get(name, {})
    if entry is None:
        continue
    addresses = entry.get(kind, [])
    flags = 0x8180 if name in names else 0x8183
    answer = query[:2] + struct.pack("!HHHHH", flags, 1, len(addresses), 0, 0) + question
    for address in addresses:
        data = ipaddress.ip_address(address).packed
        answer += b"\xc0\x0c" + struct.pack("!HHIH", number, 1, entry.get("ttl", 1), len(data)) + data
    for _ in range(entry.get("wrong", 0)):
        other = query[:2] + answer[2:].replace(labels[0].encode(), b"x" * len(labels[0]))
        for wrong in (bytes([query[0] ^ 1]) + answer[1:], b"?", other):
            server.sendto(wrong, peer)
    server.sendto(answer, peer)
