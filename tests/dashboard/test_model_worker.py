"""The one thread for models: its queue, growing results, stopping, and short jobs in between."""

import threading
from collections.abc import Iterator

import pytest

from dashboard.state.model_worker import Job, Worker
from sae.errors import SaescopeError

SOON = 10.0


class Steps:
    """A job whose steps a test allows one by one."""

    def __init__(self, n: int) -> None:
        self.n, self.allowed, self.threads = n, threading.Semaphore(0), set[str]()

    def __call__(self) -> Iterator[int]:
        for i in range(self.n):
            assert self.allowed.acquire(timeout=SOON)
            self.threads.add(threading.current_thread().name)
            yield i + 1

    def allow(self, n: int = 1) -> None:
        self.allowed.release(n)


def until(job: Job, n_steps: int) -> None:
    for _ in range(1000):
        if job.n_steps >= n_steps:
            return
        threading.Event().wait(0.005)
    raise AssertionError(f"{job.n_steps} steps")


def test_results_grow_and_the_same_is_one_job() -> None:
    worker, steps = Worker(), Steps(3)
    job = worker.job("a", steps)
    assert worker.job("a", steps) is job and worker.known("a") is job
    assert not job.begun.wait(0.05)
    steps.allow()
    assert job.begun.wait(SOON)
    assert (job.state, job.result) == ("running", 1)
    steps.allow(2)
    assert job.ended.wait(SOON) and (job.state, job.result, steps.threads) == ("done", 3, {"model"})
    assert worker.job("a", steps) is job  # found again, as after a reload
    worker.again("a")
    again = worker.job("a", steps)
    steps.allow(3)
    assert again is not job and again.ended.wait(SOON)


def test_the_queue_is_first_come_first_served_and_told() -> None:
    worker, every = Worker(), [Steps(1) for _ in range(3)]
    jobs = [worker.job(i, steps) for i, steps in enumerate(every)]
    for _ in range(1000):
        if jobs[0].state == "running":
            break
        threading.Event().wait(0.005)
    assert [worker.ahead(job) for job in jobs] == [0, 1, 2]
    every[0].allow()
    assert jobs[0].ended.wait(SOON)
    for steps in every[1:]:
        steps.allow()
    assert all(job.ended.wait(SOON) for job in jobs) and [worker.ahead(job) for job in jobs] == [0, 0, 0]


def test_a_short_job_does_not_wait_for_a_long_one() -> None:
    worker, long, short = Worker(), Steps(3), Steps(1)
    first = worker.job("long", long)
    long.allow()
    until(first, 1)
    between = worker.job("short", short, short=True)
    short.allow()
    long.allow()  # it stands within its second step
    assert between.ended.wait(SOON) and first.state == "running"
    long.allow()
    assert first.ended.wait(SOON) and first.result == 3


def test_stopping_keeps_what_there_is() -> None:
    worker, steps, other = Worker(), Steps(100), Steps(1)
    job, waiting = worker.job("a", steps), worker.job("b", other)
    waiting.stop()
    steps.allow(2)
    until(job, 2)
    job.stop()
    steps.allow()
    assert job.ended.wait(SOON) and job.state == "stopped" and 2 <= job.result <= 3
    assert waiting.ended.wait(SOON) and (waiting.state, waiting.result) == ("stopped", None)


def test_a_job_that_nobody_looks_at_makes_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dashboard.state.model_worker.UNSEEN_S", 0.2)
    worker, steps, other = Worker(), Steps(100), Steps(1)
    job = worker.job("a", steps)
    steps.allow()
    until(job, 1)
    threading.Event().wait(0.3)
    steps.allow()
    until(job, 2)  # nobody else waits
    waiting = worker.job("b", other)
    other.allow()
    steps.allow()
    assert waiting.ended.wait(SOON) and (job.state, waiting.state) == ("stopped", "done")


def test_a_job_whose_result_is_kept_does_not_make_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dashboard.state.model_worker.UNSEEN_S", 0.0)
    worker, steps, other = Worker(), Steps(3), Steps(1)
    job, waiting = worker.job(("trace", 1), steps, patient=True), worker.job(("write", 2), other)
    assert worker.known_of("trace") == [job] and worker.known_of("read") == []
    steps.allow(3)
    other.allow()
    assert waiting.ended.wait(SOON) and (job.state, job.result) == ("done", 3)


@pytest.mark.parametrize("error", [SaescopeError("no model"), ValueError("a fault of ours")])
def test_what_fails_says_so_is_tried_again_and_stops_nobody(error: Exception) -> None:
    worker = Worker()

    def fails() -> Iterator[int]:
        yield 1
        raise error

    job = worker.job("a", fails)
    assert job.ended.wait(SOON) and (job.state, job.error) == ("failed", error)
    steps = Steps(1)
    steps.allow()
    assert worker.job("b", steps).ended.wait(SOON)
    assert worker.job("a", steps) is not job


def test_old_jobs_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dashboard.state.model_worker.N_KEPT", 2)
    worker = Worker()
    for i in range(5):
        steps = Steps(1)
        steps.allow()
        assert worker.job(i, steps).ended.wait(SOON)
    assert [worker.known(i) is not None for i in range(5)] == [False, False, True, True, True]
