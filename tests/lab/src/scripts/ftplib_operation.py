"""ftplib_operation.py HOST PORT USER PASSWORD VERB get|put|list NAME LOCAL off|explicit|implicit: one operation with ftplib.

VERB is PORT, PASV, EPRT or EPSV. ftplib itself would choose by the IP version. The last argument is about TLS.
"""
import ftplib
import os
import socket
import ssl
import sys

host, port, user, password, verb, operation, name, local, tls = sys.argv[1:]


class Client(ftplib.FTP if tls == "off" else ftplib.FTP_TLS):
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

    def getresp(self):
        if tls == "implicit" and not isinstance(self.sock, ssl.SSLSocket):
            # This would be the greeting.
            self.sock = self.context.wrap_socket(self.sock)
            self.file = self.sock.makefile("r", encoding=self.encoding)
        return super().getresp()

    def ntransfercmd(self, cmd, rest=None):
        if tls == "off":
            return super().ntransfercmd(cmd, rest)
        data, size = ftplib.FTP.ntransfercmd(self, cmd, rest)
        return self.context.wrap_socket(data, session=self.sock.session), size


ftp = Client(timeout=8 * float(os.environ.get("FTP_ALG_LAB_PATIENCE", "1")))
ftp.connect(host, int(port))
ftp.login(user, password)
if tls != "off":
    ftp.prot_p()
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
