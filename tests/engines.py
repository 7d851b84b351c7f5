"""Engines that stand in front of a real one."""

import time
from dataclasses import replace


class SlowEngine:
    """A real engine that sleeps before each layer."""

    def __init__(self, engine, seconds=0.0, sleep=time.sleep):
        self._engine, self.seconds, self.sleep = engine, seconds, sleep

    def __getattr__(self, name):
        return getattr(self._engine, name)

    def layer(self, n, state):
        self.sleep(self.seconds)
        return self._engine.layer(n, state)


def slowed(classifier, seconds=0.0):
    """The classifier on a slow engine; `classifier.engine.seconds` and `.sleep` may be changed."""
    return replace(classifier, engine=SlowEngine(classifier.engine, seconds))
