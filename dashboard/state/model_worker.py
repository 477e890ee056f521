"""The server's single model thread and its queue.

Jobs yield partial results after each step, so that pages can stream text, stop it, and find it again after a reload:
equal requests share a job. Short jobs run between two steps of a long one, so that encoding a prompt never waits for a
generation. A generation that nobody watches any longer is cancelled when others wait; a job that saves its result (a
trace) is not.
"""

import gc
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterator
from typing import Any, Literal

N_KEPT = 64
"""Finished jobs to remember."""
UNSEEN_S = 30.0
"""A long job that nobody has looked at for this long (s) is stopped as soon as another one waits."""

State = Literal["waiting", "running", "done", "stopped", "failed"]


class Job:
    """One request to a model."""

    def __init__(self, key: Hashable, steps: Callable[[], Iterator[Any]], *, patient: bool = False) -> None:
        """Create the job without starting it.

        Args:
            key: identifies the request; equal keys share a job.
            steps: yields the partial result after each step; the last is complete.
            patient: keep running even if nobody is watching.
        """
        self.key, self.steps, self.patient = key, steps, patient
        self.state: State = "waiting"
        self.result: Any = None
        self.n_steps = 0
        self.error: Exception | None = None
        self.stopping = False
        self.seen = time.monotonic()
        self.begun, self.ended = threading.Event(), threading.Event()
        """Set at the first result and at the end; a job that ends without a result sets both."""

    def stop(self) -> None:
        """Stop after the current step; the partial result is kept."""
        self.stopping = True

    def _end(self, state: State) -> None:
        self.state = state
        self.begun.set()
        self.ended.set()


class Worker:
    """The thread, started with the first job, and its queues."""

    def __init__(self) -> None:
        self._jobs: OrderedDict[Hashable, Job] = OrderedDict()
        self._long: deque[Job] = deque()
        self._short: deque[Job] = deque()
        self._change = threading.Condition()
        self._thread: threading.Thread | None = None

    def job(
        self, key: Hashable, steps: Callable[[], Iterator[Any]], *, short: bool = False, patient: bool = False
    ) -> Job:
        """The waiting, running or finished job with this key, or a new one at the end of the queue.

        A failed job is retried.
        """
        with self._change:
            found = self._jobs.get(key)
            if found is not None and found.state != "failed":
                found.seen = time.monotonic()
                return found
            job = self._jobs[key] = Job(key, steps, patient=patient)
            self._jobs.move_to_end(key)
            (self._short if short else self._long).append(job)
            self._forget()
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._work, name="model", daemon=True)
                self._thread.start()
            self._change.notify_all()
            return job

    def known(self, key: Hashable) -> Job | None:
        """The job with this key, if any."""
        return self._jobs.get(key)

    def known_of(self, kind: str) -> list[Job]:
        """Jobs whose key is a tuple that starts with `kind`, in order of request."""
        return [job for job in list(self._jobs.values()) if isinstance(job.key, tuple) and job.key[:1] == (kind,)]

    def again(self, key: Hashable) -> None:
        """Forget a finished job, so that the next request reruns it."""
        with self._change:
            if key in self._jobs and self._jobs[key].ended.is_set():
                del self._jobs[key]

    def ahead(self, job: Job) -> int:
        """Number of jobs ahead of this one; 0 if it is running or has ended."""
        job.seen = time.monotonic()
        with self._change:
            for queue in (self._short, self._long):
                if job in queue:
                    return list(queue).index(job) + sum(one.state == "running" for one in self._jobs.values())
            return 0

    def _forget(self) -> None:
        ended = [key for key, job in self._jobs.items() if job.ended.is_set()]
        for key in ended[: max(0, len(ended) - N_KEPT)]:
            del self._jobs[key]

    def _work(self) -> None:
        while True:
            with self._change:
                self._change.wait_for(lambda: self._short or self._long)
                job = (self._short or self._long).popleft()
                job.state = "running"
            self._run(job)

    def _run(self, job: Job) -> None:
        try:
            for result in () if job.stopping else job.steps():
                job.result = result
                job.n_steps += 1
                job.begun.set()
                if job.n_steps == 1:
                    gc.freeze()  # a loaded model is long-lived: keep its objects out of later collections
                unseen = time.monotonic() - job.seen > UNSEEN_S and not job.patient
                job.stopping |= bool(self._long) and unseen
                if job.stopping:
                    break
                while self._short:
                    self._between()
        except Exception as error:  # re-raised for the requester; the thread continues with the next job
            job.error = error
            job._end("failed")
        else:
            job._end("stopped" if job.stopping else "done")

    def _between(self) -> None:
        """Run one short job between two steps of another."""
        with self._change:
            short = self._short.popleft()
            short.state = "running"
        self._run(short)
