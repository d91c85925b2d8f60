"""guest.py: what is tested on the machine that `tests/installed/run` boots, which is a gateway with Debian 12.

A client and a server are network namespaces of this machine, and the gateway is the machine itself: it masquerades, and
drops what it does not know. One pair of control connections is opened at the first transfer and used to the end. The
client is a process in its namespace; the server is vsftpd.

Prints a line for each step, with the seconds it took. Writes 1 into `status` if one failed, else 0.
"""
import ctypes
import ftplib
import io
import json
import multiprocessing
import os
import random
import re
import signal
import socket
import subprocess
import time
import traceback

SHARED = "/run/installed"
LAB = "/run/lab"
# The two layers of this machine's root.
CHANGED, UNCHANGED = "/run/changed", "/run/unchanged"
CONFIGURATION = "/etc/ftp-alg.toml"
CLIENT, SERVER = "192.168.150.180", "192.0.2.2"
PATIENCE = 60
# More than what the buffers of both ends hold.
LARGE = random.randbytes(1 << 20) * 32

# As in the README, with a gateway that drops what is for itself.
FIREWALL = """flush ruleset
table inet filter {
    chain input {
        type filter hook input priority filter; policy drop;
        iif lo accept
        ct state established accept
    }
    chain forward {
        type filter hook forward priority filter; policy drop;
        ct state established accept
        ct mark & 0x40000000 != 0 accept
        iifname "lan0" tcp dport 21 accept
    }
    chain postrouting {
        type nat hook postrouting priority srcnat;
        oifname "wan0" masquerade
    }
}
"""

VSFTPD = f"""listen=YES
background=NO
anonymous_enable=YES
ftp_username=daemon
nopriv_user=nobody
anon_root={LAB}/files
write_enable=YES
anon_upload_enable=YES
anon_other_write_enable=YES
anon_umask=022
secure_chroot_dir={LAB}/empty
connect_from_port_20=YES
seccomp_sandbox=NO
"""

# For `ip -batch`.
NAMESPACES = """netns add client
netns add server
link add lan0 type veth peer name eth0 netns client
link add wan0 type veth peer name eth0 netns server
address add 192.168.150.1/24 dev lan0
address add 192.0.2.1/24 dev wan0
link set lan0 up
link set wan0 up
"""
CLIENT_NETWORK = f"""address add {CLIENT}/24 dev eth0
link set eth0 up
route add default via 192.168.150.1
"""
SERVER_NETWORK = f"""address add {SERVER}/24 dev eth0
link set eth0 up
"""

# What apt, dpkg and systemd change for themselves, whatever is installed.
NOT_OURS = re.compile(
    "/var/(cache|log|lib/apt|lib/dpkg/(status|available|diversions|lock|triggers|updates))|/etc/(passwd|group|g?shadow)-$"
    "|/run/(log|systemd|lock|mount)|/tmp|/var/tmp|/var/lib/systemd"
)


# --- the client ---


class Ftp(ftplib.FTP):
    def exchange(self, _, mode):
        """Stores a file, and fetches it."""
        self.set_pasv(mode == "passive")
        name, body, back = f"pub/{os.getpid()}", random.randbytes(100_000), []
        self.storbinary(f"STOR {name}", io.BytesIO(body))
        self.retrbinary(f"RETR {name}", back.append)
        assert b"".join(back) == body, "the file that came back is another one"

    def exchange_on(self, pipe, modes):
        """The same, again and again, until it is ordered to end. Gives how often. Leaves time for others: all is emulated."""
        count = 0
        while not pipe.poll(0.5):
            self.exchange(pipe, modes[count % len(modes)])
            count += 1
        pipe.recv()
        return count

    def fetch(self, pipe, mode):
        """Fetches the large file slowly until it is ordered to continue. Gives how much was missing then."""
        self.set_pasv(mode == "passive")
        data, at, missing = self.transfercmd("RETR pub/large"), 0, None
        pipe.send("begun")
        while chunk := data.recv(16384):
            assert chunk == LARGE[at:at + len(chunk)], f"other bytes at {at}"
            at += len(chunk)
            if missing is None and pipe.poll(0.2):
                pipe.recv()
                missing = len(LARGE) - at
        data.close()
        self.voidresp()
        assert at == len(LARGE), f"{at} bytes came of {len(LARGE)}"
        return missing

    def wait_for_data(self, _, seconds):
        """From now on, data connections have so much time."""
        self.timeout = seconds

    def say(self, _, line):
        """Gives the reply, also if it is an error."""
        try:
            return self.sendcmd(line)
        except ftplib.Error as error:
            return str(error)


