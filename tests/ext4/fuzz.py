"""Random calls on the kernel's ext4 and on that of loopfs, on images of all kinds.

    python3 -m tests.ext4.fuzz --calls 100000 [--seed N] [--kind WORDS]

in the checkout, as root, with loop devices of the kernel. Each sequence has a seed of its own; a
fault names what makes it again.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import time

from tests.ext4.images import KINDS
from tests.support.patience import scaled
from tests.support.user import CHECKOUT

LENGTH = 1000  # calls of a sequence
NAMES = (0, 0, 3000)  # in a directory that is there before
TIMEOUT = scaled(300.0)  # seconds


def play(kind: str, seed: int, calls: int, names: int) -> str:
    """What differs in one sequence; empty when nothing does."""
    inner = [sys.executable, "-B", "-m", "tests.ext4.sequence", kind, str(seed), str(calls)]
    command = ["unshare", "-m", "--propagation", "private", *inner, str(names)]
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}
    environment["PYTHONPATH"] = f"{CHECKOUT / 'src'}:{CHECKOUT}"
    if seed % 2:
        environment["MOST"] = "0"  # each call is a transaction
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=TIMEOUT,
        env=environment,
        cwd=CHECKOUT,
        check=False,
    )
    if done.returncode == 0 and not done.stderr:
        return ""
    return f"{kind!r} seed {seed}, {calls} calls, {names} names:\n{done.stdout}\n{done.stderr}"


def main() -> int:
    """Exit status: 1 something differs."""
    parser = argparse.ArgumentParser(prog="python3 -m tests.ext4.fuzz")
    parser.add_argument("--calls", type=int, default=10_000, help="how many")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    parser.add_argument("--kind", default="", help="arguments of mke2fs: only this kind")
    parser.add_argument("--names", type=int, help="that many in a directory before")
    parser.add_argument("--length", type=int, default=LENGTH, help="calls of one sequence")
    parser.add_argument("--faults", type=int, default=5, help="after how many to end")
    options = parser.parse_args()
    begin, done, faults = time.monotonic(), 0, 0
    for turn in range(-(-options.calls // options.length)):
        kind = options.kind or KINDS[turn % len(KINDS)]
        names = NAMES[turn % len(NAMES)] if options.names is None else options.names
        calls = min(options.length, options.calls - done)
        found = play(kind, options.seed + turn, calls, names)
        done += calls
        if found:
            faults += 1
            print(found, flush=True)
            if faults >= options.faults:
                break
    seconds = time.monotonic() - begin
    print(f"seed {options.seed}: {done} calls in {seconds:.0f} s, {faults} sequences with faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
