"""Runs the program and the engine over the same captures: whatever the program opens, the engine must open.

compare.py FTP-EBPF OBJECT FTP-ALG CAPTURES|random:COUNT:SEED

The other way round the engine opens more: what the program leaves to it. `random` writes a capture of so many
dialogues, of FTP as it is and as it should not be.
"""
import json, os, random, struct, subprocess, sys, tempfile


def checksum(data):
    total = sum(struct.unpack(f"!{(len(data) + 1) // 2}H", data + b"\0" * (len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


class Dialogue:
    """Both ends of a connection, and the frames that they sent."""

    def __init__(self, rng, number):
        self.rng, self.frames = rng, []
        self.wild = rng.choice([0, 0.05, 0.3, 1])  # how often something is odd in this one
        self.address = [b"\x0a" + struct.pack("!I", number)[1:], b"\x0b\x00\x00\x02"]
        self.port = [40000, 21]
        self.next = [rng.randrange(1 << 32), rng.randrange(1 << 32)]
        self.acked = None
        self.frame(0, 2, b"")
        self.next[0] += 1
        self.acked = True
        self.frame(1, 0x12, b"")
        self.next[1] += 1
        self.frame(0, 0x10, b"")

    def frame(self, side, flags, payload, seq=None, ack=None):
        seq = self.next[side] if seq is None else seq
        ack = (self.next[1 - side] if ack is None else ack) if self.acked else 0
        tcp = struct.pack("!HHIIBBHHH", self.port[side], self.port[1 - side], seq % 2**32, ack % 2**32, 0x50, flags,
                          60000, 0, 0) + payload
        pseudo = self.address[side] + self.address[1 - side] + struct.pack("!HH", 6, len(tcp))
        tcp = tcp[:16] + struct.pack("!H", checksum(pseudo + tcp)) + tcp[18:]
        ip = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(tcp), 0, 0x4000, 64, 6, 0) + self.address[side] + \
            self.address[1 - side]
        self.frames.append(ip[:10] + struct.pack("!H", checksum(ip)) + ip[12:] + tcp)

    def odd(self, chance):
        return self.rng.random() < chance * self.wild

    def send(self, side, text):
        """In one segment mostly, else in some, with what a network does to them."""
        payload, rng = text if isinstance(text, bytes) else text.encode("latin-1"), self.rng
        cuts = sorted(rng.randrange(len(payload) + 1) for _ in range(rng.choice([1, 2]) if self.odd(0.15) else 0))
        for start, end in zip([0] + cuts, cuts + [len(payload)]):
            if start == end:
                continue
            piece = payload[start:end]
            stale = self.odd(0.02)
            self.frame(side, 0x18, piece, ack=self.next[1 - side] - rng.randrange(1, 9) if stale else None)
            if self.odd(0.05):  # again, perhaps with other bytes
                self.frame(side, 0x18, piece if rng.random() < 0.5 else piece[::-1])
            if self.odd(0.02):  # from before
                self.frame(side, 0x18, payload, seq=self.next[side] - 3)
            self.next[side] += len(piece)
            if self.odd(0.01):  # past a gap
                self.frame(side, 0x18, payload, seq=self.next[side] + 5)


def host_port(rng, address):
    numbers = list(address) + [rng.choice([0, 3, 4, 4, 200, 255]), rng.randrange(256)]
    odd = rng.random()
    if odd < 0.03:
        numbers[rng.randrange(6)] = rng.choice([256, 1000, "", "x", "01", "007", "-1"])
    elif odd < 0.05:
        numbers.insert(rng.randrange(7), 7)
    elif odd < 0.07:
        numbers.pop()
    return rng.choice([","] * 20 + [", ", " ,", ";"]).join(str(n) for n in numbers)


def announcement(rng, d, side):
    address = d.address[side] if rng.random() < 0.93 else bytes([9, 9, 9, 9])
    port = rng.choice([1025, 5000, 65535, 40000, 1023, 0, 65536, 21, "", "05000", "1e4"] + [2000] * 10)
    if not d.odd(0.8):
        port = 1024 + rng.randrange(64000)
        numbers = ",".join(str(n) for n in list(d.address[side]) + [port >> 8, port & 255])
        if side == 0:
            return f"PORT {numbers}"
        return rng.choice([f"227 Entering Passive Mode ({numbers}).", f"229 Entering Extended Passive Mode (|||{port}|)"])
    if side == 1:
        return rng.choice([
            f"227 Entering Passive Mode ({host_port(rng, address)}).",
            f"227 Entering Passive Mode ({host_port(rng, address)})",
            f"227 ={host_port(rng, address)}",
            f"227 v{rng.choice(['', '2.1', '1,2'])} ({host_port(rng, address)}) {rng.choice(['', host_port(rng, address)])}",
            f"229 Entering Extended Passive Mode (|||{port}|)",
            f"229 Extended{rng.choice(['', ' !!!4000!', ' (', ' |||'])} (|||{port}|){rng.choice(['', '.', ' x'])}",
            f"229 ok (!!!{port}!)",
        ])
    text = ".".join(str(b) for b in address)
    return rng.choice([f"PORT {host_port(rng, address)}", f"port {host_port(rng, address)}",
                       f"EPRT |1|{text}|{port}|", f"EPRT |{rng.choice('12')}|{rng.choice([text, '0' + text, '::1'])}|{port}|"])


def spoiled(d, line):
    rng = d.rng
    end = rng.choice(["\n", "\n", "\r", "\r\r\n", "", " \r\n"]) if d.odd(0.15) else "\r\n"
    if d.odd(0.05):
        at = rng.randrange(len(line) + 1)
        line = line[:at] + rng.choice(["\0", "\xff\xf4", "\r", "\n", " ", "\t", "-"]) + line[at:]
    elif d.odd(0.03):
        line = " " + line
    return line + end


def converse(rng, number):
    d = Dialogue(rng, number)
    say = lambda side, line: d.send(side, spoiled(d, line) if isinstance(line, str) else line)
    if rng.random() < 0.95:
        say(1, rng.choice(["220 ready", "220 ready", "120 soon\r\n220 ready", "220-a\r\n b\r\n220 ready", "500 no", "hello"]))
    if rng.random() < 0.97:
        say(0, rng.choice(["USER x"] * 20 + ["POST / HTTP/1.1", "XYZZY", "FEAT"]))
        say(1, "331 password")
        say(0, "PASS x")
        say(1, rng.choice(["230 in"] * 20 + ["230-a\r\nb\r\n230 in", "530 no", "230-227 x\r\n230 in"]))
    for _ in range(rng.randrange(1, 12)):
        kind = rng.random()
        if kind >= 0.75 and not d.odd(1):
            kind -= 0.5
        if kind < 0.35:
            reply = announcement(rng, d, 1)
            say(0, rng.choice(["PASV", "EPSV", "pasv", "EPSV 1", "EPSV ALL", "PASV x"]) if d.odd(0.3)
                else "PASV" if reply.startswith("227") else "EPSV")
            if d.odd(0.1):
                say(0, "NOOP")
            wrap = 0.04 + rng.random() if d.odd(0.3) else 1
            if wrap < 0.06:
                reply = f"{rng.choice(['211', '227', '229'])}-x\r\n{reply}\r\n{rng.choice(['211 end', '227 x', '229 y'])}"
            elif wrap < 0.1:
                reply = rng.choice(["500 no", "200 ok\r\n" + reply, reply + "\r\n" + reply, reply + "\r\n226 x"])
            say(1, reply)
        elif kind < 0.6:
            say(0, announcement(rng, d, 0))
            say(1, rng.choice(["200 ok", "500 no", "150 x"]) if d.odd(0.3) else "200 ok")
        elif kind < 0.75:
            say(0, rng.choice(["RETR x", "LIST", "STOR y"]))
            say(1, "150 here")
            if rng.random() < 0.1:
                say(0, "ABOR")
            say(1, "226 done")
        elif kind < 0.85:
            say(0, rng.choice(["NOOP", "TYPE I", "CWD z", "REIN", "AUTH TLS", "QUIT", "STAT", "CCC", "\xff\xf4ABOR"]))
            say(1, rng.choice(["200 ok", "211-a\r\n227 (1,2,3,4,5,6)\r\n211 b", "220 again", "234 go", "500 no"]))
        else:
            side = rng.randrange(2)
            say(side, announcement(rng, d, side) if rng.random() < 0.7 else rng.choice(["NOOP", "PASV", "200 ok", "230 in"]))
    return d.frames


def write_random(path, count, seed):
    rng = random.Random(seed)
    with open(path, "wb") as out:
        out.write(struct.pack("=IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 101))
        at = 0
        for number in range(count):
            for frame in converse(rng, number + 1):
                out.write(struct.pack("=IIII", 1_000_000 + at // 1000, at % 1000 * 1000, len(frame), len(frame)) + frame)
                at += 1


def opened_by_program(capture):
    lines = subprocess.run([tool, "replay", program, capture], capture_output=True, text=True, check=True).stdout
    return {(int(line.split()[0]), line.split()[3]) for line in lines.splitlines()}


def opened_by_engine(capture):
    lines = subprocess.run([engine, "replay", capture, "--json"], capture_output=True, text=True, check=True).stdout
    said = [json.loads(line) for line in lines.splitlines()]
    return {(a["frame"], a["announced"]) for a in said if a["action"] == "open" and a["rewritten"] is None}, len(said)


tool, program, engine, source = sys.argv[1:5]
wrong = 0
with tempfile.TemporaryDirectory() as directory:
    if source.startswith("random:"):
        _, count, seed = source.split(":")
        captures = [f"{directory}/{count} random dialogues, seed {seed}.pcap"]
        write_random(captures[0], int(count), int(seed))
    else:
        captures = sorted(f"{source}/{name}" for name in os.listdir(source) if name.endswith(".pcap"))
    for capture in captures:
        ours = opened_by_program(capture)
        theirs, announced = opened_by_engine(capture)
        wrong += len(ours - theirs)
        print(f"{os.path.basename(capture)}: {announced} announced, {len(theirs)} opened by the engine, {len(ours)} by the "
              f"program, {len(ours - theirs)} by the program alone")
        for frame, endpoint in sorted(ours - theirs)[:5]:
            print(f"  frame {frame}: {endpoint}")
sys.exit(wrong > 0)
