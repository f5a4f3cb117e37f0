"""The mount of a device by an engine: the choice of the engine, and the requests of its job."""

from __future__ import annotations

import errno
import marshal
import os
import sys

from loopfs.channel import Channel, Message, close_all
from loopfs.engines.engine import Engine, NoEngine, Wanted
from loopfs.engines.helper import LEND, NOT_OURS, SERVE, TURN, UNSUPPORTED, WRITE_BACK, result
from loopfs.engines.mounts import Mounts, caller_descriptors
from loopfs.engines.policy import Policy
from loopfs.engines.turns import Turn
from loopfs.errors import LoopfsError
from loopfs.filesystems.held_device import HeldDevice
from loopfs.filesystems.instances import PATIENCE
from loopfs.filesystems.shares import ENGINE
from loopfs.intercept.notify import Call
from loopfs.lean import Any, NamedTuple
from loopfs.text import shown


class EngineChoice(NamedTuple):
    """The engine that is to serve a device, and its options; or the reason why there is none.

    ``other`` is used if the filesystem has a feature that the engine does not support.
    """

    engine: str
    options: tuple[str, ...]
    refused: int
    why: str
    without_effect: tuple[str, ...] = ()
    other: EngineChoice | None = None

    @classmethod
    def of(cls, policy: Policy, fstype: str, data: str) -> EngineChoice:
        """Choose by the policy, for a filesystem type and the mount options ``data``."""
        try:
            engine = policy.choose(fstype)
            return cls._by(engine, fstype, data, policy.after(engine, fstype))
        except NoEngine as problem:
            return cls("", (), problem.code, f"cannot mount {fstype}: {problem.strerror}")
        except OSError as problem:
            return cls("", (), problem.errno or errno.EINVAL, "")

    @classmethod
    def _by(cls, engine: Engine, fstype: str, data: str, after: Engine | None) -> EngineChoice:
        options, dropped = engine.translated(data, fstype), engine.without_effect(data, fstype)
        try:
            other = after and cls._by(after, fstype, data, None)
        except OSError:  # it does not support these options
            other = None
        return cls(engine.name, options, 0, "", dropped, other)


class Begun(NamedTuple):
    """A job that mounts: its channel, its answer, the device of its engine, and its turn to mount
    the device."""

    channel: Channel
    message: Message
    device: HeldDevice | None
    turn: Turn | None

    def next(self) -> None:
        """Release the turn, so that the next mount of the device can begin."""
        if self.turn is not None:
            self.turn.give_back()

    def close(self) -> None:
        """Close the channel and release the turn."""
        self.channel.close()
        self.next()


def begin_engine(
    mounts: Mounts, call: Call, arguments: tuple[object, ...], choice: EngineChoice
) -> Begun:
    """Make an engine serve a device in the caller's namespaces.

    Args:
        arguments: source, target (None for a context), type and MS_* flags.
    Raises:
        OSError: EMFILE if the caller has reached the limit of resources.
    """
    share = mounts.instances.shares.take(call.process.charged_user(), ENGINE, errno.EMFILE)
    with share:
        begun = _begin_engine(mounts, call, arguments, choice)
    if begun.device is None:  # no new engine
        share.give_back()
    else:
        share.last_as_long_as(begun.device)
    return begun


def _begin_engine(
    mounts: Mounts, call: Call, arguments: tuple[object, ...], choice: EngineChoice
) -> Begun:
    with caller_descriptors(call) as fds:
        how = (choice.engine, choice.options, choice.refused)
        job = (mounts.instances.device_numbers(), *arguments, *how)
        channel = mounts.helper.begin("mount", job, fds)
    conversation = _Conversation(mounts, call, channel, str(arguments[2]))
    try:
        begun = conversation.hold()
    except BaseException:
        channel.close()  # the job notices that, and ends
        conversation.give_back()
        raise
    outcome = result(begun.message)
    if outcome[0] == UNSUPPORTED:
        begun.close()
        code, sentence = _value(begun.message)
        if choice.other is None:
            raise _told(call, code, f"cannot mount {arguments[2]}: {choice.engine}: {sentence}")
        call.note(why=sentence)
        return _begin_engine(mounts, call, arguments, choice.other)
    if isinstance(outcome[1], str):
        tell(call, f"cannot mount {arguments[2]}: {choice.engine}: {outcome[1]}")
    if choice.engine and outcome[0] != NOT_OURS:
        call.note(engine=choice.engine)
    if choice.without_effect and outcome[0] != NOT_OURS:
        call.note(why=f"these options have no effect: {shown(','.join(choice.without_effect))}")
    if choice.why and outcome == (choice.refused, True):
        # This device has this filesystem. Without this check mount(8), which may try all types,
        # would cause messages.
        tell(call, choice.why)
    return begun


