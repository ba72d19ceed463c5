"""A simulated host: a network namespace behind a link with a given rate and delay. Linux, as root.

The kernel's own delay (netem) is not available everywhere. Here the link is a process between two TUN devices: it
passes a packet from one to the other after the transmission time of its bits and the delay. Packets that would wait
for more than a second are dropped, as by any router.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import struct
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator

HERE, THERE = "10.77.0.1", "10.77.0.2"
MTU = 9000  # few large packets, so that the simulation needs little CPU time
QUEUE_SECONDS = 1.0


def possible() -> str | None:
    """The reason why the simulation is not possible here, or None."""
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        return "needs Linux and root"
    if not os.path.exists("/dev/net/tun"):
        return "needs /dev/net/tun"
    try:
        subprocess.run(["ip", "netns", "list"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        return "needs ip netns (Debian: apt install iproute2)"
    return None


@contextlib.contextmanager
def host(name: str, bits_per_second: float | None, delay: float) -> Iterator[list[str]]:
    """The command prefix for the simulated host.

    Args:
        bits_per_second: in each direction; None: as fast as the wire can.
        delay:           seconds in each direction.
    """
    ends = [_tun(f"{name}0"), _tun(f"{name}1")]
    inside = ["ip", "netns", "exec", name]
    try:
        _ip("netns", "add", name)
        _ip("link", "set", f"{name}1", "netns", name)
        for prefix, device, own, other in (([], f"{name}0", HERE, THERE), (inside, f"{name}1", THERE, HERE)):
            _run(*prefix, "ip", "addr", "add", own, "peer", other, "dev", device)
            _run(*prefix, "ip", "link", "set", device, "mtu", str(MTU), "up")
        _run(*inside, "ip", "link", "set", "lo", "up")
        relay = subprocess.Popen(
            [sys.executable, __file__, *map(str, ends), str(bits_per_second or 0), str(delay)], pass_fds=ends
        )
        try:
            yield inside
        finally:
            relay.kill()
            relay.wait()
    finally:
        for end in ends:
            os.close(end)
        subprocess.run(["ip", "netns", "del", name], capture_output=True)


def _tun(name: str) -> int:
    """Makes a network device; returns its file descriptor, which reads and writes packets."""
    file = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(file, 0x400454CA, struct.pack("16sH", name.encode(), 0x0001 | 0x1000))  # TUNSETIFF: TUN, NO_PI
    return file


def _ip(*words: str) -> None:
    _run("ip", *words)


def _run(*words: str) -> None:
    subprocess.run(words, check=True)


def relay(ends: tuple[int, int], bits_per_second: float, delay: float) -> None:
    """Forwards packets without end."""
    waiting: tuple[deque[tuple[float, bytes]], ...] = (deque(), deque())  # (due, packet) from each end
    free = [0.0, 0.0]  # time at which the link from that end is free
    poll = select.poll()
    for end in ends:
        poll.register(end, select.POLLIN)
    while True:
        now = time.monotonic()
        due = min((queue[0][0] for queue in waiting if queue), default=now + 1.0)
        poll.poll(max(0.0, 1e3 * (due - now)))
        for side, end in enumerate(ends):
            with contextlib.suppress(BlockingIOError):
                while True:
                    packet = os.read(end, 65536)
                    now = time.monotonic()
                    begin = max(now, free[side])
                    if begin - now > QUEUE_SECONDS:
                        continue
                    free[side] = begin + (8 * len(packet) / bits_per_second if bits_per_second else 0.0)
                    waiting[side].append((free[side] + delay, packet))
        now = time.monotonic()
        for side, queue in enumerate(waiting):
            while queue and queue[0][0] <= now:
                with contextlib.suppress(BlockingIOError):
                    os.write(ends[1 - side], queue.popleft()[1])


if __name__ == "__main__":
    relay((int(sys.argv[1]), int(sys.argv[2])), float(sys.argv[3]), float(sys.argv[4]))
