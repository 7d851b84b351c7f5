"""The queue before the model: order, bound, who joins, who is dropped; and that joining changes no answer."""

import asyncio
import threading
import time

import pytest
import structlog

from shared.contracts import TextPair
from shared.errors import DeadlinePassed, QueueFull
from shared.model.exits import Confidence
from shared.pipeline import worker as module
from shared.pipeline.queue import Queue, Work
from shared.pipeline.worker import Worker
from tests.clocks import Clock


def work(*texts, **options):
    return Work([TextPair(text=text) for text in texts], **options)


def queue(limit=100, wait_s=60.0, batch_texts=1, batch_wait_s=0.0, works=(), clock=time.perf_counter):
    out = Queue(limit=limit, wait_s=wait_s, batch_texts=batch_texts, batch_wait_s=batch_wait_s, clock=clock)
    out.text_s = 1.0
    for one in works:
        out.put(one)
    return out


def test_calls_leave_in_the_order_they_came():
    works = [work("a"), work("b"), work("c")]
    waiting = queue(works=works)
    assert [waiting.take(lambda: 0.0) for _ in works] == [[one] for one in works]


def test_the_queue_is_bounded_and_says_when_to_come_back():
    full = queue(limit=1, works=[work("a", "b")])
    full.text_s = 1.6
    with pytest.raises(QueueFull) as refused:
        full.put(work("c"))
    assert refused.value.retry_after_s == 3.2
    assert full.waiting == 1


def test_the_queue_is_bounded_in_time_and_an_empty_one_takes_anything():
    waiting = queue(wait_s=1.0)
    waiting.text_s = 0.4
    waiting.put(work(*"abc"))
    with pytest.raises(QueueFull, match="1 requests wait"):
        waiting.put(work("d"))  # it would wait 1.2 s
    waiting.text_s = 0.3
    waiting.put(work("d"))
    assert waiting.waiting == 2


def test_alike_calls_join_up_to_the_limit_of_texts():
    works = [work("a", "b"), work("c"), work("d", "e"), work("f")]
    waiting = queue(batch_texts=4, works=works)
    assert waiting.take(lambda: 0.0) == [works[0], works[1], works[3]]
    assert waiting.take(lambda: 0.0) == [works[2]]


@pytest.mark.parametrize(
    "other", [{"rule": Confidence(0.9)}, {"importance": True}, {"explain": True}, {"signature": "mean_word"}]
)
def test_calls_that_want_something_else_do_not_join(other):
    works = [work("a"), work("b", **other)]
    assert queue(batch_texts=4, works=works).take(lambda: 0.0) == [works[0]]


def test_equal_rules_join():
    works = [work("a", rule=Confidence(0.9)), work("b", rule=Confidence(0.9))]
    assert queue(batch_texts=4, works=works).take(lambda: 0.0) == works


def test_rows_join_by_length():
    works = [work("x" * 300), work("x" * 700), work("x" * 160), work("x" * 90)]
    waiting = queue(batch_texts=4, works=works)
    assert waiting.take(lambda: 0.0) == [works[0], works[2]]


def test_short_texts_join_whatever_their_length():
    works = [work("x"), work("x" * 100)]
    assert queue(batch_texts=2, works=works).take(lambda: 0.0) == works


def test_who_is_late_is_refused_and_not_started():
    late, in_time = work("a", expires=0.05), work("b", expires=0.15)
    assert queue(works=[late, in_time], clock=Clock()).take(lambda: 0.1) == [in_time]
    with pytest.raises(DeadlinePassed):
        late.future.result(0)


def test_many_texts_need_longer_to_their_first_exit_than_one():
    many, one = work(*"abcdefgh", expires=10), work("a", expires=10)
    assert queue(works=[many, one], clock=Clock()).take(lambda: 2.0) == [one]
    with pytest.raises(DeadlinePassed):
        many.future.result(0)


def test_who_left_is_dropped_at_once():
    works = [work("a"), work("b")]
    waiting = queue(works=works)
    waiting.leave(works[0])
    assert waiting.waiting == 1
    assert waiting.take(lambda: 0.0) == [works[1]]


def test_waiting_for_company_is_bounded_and_only_for_those_who_had_to_queue():
    first, second = work("a"), work("b")
    assert queue(batch_texts=8, batch_wait_s=3600, works=[first]).take(lambda: 0.0) == [first]  # the model was idle
    waiting = queue(batch_texts=8, batch_wait_s=0.2, works=[work("c")])
    waiting.take(lambda: 0.0)
    waiting.put(second)
    started = time.perf_counter()
    assert waiting.take(lambda: 0.0) == [second]
    assert time.perf_counter() - started >= 0.2


def test_company_ends_the_wait():
    works = [work("a"), work("b"), work("c")]
    waiting = queue(batch_texts=2, batch_wait_s=3600, works=works[:1])
    waiting.take(lambda: 0.0)
    waiting.put(works[1])
    threading.Timer(0.05, lambda: waiting.put(works[2])).start()
    assert waiting.take(lambda: 0.0) == works[1:]


def test_a_closed_queue_cancels_who_waits():
    one = work("a")
    waiting = queue(works=[one])
    waiting.close()
    assert one.future.cancelled()
    assert waiting.take(lambda: 0.0) == []


@pytest.fixture
def classifier(tiny_classifier):
    return tiny_classifier("bert")


