"""serve_pyftpdlib.py ROOT USER PASSWORD: pyftpdlib on port 21, IPv4 and IPv6."""
import logging
import os
import sys
import warnings

warnings.simplefilter("ignore")
from pyftpdlib.authorizers import DummyAuthorizer  # noqa: E402
from pyftpdlib.handlers import FTPHandler  # noqa: E402
from pyftpdlib.servers import MultiprocessFTPServer  # noqa: E402

root, user, password = sys.argv[1:]
logging.basicConfig(level=logging.WARNING)
os.umask(0o022)
authorizer = DummyAuthorizer()
authorizer.add_user(user, password, root, perm="elradfmwMT")
authorizer.add_anonymous(root)
FTPHandler.authorizer = authorizer
# One socket for both IP versions, as with systemd socket activation. Each session has a process, because in a single
# event loop a session sometimes hangs when other sessions are closed at the same time.
MultiprocessFTPServer(("::", 21), FTPHandler).serve_forever()
