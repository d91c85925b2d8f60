"""pinholes.py: lists the open pinholes in the map of the fast path of this network namespace, one line each."""
import ctypes
import os
import socket
import struct
import time

BPF = {"x86_64": 321, "aarch64": 280}[os.uname().machine]
LOOK_UP, NEXT_KEY, OPEN = 1, 4, 7
PINS = "/sys/fs/bpf/ftp-alg"
libc = ctypes.CDLL(None, use_errno=True)


def bpf(command, attributes):
    result = libc.syscall(BPF, command, attributes, len(attributes))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def element(command, map_fd, key, value):
    address = ctypes.addressof(key) if key else 0
    try:
        bpf(command, struct.pack("=IIQQQ", map_fd, 0, address, ctypes.addressof(value), 0))
        return True
    except FileNotFoundError:
        return False


def address(mapped):
    address = socket.inet_ntop(socket.AF_INET6, mapped)
    return address.removeprefix("::ffff:") if "." in address else f"[{address}]"


def list_pinholes(path):
    name = ctypes.create_string_buffer(path.encode())
    map_fd = bpf(OPEN, struct.pack("=QII", ctypes.addressof(name), 0, 0))
    key, after, value = None, ctypes.create_string_buffer(36), ctypes.create_string_buffer(64)
    while element(NEXT_KEY, map_fd, key, after):
        key = ctypes.create_string_buffer(after.raw, 36)
        if not element(LOOK_UP, map_fd, key, value):
            continue
        flow, until = struct.unpack_from("=QQ", value.raw)
        if flow and until > time.monotonic_ns():
            initiator, arrival = (address(key.raw[at:at + 16]) for at in (0, 16))
            print(f"fast path: {initiator} -> {arrival}:{struct.unpack_from('!H', key.raw, 32)[0]}")


namespace = socket.socket(socket.AF_UNIX).getsockopt(socket.SOL_SOCKET, 71, 8)
own = "%x-" % int.from_bytes(namespace, "little")
try:
    all_pins = os.listdir(PINS)
except FileNotFoundError:
    all_pins = []
for pins in all_pins:
    path = f"{PINS}/{pins}/pinholes"
    if pins.startswith(own) and os.path.exists(path):
        list_pinholes(path)
