"""many.py HOST USER PASSWORD MODE COUNT PATH: COUNT downloads in one session.

Prints one JSON object: transfers, errors (the first ten), seconds. Every download must be equal to the
first. MODE is `active` or `passive`, with `+ext` for EPRT and EPSV over IPv4.
"""
import ftplib
import json
import os
import socket
import sys
import time

host, user, password, mode, count, path = sys.argv[1:]
mode, _, extended = mode.partition("+")


class Ftp(ftplib.FTP):
    def sendport(self, host, port):
        return self.sendeprt(host, port) if extended else super().sendport(host, port)

    def makepasv(self):
        if not extended:
            return super().makepasv()
        return ftplib.parse229(self.sendcmd("EPSV"), self.sock.getpeername())


ftp = Ftp(timeout=15 * float(os.environ.get("FTP_ALG_LAB_PATIENCE", "1")))
ftp.connect(host, 21)
ftp.login(user, password)
ftp.set_pasv(mode == "passive")
# As in real FTP clients, Nagle's algorithm is off on the control connection.
ftp.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
first, errors, good, start = None, [], 0, time.monotonic()
for number in range(int(count)):
    parts = []
    try:
        ftp.retrbinary("RETR " + path, parts.append)
    except Exception as error:  # every error counts
        errors.append(f"transfer {number}: {error!r}")
        if len(errors) == 10:
            break
        continue
    body = b"".join(parts)
    first = body if first is None else first
    if body != first:
        errors.append(f"transfer {number}: wrong bytes")
    else:
        good += 1
try:
    ftp.quit()
except Exception as error:
    errors.append(f"QUIT: {error!r}")
print(json.dumps({"transfers": good, "errors": errors, "seconds": time.monotonic() - start}))
