"""knock.py ADDRESS SOURCE PORT...: connects to all ports at once, and prints those that answer, whatever they say.

SOURCE is the address from which it connects; without one ("-") the system chooses it.
"""
import select
import socket
import sys
import time

address, source, *ports = sys.argv[1:]
poll = select.poll()
knocking = {}
for port in map(int, ports):
    one = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    one.setblocking(False)
    if source != "-":
        one.bind((source, 0))
    one.connect_ex((address, port))
    poll.register(one, select.POLLOUT)
    knocking[one.fileno()] = (one, port)
deadline = time.monotonic() + 0.7
while knocking and (left := deadline - time.monotonic()) > 0:
    for number, _ in poll.poll(left * 1000):
        poll.unregister(number)
        print(knocking.pop(number)[1], flush=True)
