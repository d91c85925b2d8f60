"""load.py HOST USER PASSWORD MODES WORKERS PER_SESSION SECONDS UNTIL [DATA_SECONDS [PATIENCE]]: FTP sessions at the same time.

WORKERS sessions transfer until the file UNTIL exists, or SECONDS are over: each stores bytes of its own,
reads them back and compares. MODES is a comma-separated list of `active`, `passive`, `active+ext` and
`passive+ext` (EPRT and EPSV over IPv4), one for a transfer. A session ends with QUIT after PER_SESSION
transfers and another one begins; with 0 it is one session to the end. After a transfer that an error reply ended, or whose
data connection did not come about within DATA_SECONDS (30), it ends if the control connection still answers. All else has
PATIENCE seconds, or as much time, but at least 30 seconds.

Prints `ready` when all are logged in and have transferred once, and at the end one JSON object: transfers, sessions,
damaged (bytes that were others), lost (control connections that broke), failed (transfers that an error ended), errors
(the first ten of each kind), seconds.
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
errors, lock, started = [], threading.Lock(), threading.Semaphore(0)


class NoData(Exception):
    """The data connection did not come about; the control connection is as it was."""


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
    """Waits until the control connection answers, after what it still says of a transfer."""
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
    """One session; whether it ended as it should."""
    ftp, port = Ftp(timeout=patience), 0
    step, name = "connect", f"pub/load{os.getpid()}-{number}-{next(names)}"
    try:
        ftp.connect(host, 21)
        port = ftp.sock.getsockname()[1]
        # As in any FTP client, the control connection must not wait for Nagle's algorithm.
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
                else:
                    count("damaged", f"{step}: {len(b''.join(back))} of {len(body)} bytes, or others")
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
