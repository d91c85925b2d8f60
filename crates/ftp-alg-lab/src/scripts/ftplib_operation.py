"""ftplib_operation.py HOST PORT USER PASSWORD VERB get|put|list NAME LOCAL: one operation with ftplib.

VERB is PORT, PASV, EPRT or EPSV. ftplib itself would choose by the IP version.
"""
import ftplib
import socket
import sys

host, port, user, password, verb, operation, name, local = sys.argv[1:]


class Client(ftplib.FTP):
    trust_server_pasv_ipv4_address = True

    def makeport(self):
        listener = socket.create_server(("", 0), family=self.af, backlog=1)
        announce = self.sendeprt if verb == "EPRT" else self.sendport
        announce(self.sock.getsockname()[0], listener.getsockname()[1])
        listener.settimeout(self.timeout)
        return listener

    def makepasv(self):
        if verb == "EPSV":
            return ftplib.parse229(self.sendcmd("EPSV"), self.sock.getpeername())
        return ftplib.parse227(self.sendcmd("PASV"))


ftp = Client(timeout=8)
ftp.connect(host, int(port))
ftp.login(user, password)
ftp.set_pasv(verb in ("PASV", "EPSV"))
if operation == "get":
    with open(local, "wb") as file:
        ftp.retrbinary("RETR pub/" + name, file.write)
elif operation == "put":
    with open(local, "rb") as file:
        ftp.storbinary("STOR pub/" + name, file)
else:
    ftp.dir("pub")
ftp.quit()
