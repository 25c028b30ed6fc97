"""Reads a source in a separate thread, so that a source that hangs fails its partition and frees the worker.

Python cannot kill a thread. One that hangs is abandoned: its slot goes on with the next partition in a new thread, and
the old one ends as soon as the call returns that it is stuck in. The threads take turns and never read concurrently, so
a source sees the same order of calls as in one thread, and each partition is read by one thread from beginning to end.
"""

from __future__ import annotations

import contextvars
import ctypes
import math
import queue
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from ducklake_flows.errors import SourceTimeout

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

T = TypeVar("T")

POLL_SECONDS = 0.5
"""How often a waiting chunk looks whether it must stop, and how long a reader gathers rows without a table."""


class _Abandoned(BaseException):
    """Raised in a thread that was abandoned. A BaseException, so that no source handles it."""


class _Thread:
    """A thread that runs one call at a time."""

    def __init__(self) -> None:
        self._asked: queue.SimpleQueue[Callable[[], Any] | None] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()
        # The context holds what the task knows, such as Prefect's run.
        work = contextvars.copy_context().run
        self._thread = threading.Thread(target=work, args=(self._run,), name="lake-source", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            while (call := self._asked.get()) is not None:
                answer: tuple[Any, BaseException | None]
                try:
                    answer = call(), None
                except BaseException as error:
                    if isinstance(error, _Abandoned):
                        raise
                    answer = None, error
                self._answers.put(answer)
                del call, answer
        except _Abandoned:
            pass

    def ask(self, call: Callable[[], Any]) -> None:
        """Begin a call."""
        self._asked.put(call)

    def answer(self, seconds: float) -> tuple[Any, BaseException | None]:
        """The result of the call, and its error.

        Raises:
            queue.Empty: the call has not ended within ``seconds``.
        """
        return self._answers.get(timeout=seconds)

    def end(self) -> None:
        """End the thread after its call."""
        self._asked.put(None)

    def abandon(self) -> None:
        """End the thread, within its call if that is Python code, or else when the call returns."""
        self.end()
        if self._thread.ident is not None and not _is_traced():
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self._thread.ident), ctypes.py_object(_Abandoned))


def _is_traced() -> bool:
    """Whether a debugger or coverage traces calls, in Python 3.11.

    While an exception waits for a thread in C code, each traced call of another thread then runs in circles.
    """
    return sys.version_info < (3, 12) and (sys.gettrace() or threading.gettrace()) is not None


_END: Any = object()


class Reader(Generic[T]):
    """Reads iterators one after the other.

    Args:
        timeout: Returns the maximum seconds until an iterator gives the next item, which may change meanwhile; None:
            unlimited.
        go_on: Raises if the chunk must stop; called while waiting.
    """

    def __init__(self, timeout: Callable[[], float | None], go_on: Callable[[], None]) -> None:
        self._timeout, self._go_on = timeout, go_on
        self._thread: _Thread | None = None

    def read(self, items: Iterator[T | None]) -> Generator[T]:
        """The items of an iterator, without None, which only shows that the iterator works.

        Raises:
            SourceTimeout: the iterator gave nothing in time.
        """
        self._thread = self._thread or _Thread()
        try:
            while (item := self._call(lambda: _next(items))) is not _END:
                if item is not None:
                    yield item
        finally:
            if self._thread is not None and (close := getattr(items, "close", None)):
                self._call(close)

    def close(self) -> None:
        """End the thread."""
        if self._thread is not None:
            self._thread.end()
            self._thread = None

    def _call(self, call: Callable[[], Any]) -> Any:
        thread = self._thread
        assert thread is not None  # noqa: S101 - set by the caller
        thread.ask(call)
        try:
            found, error = self._answer(thread)
        except BaseException:
            self._thread = None
            thread.abandon()
            raise
        if error is not None:
            raise error
        return found

    def _answer(self, thread: _Thread) -> tuple[Any, BaseException | None]:
        """Wait for a thread's answer.

        Raises:
            SourceTimeout: it has not come in time.
        """
        began = time.monotonic()
        while True:
            timeout = self._timeout()
            left = math.inf if timeout is None else began + timeout - time.monotonic()
            try:
                return thread.answer(min(max(left, 0), POLL_SECONDS))
            except queue.Empty:
                self._go_on()
            if left <= 0:
                raise SourceTimeout(
                    f"the source gave nothing for {timeout:g} s",
                    "correct the source, or raise the timeout of the dataset",
                )


def _next(items: Iterator[T | None]) -> T | None:
    """The next item that is not None; None after a while, to show that there is progress; `_END` at the end."""
    clock = time.monotonic  # called for every row
    until = clock() + POLL_SECONDS
    for item in items:
        if item is not None or clock() > until:
            return item
    end: T = _END
    return end
