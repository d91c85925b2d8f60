"""serve_pyftpdlib.py ROOT USER PASSWORD [CERTIFICATE PORT FIRST LAST ADDRESS]: pyftpdlib on port 21, IPv4 and IPv6.

With CERTIFICATE it speaks TLS on PORT, from the first byte on port 990. Its passive ports are FIRST to LAST, and it
announces ADDRESS in place of its own one, unless that is empty.
"""
import logging
import os
import sys
import warnings

warnings.simplefilter("ignore")
from pyftpdlib import handlers  # noqa: E402
from pyftpdlib.authorizers import DummyAuthorizer  # noqa: E402
from pyftpdlib.servers import MultiprocessFTPServer  # noqa: E402

root, user, password, *tls = sys.argv[1:]
logging.basicConfig(level=logging.WARNING)
os.umask(0o022)
authorizer = DummyAuthorizer()
authorizer.add_user(user, password, root, perm="elradfmwMT")
authorizer.add_anonymous(root)
handler, port = handlers.FTPHandler, 21
if tls:
    class Data(handlers.TLS_DTPHandler):
        def readable(self):
            # pyftpdlib closes what is readable before the command. curl begins TLS before it sends the command.
            return self._ssl_accepting or super().readable()

    class Implicit(handlers.TLS_FTPHandler):
        def handle(self):
            self.secure_connection(self.ssl_context)

        def handle_ssl_established(self):
            super().handle()

        def ftp_AUTH(self, line):
            self.respond("503 Already using TLS.")

    certificate, port, first, last, address = tls[0], int(tls[1]), int(tls[2]), int(tls[3]), tls[4]
    handler = Implicit if port == 990 else handlers.TLS_FTPHandler
    handler.certfile, handler.dtp_handler = certificate, Data
    handler.tls_control_required = handler.tls_data_required = True
    handler.passive_ports, handler.masquerade_address = range(first, last + 1), address or None
handler.authorizer = authorizer
# One socket for both IP versions, as with systemd socket activation. Each session has a process, because in a single
# event loop a session sometimes hangs when other sessions are closed at the same time.
MultiprocessFTPServer(("::", port), handler).serve_forever()
