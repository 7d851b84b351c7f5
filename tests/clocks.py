"""Time that tests move themselves, so that a busy machine changes nothing.

Clock          a clock that stands still; `sleep` moves it at once
run(work)      an event loop of virtual time: where nothing is left to do, it jumps to the next timer
"""

import asyncio


class Clock:
    """Seconds, from 0."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


class VirtualLoop(asyncio.SelectorEventLoop):
    """For work that waits for timers alone: one that waits for a thread or a socket would see time fly."""

    def __init__(self):
        super().__init__()
        self.now, poll = 0.0, self._selector.select

        def jump(timeout):
            events = poll(0 if timeout else timeout)
            if not events and timeout:
                self.now += timeout
            return events

        self._selector.select = jump

    def time(self):
        return self.now


def run(work):
    """The result of a coroutine, in virtual time."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(work)


def now():
    """The running loop's time, in seconds."""
    return asyncio.get_running_loop().time()