def client(pipe):
    try:
        with open("/run/netns/client") as namespace:
            assert ctypes.CDLL(None).setns(namespace.fileno(), 0) == 0
        ftp = Ftp(timeout=PATIENCE)
        ftp.connect(SERVER)
        ftp.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        ftp.login()
        pipe.send(ftp.sock.getsockname()[1])
        while True:
            errand, argument = pipe.recv()
            pipe.send(getattr(ftp, errand)(pipe, argument))
    except EOFError:
        pass
    except Exception as error:
        pipe.send(error)


class Session:
    """A control connection. Each errand is begun, and answered."""

    def __init__(self):
        self.pipe, end = multiprocessing.Pipe()
        self.process = multiprocessing.Process(target=client, args=(end,), daemon=True)
        self.process.start()
        end.close()
        self.port = self.answer()

    def begin(self, errand, argument):
        self.pipe.send((errand, argument))

    def answer(self):
        assert self.pipe.poll(2 * PATIENCE), "the client does not answer"
        got = self.pipe.recv()
        if isinstance(got, Exception):
            raise got
        return got

    def do(self, errand, argument):
        self.begin(errand, argument)
        return self.answer()

    def is_adjusted(self):
        rows = json.loads(run("ftp-alg sessions --json"))
        return any(row["adjusted"] and row["client"] == f"{CLIENT}:{self.port}" for row in rows)

    def close(self):
        self.process.kill()
        self.process.join()


class Pair:
    """A session whose sequence numbers are adjusted, as it is active through masquerade, and one whose are not."""

    def __init__(self):
        self.active, self.passive = Session(), Session()
        self.active.do("exchange", "active")
        self.passive.do("exchange", "passive")
        assert self.active.is_adjusted() and not self.passive.is_adjusted()

    def go_on_through(self, interruption):
        """The adjusted one transfers all the time while it is interrupted, and then both do."""
        self.active.begin("exchange_on", ["active", "passive"])
        interruption()
        self.active.pipe.send("enough")
        assert self.active.answer()
        self.go_on()

    def go_on(self):
        self.active.begin("exchange", "active")
        self.passive.begin("exchange", "passive")
        self.active.answer()
        self.passive.answer()
        assert self.active.is_adjusted() and not self.passive.is_adjusted()

    def close(self):
        self.active.close()
        self.passive.close()


# --- the machine ---


