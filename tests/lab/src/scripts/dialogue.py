"""dialogue.py JSON: plays the client or the server of recorded dialogues, with real data connections.

JSON: {"role": "client" or "server", "transcripts": [[FILE, ADDRESS], ...], "together": BOOL, "limit": SECONDS}
The server accepts one control connection for each transcript, in order. The client connects to ADDRESS for each.
With `together`, successive lines of one sender go into one segment. An end that waits for longer than `limit` gives up.

Each line of a transcript is one event. Blank lines and lines that start with `#` are ignored:
  S: TEXT          the server sends TEXT and CR LF
  C: TEXT          the client sends TEXT and CR LF
  -- connect       the receiver of the last announcement opens the data connection
  -- download N    the server sends N bytes on the data connection, which is opened if necessary and then closed
  -- upload N      the client sends N bytes in the same way
  -- unused        nobody connects: the sender of the announcement stops listening
Placeholders in TEXT: {host-port} is the sender's address and a port on which it listens, as in PORT. {family},
{address} and {port} are the same for EPRT. {here} is the sender's address. {announced-address} and {announced-port} are
from the last announcement that the sender received. {blank} is a blank, for the end of a line, and {empty} nothing. {lf}
at the end of TEXT has LF alone in place of CR LF, and {cr} has CR CR LF. {xHH} is the byte with this hexadecimal number.

Prints a JSON object for each transcript: {"file", "peer": address of the other end of the control connection,
"said": [TEXT], "heard": [TEXT] with line ends, "announced": [{"line": index in heard, "address"}],
"data": [{"peer", "moved": N, "sha256"}], "error": TEXT or null}.
"""
import hashlib
import json
import re
import socket
import sys

plan = json.loads(sys.argv[1])
# The server has the shorter time limit, so that it accepts again when the client starts the next dialogue.
LIMIT = plan.get("limit", 30) * (1 if plan["role"] == "server" else 2)
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


def with_line_end(text):
    text = text.replace("{blank}", " ").replace("{empty}", "").replace("{cr}", "\r")
    text = re.sub(r"\{x([0-9a-f]{2})\}", lambda byte: chr(int(byte[1], 16)), text)
    return text.replace("{lf}", "\n") if text.endswith("{lf}") else text + "\r\n"


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
        self.listener = self.data = self.announced = None
        self.report = {"peer": self.peer, "said": [], "heard": [], "announced": [], "data": []}

    def say(self, text):
        if any(place in text for place in ANNOUNCING):
            self.unlisten()
            self.listener, self.announced = listen(self.here), None
            port = self.listener.getsockname()[1]
            numbers = [*self.here.split("."), str(port >> 8), str(port & 255)]
            text = text.replace("{host-port}", ",".join(numbers))
            text = text.replace("{family}", "2" if ":" in self.here else "1")
            text = text.replace("{address}", self.here).replace("{port}", str(port))
        text = text.replace("{here}", self.here)
        if self.announced:
            text = text.replace("{announced-address}", self.announced[0])
            text = text.replace("{announced-port}", str(self.announced[1]))
        text = with_line_end(text)
        self.report["said"].append(text)
        self.unsent += text.encode("latin-1")

    def flush(self):
        if self.unsent:
            self.control.sendall(self.unsent)
            self.unsent = b""

    def hear(self, expected):
        while b"\n" not in self.pending:
            more = self.control.recv(4096)
            if not more:
                raise EOFError(f"control connection closed instead of {expected!r}")
            self.pending += more
        line, self.pending = self.pending.split(b"\n", 1)
        line = line.decode("latin-1") + "\n"
        self.report["heard"].append(line)
        pattern = re.escape(with_line_end(expected))
        announces = False
        for place, form in ANNOUNCING.items():
            announces = announces or place in expected
            pattern = pattern.replace(re.escape(place), form)
        for place in ("{here}", "{announced-address}", "{announced-port}"):
            pattern = pattern.replace(re.escape(place), "[0-9a-f.:]+")
        if expected.startswith("227 "):
            # A rewrite adds blanks to preserve the length of the line if the new address is shorter.
            pattern = pattern.replace(r"\ \(", r"\ +\(", 1)
        read = re.fullmatch(pattern, line)
        if not read:
            raise ValueError(f"{line!r} is not {expected!r}")
        if announces:
            found = read.groupdict()
            if found.get("host"):
                self.announced = (found["host"].replace(",", "."), int(found["high"]) * 256 + int(found["low"]))
            else:
                self.announced = (found.get("address") or self.peer, int(found["port"]))
            self.unlisten()
            self.report["announced"].append({"line": len(self.report["heard"]) - 1, "address": self.announced[0]})

    def unlisten(self):
        if self.listener:
            self.listener.close()
        self.listener = None

    def connect(self):
        if self.listener:
            self.data, peer = self.listener.accept()
            peer = plain(peer[0])
        else:
            self.data = socket.socket(family(self.announced[0]))
            if role == "S":
                self.data.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                self.data.bind((anywhere(self.announced[0]), 20))
            self.data.settimeout(LIMIT)
            self.data.connect(self.announced)
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
