"""both_ends.py HOST: answers the SYN of HOST's data connection with a SYN, and says whether HOST answers that.

It would need no SYN-ACK then, and could forge one that HOST never gets.
"""
import ftplib
import socket
import struct
import sys

SYN, ACK, TCP = 2, 16, socket.IPPROTO_TCP
# Its kernel would reset what nobody waits for: see the test.
PORT = 4000


def checksum(text):
    total = sum(struct.unpack(f"!{len(text) // 2}H", text))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def wait_for(wire, wanted):
    """The port of the first segment to PORT with these flags."""
    while True:
        packet = wire.recv(65536)
        sport, dport = struct.unpack("!HH", packet[20:24])
        if packet[9] == TCP and dport == PORT and packet[33] & (SYN | ACK) == wanted:
            return sport


ftp = ftplib.FTP(sys.argv[1], "lab", "lab", timeout=60)
own, server = ftp.sock.getsockname()[0], ftp.sock.getpeername()[0]
wire = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0800))
wire.settimeout(2)
ftp.sendport(own, PORT)
ftp.putcmd("RETR /f")
sport = wait_for(wire, SYN)
ends = socket.inet_aton(own) + socket.inet_aton(server)
tcp = struct.pack("!HHIIHHHH", PORT, sport, 1000, 0, 0x5000 | SYN, 500, 0, 0)
check = checksum(ends + struct.pack("!HH", TCP, len(tcp)) + tcp)
tcp = tcp[:16] + struct.pack("!H", check) + tcp[18:]
with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
    raw.sendto(struct.pack("!BBHHHBBH", 0x45, 0, 40, 1, 0, 64, TCP, 0) + ends + tcp, (server, 0))
try:
    wait_for(wire, SYN | ACK)
    print("answered")
except TimeoutError:
    print("silent")