def run(command):
    done = subprocess.run(command, shell=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, f"{command}: exit code {done.returncode}\n{done.stdout}"
    return done.stdout


def apt(arguments):
    """Apt as an operator calls it who is not there to answer."""
    return run(f"DEBIAN_FRONTEND=noninteractive apt-get -y {arguments} </dev/null")


def unit(*keys):
    """Properties of the unit."""
    lines = run("systemctl show ftp-alg " + " ".join(f"-p {key}" for key in keys)).splitlines()
    values = dict(line.split("=", 1) for line in lines)
    return [values[key] for key in keys]


def daemon():
    """Its process, and only if it is ready."""
    process, state = unit("MainPID", "ActiveState")
    assert state == "active", state
    return int(process)


def wait_for(what, ready):
    end = time.monotonic() + PATIENCE
    while not ready():
        assert time.monotonic() < end, f"{what} did not come within {PATIENCE} s"
        time.sleep(0.2)


def interrupt(number):
    """Sends the daemon a signal, and waits for another daemon."""
    before = daemon()
    os.kill(before, number)
    wait_for("another daemon", lambda: unit("ActiveState") == ["active"] and unit("MainPID") != [str(before)])


def contents(path):
    if not os.path.isfile(path):
        return None
    with open(path, "rb") as file:
        return file.read()


def listing():
    """All paths that were made, changed or removed since the machine was started, and what is in those below /etc."""
    paths = {}
    for top, shown_as in (CHANGED, ""), ("/run", "/run"):
        for directory, below, files in os.walk(top):
            if directory in (SHARED, LAB, UNCHANGED) or directory == CHANGED != top:
                below.clear()
                continue
            shown = shown_as + directory.removeprefix(top)
            # One in which something changed is among what changed.
            made = [name for name in below if not os.path.isdir(f"{UNCHANGED}{shown}/{name}")]
            for path in (f"{shown}/{name}" for name in made + files):
                if "ftp-alg" in path or not NOT_OURS.match(path):
                    paths[path] = contents(path) if path.startswith("/etc/") else None
    # Users come and go, and the files that name them are as before.
    return {path: was for path, was in paths.items() if was is None or was != contents(UNCHANGED + path)}


def set_up():
    os.makedirs(f"{LAB}/files/pub")
    os.mkdir(f"{LAB}/empty")
    run(f"chown daemon {LAB}/files/pub")
    for path, text in (f"{LAB}/vsftpd.conf", VSFTPD), ("/etc/nftables.conf", FIREWALL):
        with open(path, "w") as file:
            file.write(text)
    with open(f"{LAB}/files/pub/large", "wb") as file:
        file.write(LARGE)
    run(f"ip -batch - <<'END'\n{NAMESPACES}END")
    run(f"ip -n client -batch - <<'END'\n{CLIENT_NETWORK}END")
    run(f"ip -n server -batch - <<'END'\n{SERVER_NETWORK}END")
    run("sysctl -q net.ipv4.ip_forward=1")
    run("systemctl restart nftables")
    subprocess.Popen(["ip", "netns", "exec", "server", "vsftpd", f"{LAB}/vsftpd.conf"])
    wait_for("vsftpd", lambda: "LISTEN" in run("ip netns exec server ss -Htln sport = :21"))


# --- the steps ---

machine = {}


def pair():
    if "pair" not in machine:
        machine["pair"] = Pair()
    return machine["pair"]


def auth_is_refused():
    """By a session of its own, as the reply changes its sequence numbers."""
    session = Session()
    reply = session.do("say", "AUTH TLS")
    session.close()
    return reply.startswith("534")


def without_the_package_no_data_connection_is_admitted():
    machine["listing"], machine["ruleset"] = listing(), run("nft list ruleset")
    for mode in "active", "passive":
        session = Session()
        session.do("wait_for_data", 3)
        try:
            session.do("exchange", mode)
        except (TimeoutError, ftplib.error_perm) as error:
            # This server refuses a PORT with another address than it sees.
            assert isinstance(error, TimeoutError) or str(error).startswith("500 Illegal PORT"), error
            continue
        finally:
            session.close()
        raise AssertionError(f"a transfer in {mode} mode came about")


def apt_installs_the_package_and_the_unit_is_active():
    apt(f"install {SHARED}/ftp-alg.deb")
    assert unit("ActiveState", "UnitFileState") == ["active", "enabled"]
    run("ftp-alg status --wait 20")
    run("ftp-alg doctor")


def files_move_through_masquerade_and_default_drop():
    pair().active.do("exchange", "passive")
    pair().go_on()


def an_edited_configuration_counts_after_a_reload():
    before = daemon()
    with open(CONFIGURATION) as file:
        text = file.read()
    edited = text.replace('#auth-tls = "pass"', 'auth-tls = "refuse"', 1)
    assert edited != text
    with open(CONFIGURATION, "w") as file:
        file.write(edited)
    run("systemctl reload ftp-alg")
    wait_for("534", auth_is_refused)
    pair().go_on()
    assert daemon() == before


def a_stop_and_a_start_keep_sessions():
    def stop():
        run("systemctl stop ftp-alg")
        assert unit("ActiveState") == ["inactive"]
        time.sleep(1)
        run("systemctl start ftp-alg")

    pair().go_on_through(stop)


def a_killed_daemon_is_started_again_and_sessions_go_on():
    pair().go_on_through(lambda: interrupt(signal.SIGKILL))


def a_hung_daemon_is_replaced_by_the_watchdog_and_sessions_go_on():
    pair().go_on_through(lambda: interrupt(signal.SIGSTOP))
    assert "watchdog timeout" in run("journalctl -u ftp-alg -o cat").lower()


def an_upgrade_keeps_transfers_and_sessions():
    transfers = [(mode, Session()) for mode in ("active", "passive")]
    for mode, session in transfers:
        session.begin("fetch", mode)
        assert session.answer() == "begun"

    def upgrade():
        before = daemon()
        apt(f"install {SHARED}/ftp-alg-later.deb")
        assert run("dpkg-query -W -f '${Version}' ftp-alg").endswith("+later")
        assert daemon() != before

    pair().go_on_through(upgrade)
    for mode, session in transfers:
        session.pipe.send("go on")
        missing = session.answer()
        assert missing, f"the transfer in {mode} mode ended before the upgrade"
        session.do("exchange", mode)
        session.close()
    # The operator's configuration stays, and counts.
    assert auth_is_refused()


def a_firewall_reload_keeps_sessions():
    # Linux 6.1 knows no owner of a table: the daemon loads it again. What is said meanwhile is not seen.
    run("systemctl reload nftables")
    wait_for("the table", lambda: "table inet ftp_alg" in run("nft list tables"))
    pair().go_on()


def the_journal_has_what_the_daemon_said():
    lines = run("journalctl -u ftp-alg -o json --no-pager").splitlines()
    # A reload also runs `ftp-alg check`, which prints.
    said = [entry for entry in map(json.loads, lines) if entry.get("_CMDLINE") == "/usr/sbin/ftp-alg run"]
    assert said
    for entry in said:
        assert entry["_SYSTEMD_UNIT"] == "ftp-alg.service", entry
        # By the native protocol. A message with other bytes than text would be an array of numbers.
        assert entry["_TRANSPORT"] == "journal" and isinstance(entry["MESSAGE"], str), entry
        # Nothing so far needs a person.
        assert entry["PRIORITY"] in "4567", entry
    refused = run("journalctl -u ftp-alg FTP_ALG_EVENT=refusal -o json --no-pager").splitlines()
    assert any("AUTH" in entry["MESSAGE"] and entry["FTP_ALG_SESSION"] for entry in map(json.loads, refused))


def a_reload_of_an_invalid_configuration_fails_and_changes_nothing():
    before = daemon()
    with open(CONFIGURATION) as file:
        text = file.read()
    with open(CONFIGURATION, "w") as file:
        file.write("control-ports = []\n" + text)
    run("! systemctl reload ftp-alg")
    wait_for("the problem", lambda: "PROBLEM config" in run("ftp-alg status || true"))
    with open(CONFIGURATION, "w") as file:
        file.write(text)
    run("systemctl reload ftp-alg")
    wait_for("the solution", lambda: "PROBLEM config" not in run("ftp-alg status || true"))
    assert daemon() == before


def a_purge_leaves_nothing():
    # Its sequence numbers are adjusted: a stop alone would leave the table for the next start.
    assert pair().active.is_adjusted()
    pair().active.do("say", "NOOP")
    apt("purge ftp-alg")
    pair().close()
    del machine["pair"]
    before, after = machine["listing"], listing()
    changed = {path for path in before.keys() | after.keys() if before.get(path, 0) != after.get(path, 0)}
    assert not changed, sorted(changed)
    ruleset = run("nft list ruleset")
    assert ruleset == machine["ruleset"], ruleset
    assert "ftp-alg" not in run("systemctl list-units --all; systemctl list-unit-files; getent passwd; getent group")
    assert not subprocess.run(["pgrep", "ftp-alg"], stdout=subprocess.PIPE).stdout


STEPS = [
    without_the_package_no_data_connection_is_admitted,
    apt_installs_the_package_and_the_unit_is_active,
    files_move_through_masquerade_and_default_drop,
    an_edited_configuration_counts_after_a_reload,
    a_stop_and_a_start_keep_sessions,
    a_killed_daemon_is_started_again_and_sessions_go_on,
    a_hung_daemon_is_replaced_by_the_watchdog_and_sessions_go_on,
    an_upgrade_keeps_transfers_and_sessions,
    a_firewall_reload_keeps_sessions,
    the_journal_has_what_the_daemon_said,
    a_reload_of_an_invalid_configuration_fails_and_changes_nothing,
    a_purge_leaves_nothing,
]


def main():
    with open("/proc/uptime") as uptime:
        booted = float(uptime.read().split()[0])
    print(f"{os.uname().release}, started in {booted:.0f} s", flush=True)
    failed = 0
    for step in [set_up, *STEPS]:
        start, began = time.monotonic(), int(time.time())
        try:
            step()
            result = "ok"
        except Exception:
            result, failed = "FAILED", failed + 1
            traceback.print_exc()
            print(subprocess.getoutput(f"journalctl --no-pager -o short-monotonic --since @{began}"))
            # The next step begins with sessions of its own.
            if "pair" in machine:
                machine.pop("pair").close()
        print(f"{result:6} {step.__name__} ({time.monotonic() - start:.1f} s)", flush=True)
    with open(f"{SHARED}/status", "w") as status:
        print(1 if failed else 0, file=status)
    # At once: nothing of this machine is needed any more.
    run("systemctl poweroff --force --force")


if __name__ == "__main__":
    main()
