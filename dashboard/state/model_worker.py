"""The one thread in which a server runs language models, and the queue before it.

Jobs give what they have so far after each step, so that pages show text as it grows, can stop it, and find it again after
a reload: who asks for the same gets the same job. Short jobs are done between two steps of the long one that is running,
so that reading a prompt never waits for a text to be written. A text that nobody waits for any longer makes way; a job
whose result is kept, a traced prompt, does not.
"""

import gc
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterator
from typing import Any, Literal

N_KEPT = 64
"""Jobs that are remembered once they have ended."""
UNSEEN_S = 30.0
"""A long job that nobody has looked at for so long is stopped as soon as another waits."""

State = Literal["waiting", "running", "done", "stopped", "failed"]


class Job:
    """One thing asked of a model."""

    def __init__(self, key: Hashable, steps: Callable[[], Iterator[Any]], *, patient: bool = False) -> None:
        """Begin nothing yet.

        Args:
            key: what is asked; equal keys are one job.
            steps: gives what there is so far after each step; the last is the whole.
            patient: go on though nobody looks.
        """
        self.key, self.steps, self.patient = key, steps, patient
        self.state: State = "waiting"
        self.result: Any = None
        self.n_steps = 0
        self.error: Exception | None = None
        self.stopping = False
        self.seen = time.monotonic()
        self.begun, self.ended = threading.Event(), threading.Event()
        """Set once there is a first result, and once there is the last; a job that ends without one has begun too."""

    def stop(self) -> None:
        """End it after the step that it is at; what there is by then stays."""
        self.stopping = True

    def _end(self, state: State) -> None:
        self.state = state
        self.begun.set()
        self.ended.set()


class Worker:
    """The thread, which begins with the first job, and the queues."""

    def __init__(self) -> None:
        self._jobs: OrderedDict[Hashable, Job] = OrderedDict()
        self._long: deque[Job] = deque()
        self._short: deque[Job] = deque()
        self._change = threading.Condition()
        self._thread: threading.Thread | None = None

    def job(
        self, key: Hashable, steps: Callable[[], Iterator[Any]], *, short: bool = False, patient: bool = False
    ) -> Job:
        """The job of this key: the one that is waiting, running or done, or a new one at the end of the queue.

        One that has failed is tried again.
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
        """The job of this key if somebody has asked for it."""
        return self._jobs.get(key)

    def known_of(self, kind: str) -> list[Job]:
        """The jobs whose keys are tuples that begin with a word, in the order in which they were asked for."""
        return [job for job in list(self._jobs.values()) if isinstance(job.key, tuple) and job.key[:1] == (kind,)]

    def again(self, key: Hashable) -> None:
        """Forget a job that has ended, so that asking begins it anew."""
        with self._change:
            if key in self._jobs and self._jobs[key].ended.is_set():
                del self._jobs[key]

    def ahead(self, job: Job) -> int:
        """How many jobs are done before this one begins; 0 for one that runs or has ended."""
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
                    gc.freeze()  # a model's objects stay: Streamlit would look through them after each drawing
                unseen = time.monotonic() - job.seen > UNSEEN_S and not job.patient
                job.stopping |= bool(self._long) and unseen
                if job.stopping:
                    break
                while self._short:
                    self._between()
        except Exception as error:  # raised where it was asked for; the thread goes on to the next
            job.error = error
            job._end("failed")
        else:
            job._end("stopped" if job.stopping else "done")

    def _between(self) -> None:
        """Do one short job while another is at rest."""
        with self._change:
            short = self._short.popleft()
            short.state = "running"
        self._run(short)
