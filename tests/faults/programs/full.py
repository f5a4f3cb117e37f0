"""The sandbox while no process or thread can be made, and afterwards."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from loopfs.uapi import loop
from tests.faults.programs.devices import NR, ioctl, report, syscall


def mount(source: str, target: str, fstype: str) -> int | str:
    return syscall(NR["mount"], source.encode(), target.encode(), fstype.encode(), 0, None)


def umount(target: str) -> int | str:
    return syscall(NR["umount2"], target.encode(), 0)


def mounts() -> int:
    return len(Path("/proc/self/mountinfo").read_text().splitlines())


def main() -> None:
    os.mkdir("instance")
    os.mkdir("filesystem")
    control = os.open("/dev/loop-control", os.O_RDWR)
    image = os.open("disk.img", os.O_RDWR)
    name = f"/dev/loop{fcntl.ioctl(control, loop.LOOP_CTL_GET_FREE)}"
    device = os.open(name, os.O_RDWR)
    before = mounts()
    answers: dict[str, object] = {}
    Path("no-threads").touch()
    answers["no threads: ioctl"] = ioctl(device, loop.LOOP_SET_FD, image)
    answers["no threads: instance"] = mount("none", "instance", "loop")
    os.unlink("no-threads")
    answers["then: ioctl"] = ioctl(device, loop.LOOP_SET_FD, image)
    for fault in ("no-threads", "no-forks"):
        Path(fault).touch()
        mount("none", "missing", "loop")  # ENOENT, by the spare job if there is one
        answers[f"{fault}: instance"] = mount("none", "instance", "loop")
        answers[f"{fault}: filesystem"] = mount(name, "filesystem", "ext4")
        os.unlink(fault)
        answers[f"{fault}: mounts"] = mounts() - before
        answers[f"after {fault}: instance"] = mount("none", "instance", "loop"), umount("instance")
        answers[f"after {fault}: filesystem"] = (
            mount(name, "filesystem", "ext4"),
            umount("filesystem"),
        )
    report(answers)


if __name__ == "__main__":
    main()
