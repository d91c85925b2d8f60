"""client.py JSON: an FTP client that sends exactly the given bytes.

JSON: {"host": H, "port": 21, "source": ADDRESS, "nodelay": true, "listen": [PORTS], "steps": [STEP, ...]}
`source` is the address from which it connects and on which it listens. Without it, the system chooses the source
address, and the client listens on all addresses: at the ports of "listen", and where it accepts. "buffer": BYTES
limits the unacknowledged data. "timeout": SECONDS is how long it waits for a data connection. For all else it waits as
long, but not shorter than usual.
A STEP is one of
  {"send": "TEXT", "cut": [OFFSETS], "pause": SECONDS, "urgent": false}
        sends TEXT (latin-1, with its line end) in segments cut at OFFSETS, with `pause` between them;
        "urgent": true makes the last byte of each segment urgent; "bytes": true cuts at every byte;
        "times": N sends TEXT N times; "ports": [FIRST, END] sends TEXT for each port before END, and {} in TEXT
        stands for the port as in PORT
  {"taken": "TEXT", "segments": [[OFFSET, "TEXT", HOW], ...]}
        the system believes that TEXT was sent, and waits for its acknowledgement. Instead, these segments are
        sent, at these offsets from the start of TEXT. HOW is optional:
        "options": BYTES of IPv6 destination options; "urgent": an urgent pointer; "pause": SECONDS after the segment
        instead of 0.01
  {"reply": true}           reads one complete reply; "count": N reads N replies and returns the last
  {"accept": PORT}          accepts a data connection and reads it to its end; "sum": true as at {"drain": true}
  {"accept": PORT, "write": "TEXT"}   writes instead of reading
  {"dial": true}            connects to the endpoint of the last 227 or 229, and reads
  {"dial": true, "later": true}   connects in the same way, but reads at {"drain": true}
  {"drain": true}           reads what was dialled; "sum": true returns the SHA-256 of the bytes, "abort": true resets it then
  {"tls": "control"}        begins TLS on the control connection
  {"tls": "data"}           begins TLS on what was dialled, with the session of the control connection
  {"read": BYTES}           reads this many bytes of the control connection
  {"sleep": SECONDS}
  {"gate": FILE}            prints `gate` and waits until FILE exists
  {"abort": true}           resets the control connection
  {"close": true}           closes the control connection
  {"redial": true}          continues with another control connection; the previous one stays open
Prints one JSON object: {"steps": [{"ms": M, "got": TEXT}, ...], "error": TEXT or null}. `ms` is the
duration of the step, which shows a stall.
"""
import hashlib
import json
import os
import re
import select
import socket
import struct
import sys
import time

# linux/tcp.h: reading and setting the sequence numbers of a connection.
TCP_REPAIR, TCP_REPAIR_QUEUE, TCP_QUEUE_SEQ = 19, 20, 21
RECEIVE_QUEUE, SEND_QUEUE = 1, 2

plan = json.loads(sys.argv[1])
# The factor for busy and emulated machines, as in the rest of the lab.
PATIENCE = 8 * float(os.environ.get("FTP_ALG_LAB_PATIENCE", "1"))
DATA_TIMEOUT = plan.get("timeout", PATIENCE)
CONTROL_TIMEOUT = max(DATA_TIMEOUT, PATIENCE)
family = socket.AF_INET6 if ":" in plan["host"] else socket.AF_INET
listeners = {}
for port in {*plan.get("listen", []), *(step["accept"] for step in plan["steps"] if "accept" in step)}:
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((plan.get("source") or ("::" if family == socket.AF_INET6 else "0.0.0.0"), port))
    listener.listen(5)
    listener.settimeout(DATA_TIMEOUT)
    listeners[port] = listener

source = (plan["source"], 0) if plan.get("source") else None


def dial():
    global control, pending
    control, pending = socket.create_connection((plan["host"], plan.get("port", 21)), PATIENCE, source), b""
    control.settimeout(CONTROL_TIMEOUT)
    control.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1 if plan.get("nodelay", True) else 0)
    if plan.get("buffer"):
        control.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, plan["buffer"])
    dialled.append(control)


if any("tls" in step for step in plan["steps"]):
    # Most dialogues end sooner than this module is loaded.
    import ssl

    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
dialled = []
dial()
announced = None
waiting = None


def line():
    global pending
    while b"\n" not in pending:
        more = control.recv(4096)
        if not more:
            raise EOFError("control connection closed after " + repr(pending))
        pending += more
    text, pending = pending.split(b"\n", 1)
    return text.rstrip(b"\r").decode("latin-1")


def read(count):
    global pending
    while len(pending) < count:
        more = control.recv(4096)
        if not more:
            raise EOFError("control connection closed after " + repr(pending))
        pending += more
    text, pending = pending[:count], pending[count:]
    return text.decode("latin-1")


def reply():
    global announced
    lines = [line()]
    while lines[-1][:4] != lines[0][:3] + " ":
        lines.append(line())
    last = lines[-1]
    if match := re.search(r"^227 .*?(\d+),(\d+),(\d+),(\d+),(\d+),(\d+)", last):
        n = match.groups()
        announced = (".".join(n[:4]), int(n[4]) * 256 + int(n[5]))
    elif match := re.search(r"^229 .*\(.{3}(\d+).\)", last):
        announced = (plan["host"], int(match.group(1)))
    return "\n".join(lines)


