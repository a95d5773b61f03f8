"""Whether an engine sleeps, who asks it, and since when nobody does: it falls asleep under nobody, and is woken before
it is asked. vLLM does neither by itself: a request that reaches it asleep is never answered."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from enum import Enum, auto

from comfyloop.errors import ComfyLoopError, Conflict, EngineUnavailable

DRAIN_SECONDS = 60.0
"""How long an engine that is told to sleep waits for those who ask it."""


class _State(Enum):
    AWAKE = auto()
    FALLING = auto()
    ASLEEP = auto()
    WAKING = auto()


class Sleeper:
    """Of one engine process. Thread-safe.

    Args:
        sleep: Has the engine sleep; given vLLM's level.
        wake: Has it wake, and returns when it answers.
        clock: Seconds, monotonic.
    """

    def __init__(
        self,
        sleep: Callable[[int], None],
        wake: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.can_sleep = False  # whether the engine knows how
        self.after = 0.0
        """Seconds without anybody who asks, after which it sleeps; 0: when it is told to."""
        self.wakes = 0
        self.wake_seconds: float | None = None
        """Of the last wake."""
        self.on_change: Callable[[], None] = lambda: None
        self._sleep, self._wake, self._clock = sleep, wake, clock
        self._changed = threading.Condition()
        self._state = _State.AWAKE
        self._users = 0
        self._used_at = clock()
        self._rousing: asyncio.Future[None] | None = None
        self._tries = 0  # to wake it
        self._failed: tuple[int, ComfyLoopError | None] = (0, None)  # the last try that did not, and why

    @property
    def is_sleeping(self) -> bool:
        return self._state in (_State.ASLEEP, _State.WAKING)

    # --- who asks

    @contextmanager
    def awake(self) -> Iterator[None]:
        """The engine is awake, and stays so, while the block runs. Raises why it does not wake."""
        is_awake = self.enter()
        try:
            if not is_awake:
                self.rouse()
            yield
        finally:
            self.leave()

    @asynccontextmanager
    async def awake_async(self) -> AsyncIterator[None]:
        await self.enter_async()
        try:
            yield
        finally:
            self.leave()

    async def enter_async(self) -> None:
        """`leave` when all has been answered; not when this raises."""
        if self.enter():
            return
        try:
            await asyncio.shield(self._roused())
        except BaseException:
            self.leave()
            raise

    def _roused(self) -> asyncio.Future[None]:
        """One thread wakes it for all who wait in an event loop."""
        rousing = self._rousing
        if rousing is None or rousing.done() or rousing.get_loop() is not asyncio.get_running_loop():
            rousing = self._rousing = asyncio.ensure_future(asyncio.to_thread(self.rouse))
            rousing.add_done_callback(lambda done: done.cancelled() or done.exception())  # all may have left
        return rousing

    def enter(self) -> bool:
        """Count one who asks, whether it is awake. If not it must be roused first."""
        with self._changed:
            self._users += 1
            return self._state is _State.AWAKE

    def leave(self) -> None:
        with self._changed:
            self._users -= 1
            self._used_at = self._clock()
            if not self._users:
                self._changed.notify_all()

    def rouse(self) -> None:
        """Wake it, or wait for whoever does. Raises why it does not wake."""
        with self._changed:
            came = self._tries
            while self._state is not _State.ASLEEP:
                if self._state is _State.AWAKE:
                    return
                self._changed.wait()
                tried, problem = self._failed
                if tried > came and problem is not None:  # begun after we came: ours would end no better
                    raise problem
            self._state = _State.WAKING
            self._tries += 1
        began = self._clock()
        try:
            self._wake()
        except BaseException as error:
            if isinstance(error, ComfyLoopError):
                self._failed = (self._tries, error)
            self._become(_State.ASLEEP)
            raise
        self.wakes += 1
        self.wake_seconds = self._clock() - began
        self._become(_State.AWAKE)

    def wake_up(self) -> None:
        """Wake it although nobody asks yet: somebody soon will."""
        with self.awake():
            pass

    # --- who gives its memory back

    def sleep(self, level: int = 1, seconds: float = DRAIN_SECONDS) -> None:
        """Have it sleep as soon as nobody asks it.

        Raises:
            Conflict: It does not know how, or it was asked all the while.
            EngineUnavailable: It does not answer.
        """
        if not self.can_sleep:
            raise Conflict(
                "This engine cannot sleep.",
                "The embedded engine can, and vLLM where engine_sleep_after is set before it is started.",
            )
        deadline = time.monotonic() + seconds
        while not self._lie_down(level, 0.0):
            with self._changed:
                left = deadline - time.monotonic()
                if left <= 0:
                    raise Conflict(
                        f"Requests were answered for {seconds:.0f} seconds, so it did not fall asleep.",
                        "Try again later.",
                    )
                if self._users or self._state is _State.FALLING:
                    self._changed.wait(min(left, 1.0))

    def sleep_when_quiet(self, seconds: float | None = None) -> None:
        """Have it sleep where nobody has asked for so long, else for `after`. Raises what the engine says to that."""
        if self.can_sleep and self.after > 0:
            self._lie_down(1, self.after if seconds is None else min(seconds, self.after))

    def seems_asleep(self) -> None:
        """Somebody else has put it to sleep."""
        with self._changed:
            if self._state is not _State.AWAKE:
                return
            self._state = _State.ASLEEP
        self.on_change()

    def _lie_down(self, level: int, quiet_seconds: float) -> bool:
        """Whether it sleeps now."""
        with self._changed:
            if self._state is not _State.AWAKE:
                return self._state is _State.ASLEEP
            if self._users or self._clock() - self._used_at < quiet_seconds:
                return False
            self._state = _State.FALLING
        try:
            self._sleep(level)
        except EngineUnavailable:  # it did not say whether it does: to wake one that is awake is harmless
            self._become(_State.ASLEEP)
            raise
        except BaseException:
            self._used_at = self._clock()  # it is asked again after another quiet time
            self._become(_State.AWAKE)
            raise
        self._become(_State.ASLEEP)
        return True

    def _become(self, state: _State) -> None:
        with self._changed:
            self._state = state
            self._changed.notify_all()
        self.on_change()
