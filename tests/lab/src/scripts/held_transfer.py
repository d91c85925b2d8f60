"""held_transfer.py HOST USER PASSWORD MODE PATH GATE: one download that stops after its announcement.

Prints `announced` after the reply to the announcement, waits until the file GATE exists, downloads, and prints the
number of bytes. MODE is `active` or `passive`.
"""
import ftplib
import os
import socket
import sys
import time

host, user, password, mode, path, gate = sys.argv[1:]
patience = 15 * float(os.environ.get("FTP_ALG_LAB_PATIENCE", "1"))
ftp = ftplib.FTP(timeout=patience)
ftp.connect(host, 21)
ftp.login(user, password)
ftp.voidcmd("TYPE I")
if mode == "active":
    listener = ftp.makeport()
else:
    where = ftp.makepasv()
print("announced", flush=True)
while not os.path.exists(gate):
    time.sleep(0.01)
if mode == "active":
    ftp.sendcmd("RETR " + path)
    data, _ = listener.accept()
    data.settimeout(patience)
    listener.close()
else:
    data = socket.create_connection(where, patience)
    ftp.sendcmd("RETR " + path)
size = 0
while chunk := data.recv(65536):
    size += len(chunk)
data.close()
ftp.voidresp()
ftp.quit()
print("bytes", size, flush=True)