def reset(connection):
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def drain(data, step=()):
    body = bytearray()
    while chunk := data.recv(65536):
        body += chunk
    reset(data) if "abort" in step else data.close()
    return hashlib.sha256(body).hexdigest() if "sum" in step else body.decode("latin-1")


def send_and_read(text):
    """Sends a long text and stores received bytes meanwhile, because two ends that only send would block each other."""
    global pending
    rest = memoryview(text)
    while rest:
        readable, writable, _ = select.select([control], [control], [], CONTROL_TIMEOUT)
        if not readable and not writable:
            raise TimeoutError("nothing can be sent")
        if readable:
            more = control.recv(1 << 20)
            if not more:
                raise EOFError("control connection closed after " + repr(pending))
            pending += more
        if writable:
            rest = rest[control.send(rest):]
    return ""


def send(step):
    text = step["send"].encode("latin-1") * step.get("times", 1)
    if "ports" in step:
        text = b"".join(text.replace(b"{}", b"%d,%d" % divmod(port, 256)) for port in range(*step["ports"]))
        return send_and_read(text)
    cuts = list(range(1, len(text))) if step.get("bytes") else step.get("cut", [])
    edges = [0, *cuts, len(text)]
    for start, end in zip(edges, edges[1:]):
        if start and step.get("pause"):
            time.sleep(step["pause"])
        control.sendall(text[start:end], socket.MSG_OOB if step.get("urgent") else 0)
    return ""


def next_number(queue):
    control.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR_QUEUE, queue)
    return control.getsockopt(socket.IPPROTO_TCP, TCP_QUEUE_SEQ) & 0xFFFFFFFF


def destination_options(length):
    """An IPv6 header of unknown options to be skipped; `length` is a multiple of 8."""
    body = b""
    while len(body) < length - 2:
        room = min(250, length - 4 - len(body))
        body += bytes([0x1E, room]) + b"\0" * room
    return bytes([socket.IPPROTO_TCP, length // 8 - 1]) + body


def taken(step):
    control.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 1)
    received, sent = next_number(RECEIVE_QUEUE), next_number(SEND_QUEUE)
    control.sendall(step["taken"].encode("latin-1"))
    control.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, -1)  # without a window probe
    (here, source), (there, target) = control.getsockname()[:2], control.getpeername()[:2]
    ends = socket.inet_pton(family, here) + socket.inet_pton(family, there)
    six = family == socket.AF_INET6
    raw = socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_RAW if six else socket.IPPROTO_TCP)
    for offset, text, *how in step["segments"]:
        how = how[0] if how else {}
        after = text.encode("latin-1")
        urgent = how.get("urgent")
        flags = 5 << 12 | 0x18 | (0 if urgent is None else 0x20)  # PSH, ACK, URG
        fields = (source, target, sent + offset & 0xFFFFFFFF, received, flags, 500)
        summed = ends + struct.pack("!HHHHIIHHHH", 6, 20 + len(after), *fields, 0, urgent or 0) + after
        total = sum(struct.unpack(f"!{len(summed) + 1 >> 1}H", summed + b"\0" * (len(summed) % 2)))
        total = (total & 0xFFFF) + (total >> 16)
        checksum = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
        packet = struct.pack("!HHIIHHHH", *fields, checksum, urgent or 0) + after
        if six:
            options = destination_options(how["options"]) if how.get("options") else b""
            kind = socket.IPPROTO_DSTOPTS if options else socket.IPPROTO_TCP
            packet = options + packet
            packet = struct.pack("!IHBB", 6 << 28, len(packet), kind, 64) + ends + packet
        raw.sendto(packet, (there, 0))
        time.sleep(how.get("pause", step.get("pause", 0.01)))
    return ""


def run(step):
    global control, waiting
    if "send" in step:
        return send(step)
    if "taken" in step:
        return taken(step)
    if "redial" in step:
        dial()
    if "reply" in step:
        return [reply() for _ in range(step.get("count", 1))][-1]
    if "accept" in step:
        data, peer = listeners[step["accept"]].accept()
        data.settimeout(PATIENCE)
        if "write" in step:
            data.sendall(step["write"].encode("latin-1"))
            data.close()
            return peer[0]
        return drain(data, step)
    if "dial" in step:
        waiting = socket.create_connection(announced, DATA_TIMEOUT)
        return "" if step.get("later") else drain(waiting)
    if "drain" in step:
        return drain(waiting, step)
    if step.get("tls") == "control":
        control = tls.wrap_socket(control)
    if step.get("tls") == "data":
        waiting.settimeout(PATIENCE)
        waiting = tls.wrap_socket(waiting, session=control.session)
    if "read" in step:
        return read(step["read"])
    if "sleep" in step:
        time.sleep(step["sleep"])
    if "gate" in step:
        print("gate", flush=True)
        while not os.path.exists(step["gate"]):
            time.sleep(0.01)
    if "abort" in step:
        reset(control)
    if "close" in step:
        control.close()
    return ""


results, error = [], None
for step in plan["steps"]:
    start = time.monotonic()
    try:
        got = run(step)
    except Exception as problem:
        error = f"step {len(results)} {json.dumps(step)}: {problem!r}"
        break
    results.append({"ms": round((time.monotonic() - start) * 1000, 2), "got": got})
print(json.dumps({"steps": results, "error": error}))
