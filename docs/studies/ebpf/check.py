"""Holds both ends of control connections through the gateway, and says whether what is opened is what should be.

check.py CLIENT-NS GATEWAY-NS SERVER-NS PINHOLE-SECONDS masquerade|routed
"""
import contextlib, ctypes, os, re, socket, subprocess, sys, time

CLIENT, GATEWAY, SERVER = sys.argv[1:4]
PINHOLE_SECONDS, MASQUERADED = int(sys.argv[4]), sys.argv[5] == "masquerade"
C, S, THIRD, OTHER_CLIENT = "10.77.1.2", "10.77.2.2", "10.77.2.3", "10.77.1.3"
WAIT = 0.4  # a SYN that is dropped is retransmitted after a second
libc = ctypes.CDLL(None, use_errno=True)
failed = 0


@contextlib.contextmanager
def inside(namespace):
    home, there = os.open("/proc/self/ns/net", os.O_RDONLY), os.open(f"/run/netns/{namespace}", os.O_RDONLY)
    assert libc.setns(there, 0) == 0
    try:
        yield
    finally:
        assert libc.setns(home, 0) == 0
        os.close(home), os.close(there)


def listen(namespace, address, port=0):
    with inside(namespace):
        s = socket.socket()
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.bind((address, port))
    s.listen()
    s.settimeout(2)
    return s


def connect(namespace, source, target, patience=2):
    with inside(namespace):
        s = socket.socket()
    s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    s.settimeout(patience)
    s.bind((source, 0))
    s.connect(target)
    return s


def opens(listener, namespace=CLIENT, source=C):
    """Whether a connection gets through to `listener`, and carries bytes."""
    try:
        one = connect(namespace, source, listener.getsockname(), WAIT)
        other, _ = listener.accept()
        other.sendall(b"data")
        return one.recv(4) == b"data"
    except (TimeoutError, socket.timeout):
        return False


def queued():
    """Packets that the queue's rule has counted."""
    rules = subprocess.run(["ip", "netns", "exec", GATEWAY, "nft", "list", "chain", "ip", "mangle", "queued"],
                           capture_output=True, text=True, check=True).stdout
    return int(re.search(r"counter packets (\d+)", rules).group(1))


class Control:
    """A control connection, of which both ends are ours."""

    def __init__(self, login=True):
        door = listen(SERVER, S, 21)
        self.client = connect(CLIENT, C, (S, 21))
        self.server, _ = door.accept()
        self.server.settimeout(2)
        self.server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        door.close()
        if login:
            self.reply("220-hello\r\n here\r\n220 ready\r\n")
            self.say("USER x\r\n", "331 password\r\n")
            self.say("PASS x\r\n", "230 in\r\n")

    def reply(self, *pieces):
        for piece in pieces:
            self.server.sendall(piece.encode())
            assert self.client.recv(4096) == piece.encode()

    def say(self, line, *reply):
        self.client.sendall(line.encode())
        assert self.server.recv(4096) == line.encode()
        self.reply(*reply)

    def close(self):
        self.client.close()
        self.server.close()


def host_port(address, port):
    return f"{address.replace('.', ',')},{port >> 8},{port & 255}"


def passive(listener):
    address, port = listener.getsockname()
    return f"227 Entering Passive Mode ({host_port(address, port)}).\r\n"


def case(name, wanted, got):
    global failed
    failed += wanted != got
    print(f"{'ok    ' if wanted == got else 'FAILED'} {name}: {got}" + ("" if wanted == got else f", not {wanted}"))


data = listen(SERVER, S)
before = queued()
control = Control()
control.say("PASV\r\n", passive(data))
case("a passive transfer passes default drop", True, opens(data))
case("a second connection through its pinhole", False, opens(data))
control.say("RETR x\r\n", "150 here\r\n", "226 done\r\n")
control.say("EPSV\r\n", f"229 Entering Extended Passive Mode (|||{data.getsockname()[1]}|)\r\n")
case("from another address of the client's network", False, opens(data, source=OTHER_CLIENT))
case("and then from the client, EPSV", True, opens(data))
control.say("PASV\r\n", passive(data))
time.sleep(PINHOLE_SECONDS + 0.1)
case("after its deadline", False, opens(data))
control.say("PASV\r\n", passive(data))
control.say("QUIT\r\n", "221 bye\r\n")
control.close()
time.sleep(0.1)
case("after the control connection has ended", False, opens(data))
case("packets queued for all of this", 0, queued() - before)

