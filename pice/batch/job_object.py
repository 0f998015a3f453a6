"""A job as the OpenAI Batch API shows one."""

from collections.abc import Sequence
from typing import Any, Literal

from pice.core import Job

State = Literal["validating", "in_progress", "completed", "cancelled"]


def state_of(job: Job) -> State:
    """A status of the OpenAI Batch API; `validating` until all lines are in the queue."""
    if job.cancelled_s is not None:
        return "cancelled"
    if job.ended_s is not None:
        return "completed"
    return "validating" if job.sealed_s is None else "in_progress"


def job_object(job: Job) -> dict[str, Any]:
    """A `batch`: times in whole seconds, `input_file_id` the hash of the input. PICE keeps no files: what came is read
    by `pice batch fetch`."""
    sealed, ended, cancelled = map(_whole, (job.sealed_s, job.ended_s, job.cancelled_s))
    return {
        "id": job.job_id,
        "object": "batch",
        "endpoint": "/v1/chat/completions",
        "errors": None,
        "input_file_id": f"sha256:{job.source}",
        "completion_window": None,
        "status": state_of(job),
        "output_file_id": None,
        "error_file_id": None,
        "created_at": int(job.created_s),
        "in_progress_at": sealed,
        "expires_at": None,
        "finalizing_at": ended,
        "completed_at": ended,
        "failed_at": None,
        "expired_at": None,
        "cancelling_at": cancelled,
        "cancelled_at": cancelled,
        "request_counts": {"total": job.num_lines, "completed": job.num_answered, "failed": job.num_failed},
        "metadata": {"name": job.name} if job.name else None,
    }


def job_list(jobs: Sequence[Job]) -> dict[str, Any]:
    """A `list` of all of them."""
    return {
        "object": "list",
        "data": [job_object(job) for job in jobs],
        "first_id": jobs[0].job_id if jobs else None,
        "last_id": jobs[-1].job_id if jobs else None,
        "has_more": False,
    }


def _whole(at_s: float | None) -> int | None:
    return None if at_s is None else int(at_s)
