"""fake_tls.py serve | HOST SERVERS IDLE AGAIN: either end of many control connections that begin TLS and never go on.

Both ends say AUTH TLS, its reply, and their hellos. The client keeps IDLE connections, and then opens and resets one AGAIN
times, to each of the SERVERS addresses from HOST on in turn. It prints "ready", and keeps all of them until it is ended.
"""
import ipaddress
import resource
import selectors
import signal
import socket
import struct
import sys

CLIENT = b"\x16\x03\x01\x00\x0a\x01\x00\x00\x06client"
SERVER = b"\x16\x03\x03\x00\x0a\x02\x00\x00\x06server"
ANSWERS = {b"AUTH TLS\r\n": b"234 go\r\n", CLIENT: SERVER}
most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def serve():
    selector = selectors.DefaultSelector()
    listener = socket.create_server(("", 21), backlog=1024)
    selector.register(listener, selectors.EVENT_READ)
    while True:
        for key, _ in selector.select():
            one = key.fileobj
            if one is listener:
                one, _ = listener.accept()
                one.send(b"220 ready\r\n")
                selector.register(one, selectors.EVENT_READ)
                continue
            try:
                said = one.recv(4096)
            except OSError:
                said = b""
            if said:
                one.send(ANSWERS[said])
            else:
                selector.unregister(one)
                one.close()


def begin(number):
    host = ipaddress.ip_address(sys.argv[1]) + number % int(sys.argv[2])
    one = socket.create_connection((str(host), 21), timeout=30)
    one.recv(100)
    for said, answer in ANSWERS.items():
        one.send(said)
        assert one.recv(100) == answer
    return one


if sys.argv[1] == "serve":
    serve()
idle, again = int(sys.argv[3]), int(sys.argv[4])
connections = [begin(number) for number in range(idle)]
for number in range(again):
    one = begin(number)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    one.close()
print("ready", flush=True)
signal.pause()
