"""How much of the event loop's thread a call uses: the time of its steps, and not of those of others between them."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Generator
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Work(Generic[T]):
    """Awaits a coroutine and adds up the thread time of its steps; what it starts as tasks of their own isn't in it."""

    __slots__ = ("_thread_time", "_told", "seconds", "steps")

    def __init__(self, thread_time: Callable[[], float]) -> None:
        self._thread_time = thread_time
        self._told = 0.0
        self.seconds = 0.0
        """So far, without the step that runs now."""
        self.steps: Coroutine[Any, Any, T] | None = None

    def since_asked(self) -> float:
        """Seconds since this was asked last."""
        told, self._told = self._told, self.seconds
        return self.seconds - told

    def __await__(self) -> Generator[Any, None, T]:
        if self.steps is None:
            raise RuntimeError("there is nothing to await")
        steps, thread_time = self.steps, self._thread_time
        raised: BaseException | None = None
        while True:
            begun = thread_time()
            try:
                waits_for = steps.send(None) if raised is None else steps.throw(raised)
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]  # what the coroutine returns
            finally:
                self.seconds += thread_time() - begun
            raised = None
            try:
                yield waits_for
            except BaseException as error:  # noqa: BLE001 - a cancellation, or what was waited for: the coroutine's
                raised = error
