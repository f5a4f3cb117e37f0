"""A server: one FUSE mount of a whole filesystem, which is a :class:`loopfs.fuse.tree.Tree`.

One thread reads the requests and answers them in the order in which the kernel queues them. Work
that may take long is done in a thread of its own, so that fsync(2) does not block reads.
Notifications that may wait for the kernel are sent by another thread: the kernel may need a reply
first.
"""

from __future__ import annotations

import errno
import mmap
import os
import queue
import sys
import threading
from functools import partial
from itertools import count

from loopfs.fuse.dispatch import HANDLERS
from loopfs.fuse.replies import BUFFER_SIZE, MAX_PAGES, MAX_WRITE
from loopfs.fuse.tree import FACE, STAND_IN, Buffer, Caller, Handle, Later, N, Tree
from loopfs.lean import TYPE_CHECKING, Callable, Generic
from loopfs.uapi import fuse as uapi

if TYPE_CHECKING:
    from loopfs.fuse.dispatch import Answer
    from loopfs.uapi.fuse import Attr

_FLAGS = (
    uapi.FUSE_ASYNC_READ
    | uapi.FUSE_ATOMIC_O_TRUNC
    | uapi.FUSE_BIG_WRITES
    | uapi.FUSE_HAS_IOCTL_DIR
    | uapi.FUSE_DO_READDIRPLUS
    | uapi.FUSE_READDIRPLUS_AUTO
    | uapi.FUSE_ASYNC_DIO
    | uapi.FUSE_CACHE_SYMLINKS
    | uapi.FUSE_PARALLEL_DIROPS
    | uapi.FUSE_MAX_PAGES
)
_HEADER = uapi.IN_HEADER.size
_WRITE_DATA = _HEADER + uapi.WRITE_IN.size
_UNANSWERED = frozenset({uapi.FUSE_FORGET, uapi.FUSE_BATCH_FORGET, uapi.FUSE_INTERRUPT})
# Requests that change a filesystem; of OPEN and IOCTL some do.
_CHANGING = frozenset(
    {
        *(uapi.FUSE_WRITE, uapi.FUSE_SETATTR, uapi.FUSE_CREATE, uapi.FUSE_MKNOD, uapi.FUSE_MKDIR),
        *(uapi.FUSE_SYMLINK, uapi.FUSE_LINK, uapi.FUSE_UNLINK, uapi.FUSE_RMDIR, uapi.FUSE_RENAME),
        *(uapi.FUSE_RENAME2, uapi.FUSE_SETXATTR, uapi.FUSE_REMOVEXATTR, uapi.FUSE_FALLOCATE),
        *(uapi.FUSE_COPY_FILE_RANGE, uapi.FUSE_COPY_FILE_RANGE_64, uapi.FUSE_TMPFILE),
    }
)
_IOC_WRITE = 1 << 30
_GONE = (errno.ENODEV, errno.ECONNABORTED)  # unmounted; the latter: during the read
_AGAIN = (errno.ENOENT, errno.EINTR)  # the request was interrupted before it was read


