"""crowd.py JSON: many control connections at once, either end of them.

JSON: {"serve": PORT}: a server that greets, answers each line with 530 if "answers" is set, and never reads otherwise.
JSON: {"host": H, "port": P, "connections": N, "say": [TEXT, ...], "times": T, "replies": BOOL}: opens N connections, one
after the other, reads a greeting on each, then says one of the texts T times on each, in turn; with "replies" it reads a line
then. Prints "ready" and keeps all of them open until it is ended.
"""
import json
import resource
import selectors
import signal
import socket
import sys

plan = json.loads(sys.argv[1])
most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))

if "serve" in plan:
    selector = selectors.DefaultSelector()
    listener = socket.create_server(("", plan["serve"]), backlog=1024)
    selector.register(listener, selectors.EVENT_READ)
    retained = []
    while True:
        for key, _ in selector.select():
            if key.fileobj is listener:
                client, _ = listener.accept()
                client.send(b"220 ready\r\n")
                retained.append(client)
                if plan.get("answers"):
                    selector.register(client, selectors.EVENT_READ)
                continue
            try:
                said = key.fileobj.recv(65536)
            except OSError:
                said = b""
            if said:
                key.fileobj.send(b"530 Please login with USER and PASS.\r\n" * said.count(b"\n"))
            else:
                selector.unregister(key.fileobj)

connections = []
for number in range(plan["connections"]):
    connection = socket.create_connection((plan["host"], plan["port"]), timeout=30)
    connection.recv(100)
    connections.append(connection)
    if plan.get("replies"):
        connection.send(plan["say"][0].encode())
        connection.recv(100)
if not plan.get("replies"):
    for number, connection in enumerate(connections):
        connection.setblocking(False)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 18)
        connection.send((plan["say"][number % len(plan["say"])] * plan["times"]).encode()[:65000])
print("ready", flush=True)
signal.pause()
