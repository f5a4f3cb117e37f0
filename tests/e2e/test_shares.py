"""Another user of the sandbox can use its share of the supervisor's resources only."""

from __future__ import annotations

from pathlib import Path

import pytest

from loopfs.filesystems.shares import INSTANCE, KEPT
from tests.support.user import Run

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("places")]

LIMIT = 400  # descriptors
SHARE = (LIMIT - KEPT) // 8

# As user 5000, in a user namespace of his own, as often as he likes.
OTHER = """
from calls import *
os.setgroups([]); os.setresgid(5000, 5000, 5000); os.setresuid(5000, 5000, 5000)
def until_refused(act):
    done = 0
    while (code := act()) == 0:
        done += 1
    return done, code
libc.prctl(4, 1)  # PR_SET_DUMPABLE: to write its maps
def namespace():
    ids = dict(uid=os.getuid(), gid=os.getgid())
    assert libc.unshare(0x10000000 | 0x20000) == 0  # CLONE_NEWUSER, CLONE_NEWNS
    open("/proc/self/setgroups", "w").write("deny")
    for kind, number in ids.items():
        open(f"/proc/self/{kind}_map", "w").write(f"0 {number} 1")
def context():
    got = call("fsopen", "loop", 0)
    return got if isinstance(got, str) else 0
def instance():
    result = libc.mount(b"none", b"two", b"loop", 0, None)
    return errno.errorcode[ctypes.get_errno()] if result < 0 else 0
"""

CONTEXTS = """
namespace(); print(*until_refused(context), flush=True)
namespace(); print(*until_refused(context), flush=True)
"""
INSTANCES = """
namespace(); print(*until_refused(instance), flush=True)
namespace(); print(*until_refused(context), flush=True)
"""


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        (CONTEXTS, [f"{SHARE} ENFILE", "0 ENFILE"]),
        (INSTANCES, [f"{SHARE // INSTANCE} EMFILE", "0 ENFILE"]),
    ],
    ids=["contexts", "instances"],
)
def test_root_can_go_on_and_what_is_given_back_can_be_had_again(
    loopfs_bin: list[str], run_as_user: Run, workdir: Path, what: str, expected: list[str]
) -> None:
    workdir.chmod(0o755)
    (workdir / "two").chmod(0o777)
    (workdir / "other.py").write_text(OTHER + what + "input()\n")
    script = """
        export PYTHONDONTWRITEBYTECODE=1
        mkfifo end; exec 3<>end; d=$(losetup -f)
        other() {
            python3 other.py <end >said &
            until [ "$(wc -l <said)" = 2 ]; do kill -0 $!; sleep 0.05; done
        }
        end() { echo >&3; wait $!; cat said; rm said; }
        : >said; other
        losetup $d disk.img; mount -i -t loop none one; umount one; mount $d one; umount one
        losetup -d $d; end
        : >said; other; end
    """
    words = ["sh", "-c", f'ulimit -n {LIMIT}; exec "$@"', "sh", *loopfs_bin, "run", "--"]
    result = run_as_user([*words, "sh", "-ec", script], cwd=workdir, timeout=30)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.splitlines() == expected * 2
