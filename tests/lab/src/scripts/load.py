"""load.py HOST USER PASSWORD MODES WORKERS PER_SESSION SECONDS UNTIL [DATA_SECONDS [PATIENCE]]: parallel FTP sessions.

WORKERS sessions transfer until the file UNTIL exists, or for SECONDS: each uploads random bytes, downloads them and
compares. MODES is a comma-separated list of `active`, `passive`, `active+ext` and `passive+ext` (EPRT and EPSV over
IPv4); each transfer uses the next one. A session ends with QUIT after PER_SESSION transfers, and the worker starts
another one. With 0 the session continues to the end.

A transfer fails if it gets an error reply, or if its data connection does not open within DATA_SECONDS (30). The
session then ends with QUIT if the control connection still answers. The time limit for everything else is PATIENCE
seconds, by default DATA_SECONDS, but at least 30.

Prints `ready` when all sessions have transferred once. The file UNTIL.counts has the number of transfers of each worker,
8 bytes in little-endian order. At the end it prints one JSON object: transfers, sessions,
damaged (transfers with wrong bytes), lost (broken control connections), failed (failed transfers), errors (the first
ten of each kind), seconds.
"""
import ftplib
import io
import itertools
import json
import os
import random
import socket
import sys
import threading
import time

host, user, password, modes, workers, per_session, seconds, until = sys.argv[1:9]
data_seconds = float(sys.argv[9]) if len(sys.argv) > 9 else 30
patience = float(sys.argv[10]) if len(sys.argv) > 10 else max(30, data_seconds)
modes, workers, per_session = modes.split(","), int(workers), int(per_session)
end = time.monotonic() + float(seconds)
totals = dict(transfers=0, sessions=0, damaged=0, lost=0, failed=0)
names = itertools.count()
counts = open(until + ".counts", "wb", buffering=0)
transferred = [0] * workers
errors, lock, started = [], threading.Lock(), threading.Semaphore(0)


class NoData(Exception):
    """The data connection did not open; the control connection still works."""


class Ftp(ftplib.FTP):
    extended = False
    announced = 0

    def ntransfercmd(self, cmd, rest=None):
        if not self.passiveserver:
            return super().ntransfercmd(cmd, rest)
        address = self.makepasv()
        try:
            connection = socket.create_connection(address, data_seconds)
        except OSError as error:
            raise NoData(repr(error)) from error
        connection.settimeout(self.timeout)
        answer = self.sendcmd(cmd)
        if answer[0] == "2":
            answer = self.getresp()
        if answer[0] != "1":
            raise ftplib.error_reply(answer)
        return connection, None

    def makeport(self):
        listener = super().makeport()
        self.announced = listener.getsockname()[1]
        return listener

    def use(self, mode):
        mode, _, extended = mode.partition("+")
        self.set_pasv(mode == "passive")
        self.extended = bool(extended)

    def sendport(self, host, port):
        return self.sendeprt(host, port) if self.extended else super().sendport(host, port)

    def makepasv(self):
        if not self.extended:
            return super().makepasv()
        return ftplib.parse229(self.sendcmd("EPSV"), self.sock.getpeername())


def resume(ftp):
    """Waits until the control connection answers, and skips late replies to a transfer."""
    ftp.sock.settimeout(min(60, 2 * patience))
    ftp.file = ftp.sock.makefile("r", encoding=ftp.encoding)
    ftp.putcmd("SYST")
    while not ftp.getmultiline().startswith("215"):
        pass


def over():
    return time.monotonic() > end or os.path.exists(until)


def count(key, error=None):
    with lock:
        totals[key] += 1
        if error and totals[key] <= 10:
            errors.append(error)


def session(number, mode_of):
    """Runs one session. Returns whether it ended without an error."""
    ftp, port = Ftp(timeout=patience), 0
    step, name = "connect", f"pub/load{os.getpid()}-{number}-{next(names)}"
    try:
        ftp.connect(host, 21)
        port = ftp.sock.getsockname()[1]
        # As in real FTP clients, Nagle's algorithm is off on the control connection.
        ftp.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        step = "login"
        ftp.login(user, password)
        count("sessions")
        for done in itertools.count(1):
            mode = next(mode_of)
            ftp.use(mode)
            body = random.randbytes(random.randint(0, 5000))
            try:
                step = f"STOR, {mode}"
                ftp.storbinary("STOR " + name, io.BytesIO(body))
                back = []
                step = f"RETR, {mode}"
                ftp.retrbinary("RETR " + name, back.append)
                if b"".join(back) == body:
                    count("transfers")
                    transferred[number] += 1
                    os.pwrite(counts.fileno(), transferred[number].to_bytes(8, "little"), 8 * number)
                else:
                    count("damaged", f"{step}: {len(b''.join(back))} of {len(body)} bytes, or wrong bytes")
            except (ftplib.Error, NoData, OSError) as error:
                resume(ftp)
                at = f"port {port}, announced {ftp.announced}, at {time.time():.1f}"
                count("failed", f"{step}: {error!r}, {at}")
                ftp.quit()
                return False
            if done == 1:
                started.release()
            if over() or done == per_session:
                break
        step = "QUIT"
        ftp.quit()
        return True
    except ftplib.Error as error:
        count("failed", f"{step}: {error!r}")
    except (OSError, EOFError) as error:
        count("lost", f"lost from port {port} at {time.monotonic() - start:.1f} s: {step}: {error!r}")
    ftp.close()
    return False


def work(number):
    mode_of = itertools.cycle(modes[number % len(modes):] + modes[:number % len(modes)])
    while not over():
        if not session(number, mode_of):
            time.sleep(0.2)


start = time.monotonic()
threads = [threading.Thread(target=work, args=(number,), daemon=True) for number in range(workers)]
for thread in threads:
    thread.start()
for _ in threads:
    while not started.acquire(timeout=0.1) and not over():
        pass
print("ready", flush=True)
for thread in threads:
    thread.join()
print(json.dumps({**totals, "errors": errors, "seconds": round(time.monotonic() - start, 1)}))
