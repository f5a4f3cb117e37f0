"""Remedies for system calls that the kernel refuses, in the terms of the container runtime."""

from __future__ import annotations

import errno
import os
import shutil

from loopfs.sandbox.idmap import MAP, no_new_privs
from loopfs.uapi.sched import CAP_SETFCAP

NO_DEV_NULL = "give the container a /dev (bwrap: --dev /dev)"

PROFILE = "`loopfs seccomp-profile` prints one"
# How to give a container a seccomp profile.
_SECCOMP = {
    "podman": f"start the container with --security-opt seccomp=FILE ({PROFILE})",
    "docker": f"start the container with --security-opt seccomp=FILE ({PROFILE})",
    "kubernetes": "let the securityContext of the pod have a seccompProfile of type Localhost"
    f" ({PROFILE})",
    "systemd-nspawn": "start the container with --system-call-filter={call}",
    "lxc": "let the lxc.seccomp.profile of the container allow {call}",
    "incus": "run: incus config unset NAME security.syscalls.intercept.mount"
    " (or another setting security.syscalls.* of the container)",
    "lxd": "run: lxc config unset NAME security.syscalls.intercept.mount"
    " (or another setting security.syscalls.* of the container)",
    "": f"in a container, give it a seccomp profile that allows {{call}} ({PROFILE})",
}
_APPARMOR = {
    "podman": "start the container with --security-opt apparmor=unconfined",
    "docker": "start the container with --security-opt apparmor=unconfined",
    "kubernetes": "let the securityContext of the pod have an appArmorProfile of type Unconfined",
    "": "in a container, let its security module allow {call}",
}
_DEVICE = {
    "podman": "start the container with --device /dev/fuse",
    "docker": "start the container with --device /dev/fuse",
    "kubernetes": "let a device plugin give the pod /dev/fuse (docs/containers.md has one)",
    "systemd-nspawn": "start the container with --bind=/dev/fuse",
    "lxc": "let the configuration of the container have"
    " lxc.mount.entry = /dev/fuse dev/fuse none bind,create=file",
    "incus": "run: incus config device add NAME fuse unix-char path=/dev/fuse mode=0666",
    "lxd": "run: lxc config device add NAME fuse unix-char path=/dev/fuse mode=0666",
    "": "run: sudo modprobe fuse (a container needs the option --device /dev/fuse)",
}
_CAPABILITIES = {
    "podman": "start the container with --user 1000, or --cap-add SETFCAP,SETUID,SETGID",
    "docker": "start the container with --user 1000, or --cap-add SETFCAP,SETUID,SETGID",
    "kubernetes": "let the securityContext of the container have runAsUser: 1000,"
    " or add the capabilities SETFCAP, SETUID and SETGID",
    "": "run loopfs as another user, or give root the capabilities SETFCAP, SETUID and SETGID",
}
_PROC = {
    "podman": "start the container with --security-opt unmask=ALL",
    "docker": "start the container with --security-opt systempaths=unconfined",
    "kubernetes": "let the securityContext of the container have procMount: Unmasked"
    " (with hostUsers: false)",
    "incus": "run: incus config set NAME security.nesting=true",
    "lxd": "run: lxc config set NAME security.nesting=true",
    "": "in a container, unmask its /proc (podman: --security-opt unmask=ALL,"
    " docker: --security-opt systempaths=unconfined)",
}

# Files by which the manager of a container is recognized.
_OF_MANAGERS = {
    "/run/.containerenv": "podman",
    "/.dockerenv": "docker",
    "/dev/incus": "incus",
    "/dev/lxd": "lxd",
}

# A setting below /proc/sys, the value that forbids user namespaces, and the remedy.
_SETTINGS = (
    ("user/max_user_namespaces", "0", "run: sudo sysctl user.max_user_namespaces=15000"),
    (
        "kernel/unprivileged_userns_clone",
        "0",
        "run: sudo sysctl kernel.unprivileged_userns_clone=1",
    ),
    (
        "kernel/apparmor_restrict_unprivileged_userns",
        "1",
        "give loopfs an AppArmor profile (`loopfs apparmor-profile` prints it), "
        "or run: sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0",
    ),
)


_REFUSED = (errno.EPERM, errno.EACCES, errno.ENOSYS)
_FORBIDDEN = (*_REFUSED, errno.ENOSPC, errno.EUSERS)


