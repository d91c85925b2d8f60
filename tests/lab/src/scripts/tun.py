"""A cable between two tun interfaces, whose packets have no Ethernet header. Prints `ready` when both are there.

tun.py NAMESPACE INTERFACE NAMESPACE INTERFACE
"""

import ctypes
import fcntl
import os
import select
import struct
import sys

CLONE_NEWNET = 0x40000000
TUNSETIFF = 0x400454CA
IFF_TUN_NO_PI = 0x1001


def end(namespace, interface):
    with open(f"/run/netns/{namespace}") as there:
        if ctypes.CDLL(None).setns(there.fileno(), CLONE_NEWNET):
            raise OSError(f"cannot enter {namespace}")
    tun = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(tun, TUNSETIFF, struct.pack("16sH22x", interface.encode(), IFF_TUN_NO_PI))
    return tun


one, other = end(*sys.argv[1:3]), end(*sys.argv[3:5])
print("ready", flush=True)
while True:
    for source in select.select([one, other], [], [])[0]:
        packet = os.read(source, 65536)
        try:
            os.write(other if source == one else one, packet)
        except OSError:
            pass  # the interface is down
