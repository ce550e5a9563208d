"""A library that fetches, with the verbs of the command line in one call each."""

from __future__ import annotations

from pathlib import Path

from hnetkit.registry.jobs import Job
from hnetkit.sources.civitai import Filters
from hnetkit.sources.desk import Desk
from hnetkit.sources.plan import enqueue
from hnetkit.sources.pull import jobs_for
from hnetkit.sources.refs import ref_of
from hnetkit.sources.sync import Plan, plan_sync, store

EVERYTHING = Filters(nsfw=True)


class Library(Desk):
    """A desk with the verbs of the command line."""

    def sync(self, filters: Filters = EVERYTHING, *, all_versions: bool = True) -> list[Job]:
        plan = self.plan(filters, all_versions=all_versions)
        store(self.registry, plan.models)
        with self.registry.write():
            jobs = [job.id for job in enqueue(self.registry, self.civitai, self.folder, plan.items)]
        return list(self.run(jobs))

    def plan(self, filters: Filters = EVERYTHING, *, all_versions: bool = True) -> Plan:
        return plan_sync(self.registry, self.civitai, filters, all_versions=all_versions)

    def pull(self, text: str, *, sha256: str | None = None, all_versions: bool = False) -> list[Job]:
        jobs, _ = jobs_for(self, ref_of(text), sha256=sha256, all_versions=all_versions)
        return list(self.run(jobs))

    def installed(self) -> dict[str, Path]:
        """sha256 -> path of every network that hnetkit installed."""
        return {row["sha256"]: Path(row["path"]) for row in self.registry.jobs.installs(kind="network")}
