"""dialogue.py JSON: one end of dialogues that are written down in files, with real data connections.

JSON: {"role": "client" or "server", "transcripts": [[FILE, ADDRESS], ...], "together": BOOL}
The server takes one control connection for each transcript, in their order; the client dials ADDRESS
for each. `together` sends successive lines of one speaker in one segment.

A transcript has one thing a line; blank lines and those that start with `#` are not read:
  S: TEXT          the server says this (CR LF is added)
  C: TEXT          the client does
  -- connect       the data connection is opened by whom the last announcement was made to
  -- download N    N bytes come down it, which is opened first if it is not; then it is closed
  -- upload N      the same, up
  -- unused        nobody connects: who announced does not listen any more
In TEXT, {host-port} is the address of the speaker and a port it listens on, as in PORT; {family},
{address} and {port} are the same as in EPRT. {here} is the speaker's address, {told-address} and
{told-port} what was announced to it last, {blank} a blank that an editor would take from a line's end.

Prints a JSON object for each transcript: {"file", "peer": the other end of the control connection,
"said": [TEXT], "heard": [TEXT] with their line ends, "told": [{"line": number in heard, "address"}],
"data": [{"peer", "moved": N, "sha256"}], "error": TEXT or null}.
"""
import hashlib
import json
import re
import socket
import sys

plan = json.loads(sys.argv[1])
# The server gives up first, to be there when the client dials for the next dialogue.
LIMIT = 6 if plan["role"] == "server" else 10
role, other = ("S", "C") if plan["role"] == "server" else ("C", "S")
ANNOUNCING = {
    "{host-port}": r"(?P<host>\d+,\d+,\d+,\d+),(?P<high>\d+),(?P<low>\d+)",
    "{family}": r"[12]",
    "{address}": r"(?P<address>[0-9a-f.:]+)",
    "{port}": r"(?P<port>\d+)",
}


def plain(address):
    return address[7:] if address.startswith("::ffff:") else address


def family(address):
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def anywhere(address):
    return "::" if ":" in address else "0.0.0.0"


def listen(here, port=0):
    listener = socket.socket(family(here))
    listener.settimeout(LIMIT)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((anywhere(here), port))
    listener.listen(5)
    return listener


def body(count, seed):
    return bytes((n * 7 + seed) % 251 for n in range(count))


class End:
    def __init__(self, control):
        control.settimeout(LIMIT)
        control.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.control, self.pending, self.unsent = control, b"", b""
        self.here = plain(control.getsockname()[0])
        self.peer = plain(control.getpeername()[0])
        self.listener = self.data = self.told = None
        self.report = {"peer": self.peer, "said": [], "heard": [], "told": [], "data": []}

    def say(self, text):
        if any(place in text for place in ANNOUNCING):
            self.unlisten()
            self.listener, self.told = listen(self.here), None
            port = self.listener.getsockname()[1]
            numbers = [*self.here.split("."), str(port >> 8), str(port & 255)]
            text = text.replace("{host-port}", ",".join(numbers))
            text = text.replace("{family}", "2" if ":" in self.here else "1")
            text = text.replace("{address}", self.here).replace("{port}", str(port))
        text = text.replace("{here}", self.here).replace("{blank}", " ")
        if self.told:
            text = text.replace("{told-address}", self.told[0])
            text = text.replace("{told-port}", str(self.told[1]))
        self.report["said"].append(text + "\r\n")
        self.unsent += text.encode("latin-1") + b"\r\n"

    def flush(self):
        if self.unsent:
            self.control.sendall(self.unsent)
            self.unsent = b""

    def hear(self, expected):
        while b"\n" not in self.pending:
            more = self.control.recv(4096)
            if not more:
                raise EOFError(f"no {expected!r}: the control connection ended")
            self.pending += more
        line, self.pending = self.pending.split(b"\n", 1)
        line = line.decode("latin-1") + "\n"
        self.report["heard"].append(line)
        pattern = re.escape(expected)
        announces = False
        for place, form in ANNOUNCING.items():
            announces = announces or place in expected
            pattern = pattern.replace(re.escape(place), form)
        for place in ("{here}", "{told-address}", "{told-port}"):
            pattern = pattern.replace(re.escape(place), "[0-9a-f.:]+")
        pattern = pattern.replace(re.escape("{blank}"), " ")
        if expected.startswith("227 "):
            # More blanks keep the length of a line that names a shorter address.
            pattern = pattern.replace(r"\ \(", r"\ +\(", 1)
        read = re.fullmatch(pattern + "\r\n", line)
        if not read:
            raise ValueError(f"{line!r} is not {expected!r}")
        if announces:
            found = read.groupdict()
            if found.get("host"):
                self.told = (found["host"].replace(",", "."), int(found["high"]) * 256 + int(found["low"]))
            else:
                self.told = (found.get("address") or self.peer, int(found["port"]))
            self.unlisten()
            self.report["told"].append({"line": len(self.report["heard"]) - 1, "address": self.told[0]})

    def unlisten(self):
        if self.listener:
            self.listener.close()
        self.listener = None

    def connect(self):
        if self.listener:
            self.data, peer = self.listener.accept()
            peer = plain(peer[0])
        else:
            self.data = socket.socket(family(self.told[0]))
            if role == "S":
                self.data.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                self.data.bind((anywhere(self.told[0]), 20))
            self.data.settimeout(LIMIT)
            self.data.connect(self.told)
            peer = plain(self.data.getpeername()[0])
        self.data.settimeout(LIMIT)
        self.unlisten()
        self.report["data"].append({"peer": peer})

    def move(self, count, sender):
        if not self.data:
            self.connect()
        if sender == role:
            moved = body(count, len(self.report["data"]))
            self.data.sendall(moved)
        else:
            moved = b""
            while chunk := self.data.recv(65536):
                moved += chunk
        self.data.close()
        self.data = None
        digest = hashlib.sha256(moved).hexdigest()
        self.report["data"][-1].update(moved=len(moved), sha256=digest)

    def play(self, lines):
        for line in lines:
            verb, _, rest = line.partition(" ")
            if verb == role + ":":
                self.say(rest)
                if not plan.get("together"):
                    self.flush()
                continue
            self.flush()
            if verb == other + ":":
                self.hear(rest)
            elif rest == "connect":
                self.connect()
            elif rest == "unused":
                self.unlisten()
            elif rest.split()[0] in ("download", "upload"):
                what, count = rest.split()
                self.move(int(count), "S" if what == "download" else "C")
            else:
                raise ValueError(f"{line!r} is no line of a transcript")
        self.flush()


def run(file, control):
    with open(file, encoding="latin-1") as opened:
        lines = [line.rstrip("\n") for line in opened]
    end, error = End(control), None
    try:
        end.play([line for line in lines if line and not line.startswith("#")])
    except Exception as problem:
        error = repr(problem)
    for held in (end.listener, end.data, control):
        if held:
            held.close()
    print(json.dumps({"file": file, "error": error, **end.report}), flush=True)


if role == "S":
    entrance = socket.socket(socket.AF_INET6)
    entrance.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    entrance.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    entrance.bind(("::", 21))
    entrance.listen(5)
for file, address in plan["transcripts"]:
    run(file, entrance.accept()[0] if role == "S" else socket.create_connection((address, 21), LIMIT))
