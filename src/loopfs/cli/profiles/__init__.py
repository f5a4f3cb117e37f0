"""``loopfs seccomp-profile`` and ``loopfs apparmor-profile``: profiles with which loopfs can run
in a container, or on a machine that restricts user namespaces.

containers-common.json is the default profile of podman, buildah and CRI-O (containers/common 0.50,
pkg/seccomp/seccomp.json, Apache-2.0), without its spaces.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Iterator
from typing import Any

from loopfs.cli import usage
from loopfs.cli.parser import Parser
from loopfs.text import shown

# The calls of loopfs that default profiles refuse or permit with a capability only. None of them
# gives a privilege beyond those of a user namespace; chroot(2) is used for callers in a chroot.
CALLS = (
    "chroot",
    "fsconfig",
    "fsmount",
    "fsopen",
    "fspick",
    "landlock_add_rule",
    "landlock_create_ruleset",
    "landlock_restrict_self",
    "mount",
    "mount_setattr",
    "move_mount",
    "open_tree",
    "pidfd_getfd",
    "pidfd_open",
    "process_vm_readv",
    "process_vm_writev",
    "seccomp",
    "setns",
    "umount",
    "umount2",
    "unshare",
)
ALLOW = "SCMP_ACT_ALLOW"
ARCHITECTURES = {
    "x86_64": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
    "aarch64": ["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"],
}
NAMES = {"x86_64": {"amd64", "x86", "x32"}, "aarch64": {"arm64", "arm"}}  # as conditions have them

APPARMOR = """\
# /etc/apparmor.d/loopfs: loopfs may make user namespaces where the machine restricts them
# (kernel.apparmor_restrict_unprivileged_userns). Nothing else is confined or allowed by it.
# Load it: sudo apparmor_parser -r /etc/apparmor.d/loopfs
abi <abi/4.0>,
include <tunables/global>

profile loopfs {path} flags=(unconfined) {{
  userns,
  include if exists <local/loopfs>
}}
"""
PLACES = "/{usr,usr/local,home/*/.local}/bin/loopfs"


def seccomp(argv: list[str]) -> int:
    """Run the subcommand ``seccomp-profile`` and return the exit status.

    Args:
        argv: the arguments after that word.
    """
    options = Parser(usage.SECCOMP_PROFILE).parse_args(argv)
    path = options.base
    kept = os.path.join(os.path.dirname(__file__), "containers-common.json")
    try:
        with open(path or kept, encoding="utf-8") as file:
            base = json.load(file)
        if options.agent is None:
            profile = extended(base, platform.machine())
        else:
            from loopfs.agent.profile import with_listener

            profile = with_listener(base, os.path.abspath(options.agent))
    except OSError as problem:
        return _refuse(f"{path}: {problem.strerror}")
    except (ValueError, TypeError, KeyError, AttributeError):
        return _refuse(f"{path} is not a seccomp profile of docker, podman or the OCI")
    print(json.dumps(profile, indent=1))
    return 0


def apparmor(argv: list[str]) -> int:
    """Run the subcommand ``apparmor-profile`` and return the exit status.

    Args:
        argv: the arguments after that word.
    """
    path = Parser(usage.APPARMOR_PROFILE).parse_args(argv).path
    print(APPARMOR.format(path=path or PLACES), end="")
    return 0


def extended(base: dict[str, Any], machine: str) -> dict[str, Any]:
    """Return a profile that permits CALLS, and what ``base`` permits without capabilities.

    It has no conditions: docker and podman support those on capabilities and architectures, but the
    OCI's format, which containerd reads, does not.

    Args:
        machine: the output of uname -m.
    Raises:
        KeyError, TypeError, AttributeError: ``base`` is not a profile.
    """
    kept = "defaultAction", "defaultErrnoRet"
    profile: dict[str, Any] = {key: base[key] for key in kept if key in base}
    profile["architectures"] = ARCHITECTURES[machine]
    profile["syscalls"] = [{"names": list(CALLS), "action": ALLOW}, *_rules(base, NAMES[machine])]
    return profile


def _rules(base: dict[str, Any], machines: set[str]) -> Iterator[dict[str, Any]]:
    for rule in base["syscalls"]:
        includes, excludes = rule.get("includes") or {}, rule.get("excludes") or {}
        if includes.get("caps") or machines & set(excludes.get("arches") or ()):
            continue
        if includes.get("arches") and not machines & set(includes["arches"]):
            continue
        names = [name for name in rule["names"] if name not in CALLS]
        if names:
            kept = {key: rule[key] for key in ("args", "errnoRet") if rule.get(key)}
            yield {"names": names, "action": rule["action"], **kept}


def _refuse(sentence: str) -> int:
    print(f"loopfs: {shown(sentence)}", file=sys.stderr)
    return 2
