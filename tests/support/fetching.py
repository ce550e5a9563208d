"""The filters that let everything through, and what the registry has of a fetch: `installed` files and `jobs_of` it."""

from __future__ import annotations

from pathlib import Path

from hnetkit.registry.jobs import Job
from hnetkit.sources.civitai import Filters
from hnetkit.sources.results import FetchResult
from hnetkit.sources.session import FetchSession

EVERYTHING = Filters(nsfw=True)


def installed(session: FetchSession) -> dict[str, Path]:
    """sha256 -> path of every network that hnetkit installed."""
    return {row["sha256"]: Path(row["path"]) for row in session.registry.jobs.installs(kind="network")}


def jobs_of(session: FetchSession, results: list[FetchResult]) -> list[Job]:
    """The jobs that the registry has now of what came and what did not; of records there are none."""
    return [session.registry.jobs.get(result.job) for result in results if result.job is not None]