def container() -> str:
    """Return the runtime of the container that we are in: podman, docker, kubernetes,
    systemd-nspawn, lxc, incus, lxd; empty if we are in none, or if it is not known."""
    if "KUBERNETES_SERVICE_HOST" in os.environ or os.path.isdir("/run/secrets/kubernetes.io"):
        return "kubernetes"
    for path, manager in _OF_MANAGERS.items():
        if os.path.exists(path):
            return manager
    named = os.environ.get("container", "")  # noqa: SIM112 - the name that systemd and podman use
    if not named:
        try:
            with open("/run/host/container-manager", encoding="utf-8") as file:
                named = file.read().strip()
        except OSError:
            return ""
    return named if named in _SECCOMP else ""


def refused(call: str, code: int) -> str:
    """Return the remedy if the kernel refuses a system call that making a sandbox needs.

    Args:
        call: its name; empty if it is not known.
        code: the errno.
    """
    if code in (errno.EMFILE, errno.ENFILE):
        return "raise the limit of open files (ulimit -n)"
    if code == errno.EFBIG:
        return "raise the limit of the size of files (ulimit -f)"
    if code == errno.EACCES and not call:  # a path, whose permissions may be the cause
        return f"give your user access to it; or {_here(_APPARMOR).format(call='it')}"
    if call == MAP and code == errno.EROFS:
        return "mount a /proc that can be written (bwrap: --proc /proc)"
    if call == MAP and lacks_setfcap():
        return _here(_CAPABILITIES)
    if code in _FORBIDDEN and (mended_by := forbidding_setting()) is not None:
        return mended_by
    if code not in _REFUSED:
        return f"see the errors in {call}(2)" if call else "`loopfs doctor` may say more"
    if call == MAP:
        return "in a container, let its security module allow the writing of /proc/PID/uid_map"
    table = _APPARMOR if code == errno.EACCES else _SECCOMP
    return _here(table).format(call=call or "it")


def lacks_setfcap() -> bool:
    """Whether we are root without the capability to map root (Linux 5.12; user_namespaces(7))."""
    if os.geteuid():
        return False
    with open("/proc/self/status", encoding="ascii", errors="replace") as file:
        fields = dict(line.split(":", 1) for line in file)
    return not int(fields["CapEff"], 16) >> CAP_SETFCAP & 1


def ids(tool: str, code: int | None = None) -> str:
    """Return the remedy if newuidmap or newgidmap may not write a map of subordinate ids.

    Args:
        code: the errno, if the tool cannot be executed.
    """
    if no_new_privs():
        return "nothing can be done under no_new_privs (allowPrivilegeEscalation: false)"
    if code == errno.EPERM:  # the file has a capability that is not in the bounding set
        return "let the container have the capabilities SETUID and SETGID (--cap-add SETUID,SETGID)"
    if container():
        # The kernel requires a capability over the new namespace. A set-user-id program gets it
        # only if its owner is the namespace's owner; file capabilities have no such condition.
        kind = "gid" if "gid" in tool else "uid"
        return (
            f"in the image, run: chmod u-s /usr/bin/{tool} && setcap cap_set{kind}=ep"
            f" /usr/bin/{tool}; and let /etc/sub{kind} name ids that the container has"
        )
    return f"give {tool} its privilege (in a container, by file capabilities); see {tool}(1)"


def fuse_device(code: int | None) -> str:
    """Return the remedy if /dev/fuse cannot be opened, by the errno."""
    if code in (errno.ENOENT, errno.ENXIO, errno.ENODEV):
        return _here(_DEVICE)
    if code == errno.EACCES:
        return (
            "run: sudo chmod 0666 /dev/fuse (the udev rule "
            """KERNEL=="fuse", MODE="0666" makes it permanent)"""
        )
    if container() in ("", "systemd-nspawn"):
        return "in a container, let its device policy allow /dev/fuse (--device /dev/fuse)"
    return _here(_DEVICE)


def covered_proc() -> str:
    """Return the remedy if no /proc can be mounted."""
    return _here(_PROC)


def forbidding_setting() -> str | None:
    """Return the remedy for a setting that forbids user namespaces; None if no setting does."""
    for name, forbids, remedy in _SETTINGS:
        if setting(name) == forbids:
            in_podman = "apparmor" in name and shutil.which("podman")  # podman may make them
            first = "run: podman unshare loopfs run ...; or " if in_podman else ""
            return f"{first}{remedy} (a file in /etc/sysctl.d makes a setting permanent)"
    return None


def setting(name: str) -> str | None:
    """Return the text of a file below /proc/sys; None if the kernel has no such setting."""
    try:
        with open(f"/proc/sys/{name}", encoding="utf-8") as file:
            return file.read().strip()
    except OSError:
        return None


def _here(table: dict[str, str]) -> str:
    return table.get(container(), table[""])
