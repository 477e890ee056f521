"""An experiment whose figures are known: value = seed + offset. It dies where it is told to, and keeps a diary."""

from collections.abc import Sequence
from pathlib import Path

from analysis.reproduce.jobs import Job
from analysis.reproduce.tables import Row


def run(job: Job) -> list[Row]:
    job.folder.mkdir(parents=True, exist_ok=True)
    (job.folder / "begun").write_text(str(len(list(job.folder.iterdir()))))
    with (job.folder.parent / "diary").open("a") as diary:
        diary.write(f"{job.setting}-{job.seed}\n")
    if (stop := job.folder.parent / "stop").exists() and stop.read_text() == f"{job.setting}-{job.seed}":
        raise KeyboardInterrupt
    row = {"value": job.seed + job.fields["offset"], "undefined": None if job.seed == 0 else 1.0}
    return [row] if job.setting != "pair" else [{**row, "setting": "left"}, {**row, "setting": "right"}]


def finish(jobs: Sequence[Job], rows: Sequence[Row], out: Path) -> None:
    (out / "picture").write_text(f"{len(jobs)} {len(rows)}")
