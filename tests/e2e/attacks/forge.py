"""forge.py JSON: sends one TCP segment with any source from eth0.

JSON: {"router": MAC ADDRESS, "from": [ADDRESS, PORT], "to": [ADDRESS, PORT], "seq": N, "ack": N, "ttl": N, "line": TEXT}
Without "line" it is a RST. An empty line is an acknowledgement without data.
"""
import json
import socket
import struct
import sys

plan = json.loads(sys.argv[1])
(source, sport), (destination, dport) = plan["from"], plan["to"]
family = socket.AF_INET6 if ":" in source else socket.AF_INET
source, destination = (socket.inet_pton(family, end) for end in (source, destination))
RST, ACK, PSH_ACK, TCP = 0x04, 0x10, 0x18, socket.IPPROTO_TCP
line = plan["line"]
flags, payload = (PSH_ACK, line.encode() + b"\r\n") if line else (RST if line is None else ACK, b"")


def checksum(data):
    data += bytes(len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


tcp = struct.pack("!HHIIHHHH", sport, dport, plan["seq"], plan["ack"], 0x5000 | flags, 500, 0, 0) + payload
pseudo = source + destination + struct.pack("!II", len(tcp), TCP)
tcp = tcp[:16] + struct.pack("!H", checksum(pseudo + tcp)) + tcp[18:]
if family == socket.AF_INET6:
    ethertype, ip = 0x86DD, struct.pack("!IHBB", 6 << 28, len(tcp), TCP, plan["ttl"]) + source + destination
else:
    def header(check):
        start = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(tcp), 0, 0, plan["ttl"], TCP, check)
        return start + source + destination
    ethertype, ip = 0x0800, header(checksum(header(0)))
wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
wire.bind(("eth0", 0))
router = bytes.fromhex(plan["router"].replace(":", ""))
wire.send(router + wire.getsockname()[4] + struct.pack("!H", ethertype) + ip + tcp)