third, low = listen(SERVER, THIRD), listen(SERVER, S, 1023)
READ = "read"  # text inside a reply is inspected like any other, and not queued
for name, target, dialogue, *read in [
    ("a 227 to a third host", third, lambda c: c.say("PASV\r\n", passive(third))),
    ("a 227 to a port below 1024", low, lambda c: c.say("PASV\r\n", passive(low))),
    ("a 227 that nobody asked for", data, lambda c: c.reply(passive(data))),
    ("a 227 after another command", data, lambda c: c.say("NOOP\r\n", passive(data))),
    ("a second 227 to one PASV", third, lambda c: (c.say("PASV\r\n", passive(data)), c.reply(passive(third)))),
    ("a 227 inside a multi-line reply", data,
     lambda c: c.say("STAT\r\n", f"211-Status\r\n{passive(data)}211 End\r\n"), READ),
    ("the same, to a PASV", data, lambda c: c.say("PASV\r\n", f"211-Status\r\n{passive(data)}211 End\r\n"), READ),
    ("the same, in segments", data, lambda c: c.say("PASV\r\n", "211-Status\r\n", passive(data)), READ),
    ("a 227 with seven numbers", data, lambda c: c.say("PASV\r\n", passive(data).replace("Mode (", "Mode (1,"))),
    ("a 227 in two segments", data, lambda c: c.say("PASV\r\n", passive(data)[:20], passive(data)[20:])),
    ("a PASV in two segments", data, lambda c: (c.say("PA"), c.say("SV\r\n", passive(data)))),
    ("two commands in one segment", data, lambda c: c.say("NOOP\r\nPASV\r\n", "200 ok\r\n" + passive(data))),
    ("after AUTH TLS", data, lambda c: (c.say("AUTH TLS\r\n", "502 no\r\n"), c.say("PASV\r\n", passive(data)))),
]:
    before, control = queued(), Control()
    dialogue(control)
    case(f"{name} opens", False, opens(target))
    case("  and is queued", not read, queued() > before)
    control.close()

control = Control(login=False)
control.reply("220 ready\r\n")
control.say("PASV\r\n", passive(data))
case("without a login", False, opens(data))
control.close()
control = Control(login=False)
control.say("POST / HTTP/1.1\r\n", "220 ready\r\n")
control.say("USER x\r\n", "230 in\r\n")
control.say("PASV\r\n", passive(data))
case("where the client speaks first, and no FTP", False, opens(data))
control.close()

inner = listen(CLIENT, C)
before, control = queued(), Control()
port = f"PORT {host_port(C, inner.getsockname()[1])}\r\n"
control.say(port, "200 ok\r\n")
if MASQUERADED:
    case("PORT through masquerade opens (its rewrite is user space's)", False, opens(inner, SERVER, S))
    case("  and is queued", True, queued() > before)
else:
    case("PORT through a routed firewall", True, opens(inner, SERVER, S))
    case("  once", False, opens(inner, SERVER, S))
    control.say(port, "200 ok\r\n")
    case("  from another host", False, opens(inner, SERVER, THIRD))
    control.say(f"EPRT |1|{C}|{inner.getsockname()[1]}|\r\n", "200 ok\r\n")
    case("EPRT", True, opens(inner, SERVER, S))
    control.say(port, "500 no\r\n")
    case("a PORT that the server refused", False, opens(inner, SERVER, S))
    case("packets queued for all of this", 0, queued() - before)
    control.say(f"PORT {host_port(OTHER_CLIENT, 5000)}\r\n")
    case("a PORT to a third host is queued", True, queued() > before)
sys.exit(failed > 0)