def answers(classifier, texts, **options):
    """Every text as a call of its own, all at once."""
    passes = []

    class Counting:
        engine, encode, calibrate = classifier.engine, classifier.encode, classifier.calibrate

        def run(self, encoded, *args, **kwargs):
            passes.append(len(encoded))
            return classifier.run(encoded, *args, **kwargs)

    worker = Worker(Counting(), Queue(limit=100, **options))

    async def crowd():
        return await asyncio.gather(*(worker.run(work(text, rule=Confidence(0.9))) for text in texts))

    try:
        return [batch.answers[0] for batch in asyncio.run(crowd())], passes
    finally:
        worker.close()


def test_joining_changes_no_answer(classifier, sentences):
    alone, one_by_one = answers(classifier, sentences)
    joined, passes = answers(classifier, sentences, batch_texts=4, batch_wait_s=0.5)
    assert one_by_one == [1] * len(sentences)
    assert max(passes) == 4
    for a, b in zip(alone, joined, strict=True):
        assert a.exit_layer == b.exit_layer
        assert a.exits == [pytest.approx(exit_, abs=1e-5) for exit_ in b.exits]


def watched(classifier, between_layers):
    """The classifier with `between_layers()` before it asks who is to leave."""

    class Watched:
        engine, encode, calibrate = classifier.engine, classifier.encode, classifier.calibrate

        def run(self, texts, rule, *, over, **options):
            def ask(rows):
                between_layers()
                return over(rows)

            return classifier.run(texts, rule, over=ask, **options)

    return Watched()


def test_one_late_row_of_a_joint_pass_leaves_the_others_alone(classifier, sentences):
    """After a layer 0.1 s pass: the row that has 0.25 s leaves after the second, the others run all three."""
    clock, held, go = Clock(), threading.Event(), threading.Event()

    def between_layers():
        held.set()
        assert go.wait(30)
        clock.sleep(0.1)

    worker = Worker(watched(classifier, between_layers), Queue(limit=10, batch_texts=4, clock=clock))

    def ask(text, expires=None):
        return worker.run(work(text, expires=expires))

    async def crowd():
        first = asyncio.create_task(ask("a"))
        await asyncio.to_thread(held.wait, 30)
        others = [asyncio.create_task(ask(text)) for text in (sentences[0], sentences[2])]
        late = asyncio.create_task(ask(sentences[1], expires=0.2 + 0.25))  # the first pass takes 0.2 s
        while worker.queue.waiting < 3:
            await asyncio.sleep(0.001)
        go.set()
        return await asyncio.gather(first, *others, late)

    *whole, late = [batch.answers[0] for batch in asyncio.run(crowd())]
    worker.close()
    assert [(answer.cut, answer.exit_layer) for answer in whole] == [(False, 3)] * 3
    assert (late.cut, late.exit_layer) == (True, 2)
    alone, _ = answers(classifier, sentences[2:3])
    assert len(whole[2].exits) == 1
    assert alone[0].encoded == whole[2].encoded


def test_an_abandoned_pass_stops_before_its_next_layer(classifier):
    layers, held, go = [], threading.Event(), threading.Event()

    def between_layers():
        layers.append(1)
        held.set()
        assert go.wait(30)

    worker = Worker(watched(classifier, between_layers), Queue(limit=10))

    async def leave():
        task = asyncio.create_task(worker.run(work("a")))
        await asyncio.to_thread(held.wait, 30)
        task.cancel()
        await asyncio.wait({task})
        go.set()

    asyncio.run(leave())
    worker.close()
    assert len(layers) == 1


def test_a_pass_that_hangs_does_not_hold_the_stop(classifier, monkeypatch):
    held, go = threading.Event(), threading.Event()

    def between_layers():
        held.set()
        assert go.wait(30)

    monkeypatch.setattr(module, "CLOSE_S", 0.05)
    worker = Worker(watched(classifier, between_layers), Queue(limit=10))
    worker.queue.put(work("a"))
    assert held.wait(30)
    with structlog.testing.capture_logs() as logged:
        worker.close()
    go.set()
    assert logged == [{"event": "model_still_runs", "waited_s": 0.05, "log_level": "error"}]


def test_a_model_that_fails_fails_its_caller_and_not_the_thread(classifier):
    class Broken:
        engine, encode, calibrate = classifier.engine, classifier.encode, classifier.calibrate
        broken = True

        def run(self, *args, **kwargs):
            if self.broken:
                raise RuntimeError("no memory")
            return classifier.run(*args, **kwargs)

    broken = Broken()
    worker = Worker(broken, Queue(limit=10))

    async def ask():
        return await worker.run(work("a"))

    with pytest.raises(RuntimeError, match="no memory"):
        asyncio.run(ask())
    broken.broken = False
    assert asyncio.run(ask()).answers[0].exit_layer == 3
    worker.close()


@pytest.mark.parametrize(("process", "thread"), [(0, 5), (10, 15), (17, 19)])
def test_the_model_s_thread_only_ever_gets_nicer_than_its_process(monkeypatch, process, thread):
    """A process that nobody privileged may make less nice: started under `nice`, or by a container engine that was."""
    given = []
    monkeypatch.setattr(module.sys, "platform", "linux")
    monkeypatch.setattr(module.os, "getpriority", lambda which, who: process, raising=False)
    monkeypatch.setattr(module.os, "setpriority", lambda which, who, nice: given.append(nice), raising=False)
    module._yield_to_the_loop()
    assert given == [thread]