def _told(call: Call, code: int, why: str) -> OSError:
    tell(call, why)
    return OSError(code, os.strerror(code))


def tell(call: Call, why: str) -> None:
    """Print the reason why a mount is refused, and add it to the log."""
    call.note(why=why)
    print(f"loopfs: {shown(why)}", file=sys.stderr, flush=True)


class _Conversation:
    """The requests of a job that mounts, until it returns its result."""

    def __init__(self, mounts: Mounts, call: Call, channel: Channel, fstype: str) -> None:
        self._mounts = mounts
        self._call = call
        self._fstype = fstype
        self._channel = channel
        self._device: HeldDevice | None = None
        self._turn: Turn | None = None

    def hold(self) -> Begun:
        """Carry out the job's requests; return its result. Raises OSError."""
        replies = {
            TURN: self._take_turn,
            WRITE_BACK: self._write_back,
            SERVE: self._serve,
            LEND: self._lend,
        }
        message = self._channel.receive()
        while (reply := replies.get(result(message)[0])) is not None:
            reply(message)
            message = self._channel.receive()
        if result(message)[0]:
            if self._device is not None:
                self._channel.close()  # the job and the mount end; then the device is free again
                self._device.gone.wait(PATIENCE)
            else:
                self._channel.receive()  # the job has ended: it keeps no directory busy
            self.give_back()
        return Begun(self._channel, message, self._device, self._turn)

    def give_back(self) -> None:
        """Release the turn, so that the next mount of the device can begin."""
        if self._turn is not None:
            self._turn.give_back()

    def _take_turn(self, message: Message) -> None:
        device = _value(message)
        found = None
        refused = 0
        try:
            if self._turn is None:
                self._turn = self._mounts.turns.take(device, self._call.alive)
            found = self._mounts.served(device)
        except OSError as problem:
            refused = problem.errno or errno.EIO
        served = () if found is None else tuple(found[0])
        fds = () if found is None else found[1:]
        try:
            self._channel.send(marshal.dumps((refused, served)), fds)  # type: ignore[arg-type]
        finally:
            close_all(list(fds))

    def _write_back(self, message: Message) -> None:
        code = 0
        try:
            self._mounts.write_back(*_value(message))
        except OSError as problem:
            code = problem.errno or errno.EIO
        self._channel.send(b"%d" % code)

    def _serve(self, message: Message) -> None:
        code = 0
        try:
            self._device = self._mounts.serve(Wanted._make(_value(message)), message.fds[0])
            self._call.note(why=self._device.lock.without or None)
        except OSError as problem:
            code = self._refused(problem)
        self._channel.send(b"%d" % code)

    def _lend(self, message: Message) -> None:
        """Send the errno and the part of the file that the device shows; an empty tuple if the
        device has to be served instead of lent."""
        code, loan = 0, None
        try:
            loan = self._mounts.lend(Wanted._make(_value(message)))
        except OSError as problem:
            code = self._refused(problem)
        if loan is None:
            self._channel.send(marshal.dumps((code, ())))
            return
        self._device = loan.device
        self._call.note(why=loan.device.lock.without or None)
        try:
            where = marshal.dumps((0, (loan.offset, loan.size, loan.read_only)))
            self._channel.send(where, (loan.file, loan.end))
        finally:
            os.close(loan.end)

    def _refused(self, problem: OSError) -> int:
        if isinstance(problem, LoopfsError):
            tell(self._call, f"cannot mount {self._fstype}: {problem.strerror}")
        return problem.errno or errno.EIO


def _value(message: Message) -> tuple[Any, ...]:
    value = result(message)[1]
    assert isinstance(value, tuple)
    return value
