"""Forks of a process that has imported torch, and a socket over which open files go with a message. Linux has them; ask
`can_fork` first."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from types import FrameType

if sys.platform == "linux":

    def socket_pair() -> tuple[socket.socket, socket.socket]:
        """Two ends; what is sent arrives whole, or the other end is gone."""
        return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def send(end: socket.socket, data: bytes, files: Sequence[int] = ()) -> None:
        """A message, and descriptors that the other process gets copies of."""
        socket.send_fds(end, [data], files)

    def send_if_it_listens(end: socket.socket, data: bytes) -> None:
        end.send(data, socket.MSG_DONTWAIT)

    def receive(end: socket.socket, most: int, files: int) -> tuple[bytes, list[int]]:
        """A message, empty when the other end is gone, and at most so many descriptors."""
        data, descriptors, _, _ = socket.recv_fds(end, most, files)
        return data, descriptors

    def forget_children() -> None:
        """Let forks that end leave nothing behind, and have nobody ask for their exit codes."""
        signal.signal(signal.SIGCHLD, _reap)

    def _reap(number: int, frame: FrameType | None) -> None:
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass

    def priority() -> int:
        """Niceness of this process."""
        return os.nice(0)

    class Fork:
        """This process a second time, which does something and ends.

        Args:
            work: Never comes back.
            apart: In a session of its own, as if it had been started.
        """

        def __init__(self, work: Callable[[], object], apart: bool = False) -> None:
            self._code: int | None = None
            sys.stdout.flush()
            sys.stderr.flush()
            self.pid = os.fork()
            if self.pid == 0:
                if apart:
                    os.setsid()
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                work()

        def poll(self) -> int | None:
            """The exit code (negative: killed by that signal); None while it runs."""
            if self._code is None:
                self._look(os.WNOHANG)
            return self._code

        def kill(self) -> None:
            self.signal(signal.SIGKILL)
            if self._code is None:
                self._look(0)

        def signal(self, number: int) -> None:
            if self.poll() is None:
                os.kill(self.pid, number)

        def _look(self, options: int) -> None:
            pid, status = os.waitpid(self.pid, options)
            if pid:
                self._code = os.waitstatus_to_exitcode(status)

else:

    def socket_pair() -> tuple[socket.socket, socket.socket]:
        raise NotImplementedError

    def send(end: socket.socket, data: bytes, files: Sequence[int] = ()) -> None:
        raise NotImplementedError

    def send_if_it_listens(end: socket.socket, data: bytes) -> None:
        raise NotImplementedError

    def receive(end: socket.socket, most: int, files: int) -> tuple[bytes, list[int]]:
        raise NotImplementedError

    def forget_children() -> None:
        raise NotImplementedError

    def priority() -> int:
        raise NotImplementedError

    class Fork:
        def __init__(self, work: Callable[[], object], apart: bool = False) -> None:
            self.pid = 0
            raise NotImplementedError

        def poll(self) -> int | None:
            raise NotImplementedError

        def kill(self) -> None:
            raise NotImplementedError

        def signal(self, number: int) -> None:
            raise NotImplementedError