class Server(Generic[N]):
    """The server's end of one mount.

    Args:
        fd: an open /dev/fuse that has been or will be mounted. It belongs to the caller, and must
            stay open until :meth:`serve` has returned.
        tree: the filesystem.
        idle: called when no request waits, if ``fd`` is non-blocking; returns when one may.

    Attributes:
        lock: held while the tree is called. Another thread of the tree, and :class:`Later` work,
            must take it to use what calls change.
        new_stand_in: returns a new node id that belongs to no node.
        frozen: requests that change something are held back until :meth:`thaw`. Set with the lock.
    """

    def __init__(self, fd: int, tree: Tree[N], idle: Callable[[], object] | None = None) -> None:
        self.tree = tree
        self._fd = fd
        self._idle = idle
        root = tree.root()
        self._nodes: dict[int, N] = {uapi.FUSE_ROOT_ID: root}  # nodes the kernel refers to
        self._lookups: dict[int, int] = {uapi.FUSE_ROOT_ID: 1}
        self._handles: dict[int, Handle[N]] = {}
        self._new_handle = count(1)
        self.new_stand_in = count(STAND_IN).__next__
        self.lock = threading.Lock()
        self.frozen = False
        self._held: list[bytes] = []
        self._slow: set[threading.Thread] = set()
        self._notices: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._notifier: threading.Thread | None = None
        tree.known(root)
        tree.server = self

    # --- the loop ------------------------------------------------------------

    def serve(self) -> None:
        """Answer requests until the filesystem is unmounted or the connection aborted.

        To be called once. When it returns, all threads of the server have ended and the tree has
        been destroyed.

        Raises:
            OSError: an error of the tree's destruction.
        """
        try:
            self._serve()
        finally:
            for thread in list(self._slow):
                thread.join()
            if self._notifier is not None:
                self._notices.put(None)
                self._notifier.join()
        self.tree.destroy()

    def _serve(self) -> None:
        buffer = mmap.mmap(-1, BUFFER_SIZE)  # only the pages that are used take memory
        view, buffers = memoryview(buffer), [buffer]
        fd = self._fd
        while True:
            try:
                length = os.readv(fd, buffers)
            except OSError as problem:
                if problem.errno in _GONE:
                    return
                if problem.errno == errno.EAGAIN and self._idle is not None:
                    self._idle()
                    continue
                if problem.errno in _AGAIN:
                    continue
                raise
            if self._carry_out(view, length) == uapi.FUSE_DESTROY:
                return

    def _carry_out(self, view: memoryview, length: int) -> int:
        """Answer the request in the first ``length`` bytes; return its opcode."""
        _, opcode, unique, nodeid, uid, gid, pid, _, _ = uapi.IN_HEADER.unpack_from(view)
        try:
            with self.lock:
                if self.frozen and self._hold(opcode, view, length):
                    pass
                elif opcode == uapi.FUSE_READ:
                    self.reply(unique, self._read(view))
                elif opcode == uapi.FUSE_WRITE:
                    self._answer(unique, self._write(view, uid))
                else:
                    body, caller = bytes(view[_HEADER:length]), Caller(uid, gid, pid)
                    self._dispatch(opcode, unique, nodeid, caller, body)
                self.tree.answered()
        except OSError as problem:
            self._fail(opcode, unique, problem.errno or errno.EIO)
            with self.lock:
                self.tree.failed(problem)
        except Exception:  # a bug in loopfs: fails one request, must not end the server
            sys.excepthook(*sys.exc_info())
            self._fail(opcode, unique, errno.EIO)
        return int(opcode)

    def _hold(self, opcode: int, view: memoryview, length: int) -> bool:
        """Hold back a request that changes something; return whether it was held back.

        A caller that is interrupted is not kept: else it could not be killed.
        """
        if opcode == uapi.FUSE_INTERRUPT:
            (unique,) = uapi.INTERRUPT_IN.unpack_from(view, _HEADER)
            for message in [each for each in self._held if _unique(each) == unique]:
                self._held.remove(message)
                self._fail(opcode=0, unique=unique, code=errno.EINTR)
            return True
        if not _changes(opcode, view):
            return False
        self._held.append(bytes(view[:length]))
        return True

    def thaw(self) -> None:
        """Carry out what was held back, and hold back nothing any more. By any thread."""
        with self.lock:
            self.frozen = False
            held, self._held = self._held, []
        for message in held:
            self._carry_out(memoryview(message), len(message))

    # READ and WRITE are separate: they need no copy of the data and no lookup of a handler.

    def _read(self, view: memoryview) -> Buffer:
        fh, offset, size, *_ = uapi.READ_IN.unpack_from(view, _HEADER)
        return self.tree.read(self._handles[fh], offset, size)

    def _write(self, view: memoryview, uid: int) -> Buffer:
        fh, offset, size, flags, *_ = uapi.WRITE_IN.unpack_from(view, _HEADER)
        data = view[_WRITE_DATA : _WRITE_DATA + size]
        if flags & uapi.FUSE_WRITE_KILL_SUIDGID and uid:
            self.tree.drop_privileges(self._handles[fh].node)
        done = self.tree.write(self._handles[fh], offset, data)
        if done < size and flags & uapi.FUSE_WRITE_CACHE:
            # The kernel ignores a short count for mapped pages: msync(2) would return 0.
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return uapi.WRITE_OUT.pack(done, 0)

    def _dispatch(self, opcode: int, unique: int, nodeid: int, caller: Caller, body: bytes) -> None:
        if opcode == uapi.FUSE_INIT:
            self.reply(unique, self._init(body))
            return
        handler = HANDLERS.get(opcode)
        if handler is None:
            if opcode not in _UNANSWERED:
                self._fail(opcode, unique, errno.ENOSYS)
            return
        answer: Answer = handler(self, nodeid, caller, body)
        if opcode not in _UNANSWERED:
            self._answer(unique, answer)

    def _answer(self, unique: int, answer: Answer) -> None:
        if not isinstance(answer, Later):
            settle = self.tree.settle()
            if settle is None:
                self.reply(unique, answer)
                return
            answer = Later(partial(_after, settle, bytes(answer)))
        thread = threading.Thread(target=self._do, args=(unique, answer), name="fuse slow")
        self._slow.add(thread)
        thread.start()

    def _init(self, body: bytes) -> bytes:
        _, _, readahead, flags = uapi.INIT_IN.unpack_from(body)
        version = uapi.FUSE_KERNEL_VERSION, uapi.FUSE_KERNEL_MINOR_VERSION
        flags &= _FLAGS | self.tree.init_flags
        background = 64, 48
        return uapi.INIT_OUT.pack(
            *version, readahead, flags, *background, MAX_WRITE, 1, MAX_PAGES, 0, 0
        )

    def _do(self, unique: int, later: Later) -> None:
        try:
            self.reply(unique, later.work() or b"")
        except OSError as problem:
            self._fail(0, unique, problem.errno or errno.EIO)
        except Exception:
            sys.excepthook(*sys.exc_info())
            self._fail(0, unique, errno.EIO)
        finally:
            self._slow.discard(threading.current_thread())

    # --- answers -------------------------------------------------------------

    def reply(self, unique: int, *parts: Buffer) -> None:
        """Send a reply that reports success."""
        length = uapi.OUT_HEADER.size + sum(map(len, parts))
        self._send(uapi.OUT_HEADER.pack(length, 0, unique), *parts)

    def _fail(self, opcode: int, unique: int, code: int) -> None:
        if opcode not in _UNANSWERED:
            self._send(uapi.OUT_HEADER.pack(uapi.OUT_HEADER.size, -code, unique))

    def _send(self, *parts: Buffer) -> None:
        try:
            os.writev(self._fd, parts)
        except OSError as problem:
            # ENOENT: the request was interrupted, or the node is unknown; ENODEV: unmounted.
            if problem.errno not in (errno.ENOENT, errno.ENODEV):
                raise

    # --- nodes and handles -----------------------------------------------------

    def node(self, nodeid: int) -> N:
        """Return the node for a node id of the kernel.

        Raises:
            OSError: ESTALE.
        """
        node = self._nodes.get(nodeid)
        if node is None or self.tree.is_stale(node, nodeid):
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return node

    def attr(self, node: N, nodeid: int) -> Attr:
        """Return the attributes that a node has under a node id."""
        attr = self.tree.getattr(node)
        return self.tree.attr_of_face(node, attr) if nodeid & FACE else attr

    def count_lookup(self, node: N, face: int | None = None) -> None:
        """Count a lookup: the reply refers to a node, by node id ``face`` if that is given."""
        nodeid = node.nodeid if face is None else face
        if nodeid not in self._lookups:
            self._nodes[nodeid] = node
            self._lookups[nodeid] = 0
            self.tree.known(node)
        self._lookups[nodeid] += 1

    def forget(self, nodeid: int, times: int) -> None:
        """Decrement the lookup count of a node id by ``times``."""
        if nodeid not in self._lookups:  # a stand-in
            return
        left = self._lookups[nodeid] - times
        if left > 0 or nodeid == uapi.FUSE_ROOT_ID:
            self._lookups[nodeid] = max(left, 1) if nodeid == uapi.FUSE_ROOT_ID else left
            return
        del self._lookups[nodeid]
        self.tree.forgotten(self._nodes.pop(nodeid))

    def handle(self, fh: int) -> Handle[N]:
        """Return an open file by its number."""
        return self._handles[fh]

    def add_handle(self, handle: Handle[N]) -> int:
        """Register an open file, and return its number."""
        fh = next(self._new_handle)
        self._handles[fh] = handle
        return fh

    def drop_handle(self, fh: int) -> Handle[N]:
        """Remove an open file from the table, and return it."""
        return self._handles.pop(fh)

    # --- notifications ------------------------------------------------------------

    def attributes_changed(self, nodeid: int) -> None:
        """Invalidate the attributes of a node that the kernel has cached. Does not block."""
        body = uapi.NOTIFY_INVAL_INODE_OUT.pack(nodeid, -1, 0)
        self._send(_notice(uapi.FUSE_NOTIFY_INVAL_INODE, body))

    def drop_pages(self, nodeid: int, offset: int = 0, length: int = 0) -> None:
        """Invalidate pages of a file that the kernel has cached, asynchronously.

        Args:
            offset, length: bytes; a length of 0 means up to the end.
        """
        body = uapi.NOTIFY_INVAL_INODE_OUT.pack(nodeid, offset, length)
        self._notify(_notice(uapi.FUSE_NOTIFY_INVAL_INODE, body))

    def forget_name(self, parent: int, name: bytes) -> None:
        """Invalidate a name that the kernel has cached, asynchronously."""
        body = uapi.NOTIFY_INVAL_ENTRY_OUT.pack(parent, len(name), 0) + name + b"\0"
        self._notify(_notice(uapi.FUSE_NOTIFY_INVAL_ENTRY, body))

    def _notify(self, message: bytes) -> None:
        if self._notifier is None:
            self._notifier = threading.Thread(target=self._send_notices, name="fuse notices")
            self._notifier.start()
        self._notices.put(message)

    def _send_notices(self) -> None:
        while (message := self._notices.get()) is not None:
            try:
                self._send(message)
            except OSError:  # no caller waits for it, and later notices must still be sent
                sys.excepthook(*sys.exc_info())


def _unique(message: bytes) -> int:
    return int(uapi.IN_HEADER.unpack_from(message)[2])


def _changes(opcode: int, view: memoryview) -> bool:
    """Return whether a request changes the filesystem."""
    if opcode == uapi.FUSE_OPEN:
        flags, how = uapi.OPEN_IN.unpack_from(view, _HEADER)
        writes = flags & os.O_ACCMODE != os.O_RDONLY or flags & os.O_TRUNC
        return bool(writes or how & uapi.FUSE_OPEN_KILL_SUIDGID)
    if opcode == uapi.FUSE_IOCTL:
        _, _, command, *_ = uapi.IOCTL_IN.unpack_from(view, _HEADER)
        return bool(command & _IOC_WRITE)
    return opcode in _CHANGING


def _after(settle: Callable[[], None], answer: Buffer) -> Buffer:
    settle()
    return answer


def _notice(code: int, body: bytes) -> bytes:
    return uapi.OUT_HEADER.pack(uapi.OUT_HEADER.size + len(body), code, 0) + body
