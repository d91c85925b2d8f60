"""connect.py ADDRESS PORT [SECONDS]: connects, and prints `open`, `refused`, `silent` or the error."""
import errno
import socket
import sys

address, port = sys.argv[1], int(sys.argv[2])
limit = float(sys.argv[3]) if len(sys.argv) > 3 else 1.0
try:
    socket.create_connection((address, port), limit).close()
    print("open")
except TimeoutError:
    print("silent")
except OSError as error:
    print("refused" if error.errno == errno.ECONNREFUSED else error.strerror)
