"""server.py JSON: an FTP server that sends exactly the given replies.

JSON (all optional): {"port": 21, "address": "192.168.150.90", "passive_port": 50069, "body": TEXT,
"cut": [OFFSETS] or "bytes" or "each", "pause": SECONDS, "nodelay": true, "pasv_reply": TEXT, "greeting": TEXT,
"active_source": 20, "extra": {"VERB" or "WHOLE LINE": "REPLY"}, "cut_before": TEXT,
"read_as": {"VERB": "RETR"}}
{} in `body` stands for the argument of the command. Every reply is cut before `cut_before`. If `greeting` is null, the
server sends no greeting. A REPLY {"reply": TEXT, "urgent": N} is sent with urgent byte N.
PASV answers `227 Entering Passive Mode (h1,h2,h3,h4,p1,p2)` and EPSV `229 ...`, cut as in `cut` (`each`: the
n-th announcement is cut after its n-th byte). Standard output has a JSON object for each control line received,
{"line": TEXT, "from": ADDRESS}, and for each data connection, {"data": ADDRESS}.
"""
import errno
import json
import re
import socket
import sys
import threading
import time

plan = json.loads(sys.argv[1]) if len(sys.argv) > 1 else {}
body = plan.get("body", "the body\r\n")
lock = threading.Lock()


def say(**what):
    with lock:
        print(json.dumps(what), flush=True)


def plain(address):
    return address[7:] if address.startswith("::ffff:") else address


def when_free(act):
    """Waits until an earlier connection has freed the port that `act` takes: until its last packets have come."""
    deadline = time.monotonic() + 10
    while True:
        try:
            return act()
        except OSError as error:
            if error.errno not in (errno.EADDRINUSE, errno.EADDRNOTAVAIL) or time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def listen(port):
    listener = socket.socket(socket.AF_INET6)
    listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    when_free(lambda: listener.bind(("::", port)))
    listener.listen(64)
    return listener


class Session:
    def __init__(self, control, peer):
        self.control, self.peer = control, plain(peer)
        self.target = self.listener = None
        self.announcements = 0
        self.control.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY,
                                1 if plan.get("nodelay", True) else 0)

    def send(self, text, announcement=False):
        data = text.encode("latin-1") + b"\r\n"
        cut = plan.get("cut", []) if announcement else []
        if cut == "each":
            self.announcements += 1
            cut = [1 + (self.announcements - 1) % (len(data) - 1)]
        if plan.get("cut_before") and plan["cut_before"] in text:
            cut = [text.index(plan["cut_before"])]
        edges = list(range(len(data) + 1)) if cut == "bytes" else [0, *cut, len(data)]
        for start, end in zip(edges, edges[1:]):
            if start and plan.get("pause"):
                time.sleep(plan["pause"])
            self.control.sendall(data[start:end])

    def passive(self):
        if self.listener:
            self.listener.close()
        self.listener, self.target = listen(plan.get("passive_port", 0)), None
        return self.listener.getsockname()[1]

    def data(self):
        if self.listener:
            self.listener.settimeout(8)
            data, peer = self.listener.accept()
            self.listener.close()
            self.listener = None
        else:
            family = socket.AF_INET6 if ":" in self.target[0] else socket.AF_INET
            data = socket.socket(family)
            data.settimeout(8)
            data.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if plan.get("active_source"):
                here = "::" if family == socket.AF_INET6 else "0.0.0.0"
                data.bind((here, plan["active_source"]))
            when_free(lambda: data.connect(self.target))
            peer = self.target
        say(data=plain(peer[0]))
        return data

    def transfer(self, verb, argument):
        if not (self.listener or self.target):
            return self.send("425 Where to?")
        self.send("150 Here it comes")
        try:
            data = self.data()
        except OSError as error:
            return self.send(f"425 {error}")
        if verb == "STOR":
            while data.recv(1 << 20, socket.MSG_TRUNC):  # discards without a copy
                pass
        else:
            data.sendall(body.replace("{}", argument).encode("latin-1"))
        data.close()
        self.send("226 Done")

    def command(self, line):
        verb, _, argument = line.strip().partition(" ")
        verb = plan.get("read_as", {}).get(verb.upper(), verb.upper())
        extra = plan.get("extra", {})
        if line in extra or verb in extra:
            text = extra.get(line) or extra[verb]
            if isinstance(text, dict):
                data, cut = text["reply"].encode("latin-1") + b"\r\n", text["urgent"]
                self.control.sendall(data[:cut], socket.MSG_OOB)
                time.sleep(0.1)
                return self.control.sendall(data[cut:])
            self.send(text)
        elif verb == "USER":
            self.send("331 Password please")
        elif verb == "PASS":
            self.send("230 Welcome")
        elif verb == "PORT":
            numbers = re.fullmatch(r"\s*(\d+),(\d+),(\d+),(\d+),(\d+),(\d+)\s*", argument)
            if not numbers:
                return self.send("501 Bad host-port")
            n = numbers.groups()
            self.target = (".".join(n[:4]), int(n[4]) * 256 + int(n[5]))
            self.send("200 PORT command successful")
        elif verb == "EPRT":
            parts = argument.split(argument[:1] or "|")
            if len(parts) != 5:
                return self.send("501 Bad EPRT")
            self.target = (parts[2], int(parts[3]))
            self.send("200 EPRT command successful")
        elif verb == "PASV":
            port = self.passive()
            here = plan.get("address") or plain(self.control.getsockname()[0])
            text = plan.get("pasv_reply", "227 Entering Passive Mode ({})")
            hostport = ",".join([*here.split("."), str(port // 256), str(port % 256)])
            self.send(text.replace("{}", hostport), announcement=True)
        elif verb == "EPSV":
            port = self.passive()
            self.send(f"229 Entering Extended Passive Mode (|||{port}|)", announcement=True)
        elif verb in ("RETR", "NLST", "LIST", "STOR"):
            self.transfer(verb, argument)
        elif verb == "TYPE":
            self.send("200 Type set")
        elif verb == "NOOP":
            self.send("200 Noop")
        elif verb == "QUIT":
            self.send("221 Bye")
            return True
        else:
            self.send("500 Unknown command")

    def run(self):
        try:
            self.converse()
        finally:
            if self.listener:
                self.listener.close()

    def converse(self):
        if greeting := plan.get("greeting", "220 Scripted server"):
            self.send(greeting)
        pending = b""
        while more := self.control.recv(1 << 18):
            pending += more
            while b"\n" in pending:
                line, pending = pending.split(b"\n", 1)
                line = line.rstrip(b"\r").decode("latin-1")
                say(line=line, **{"from": self.peer})
                if self.command(line):
                    return


def serve(control, peer):
    try:
        with control:
            Session(control, peer[0]).run()
    except OSError as error:
        say(error=repr(error))


listener = listen(plan.get("port", 21))
while True:
    threading.Thread(target=serve, args=listener.accept(), daemon=True).start()
