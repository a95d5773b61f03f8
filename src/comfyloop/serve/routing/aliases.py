"""What names mean: the projects, and which of their versions "acme" or "acme@candidate" stands for now."""

from __future__ import annotations

import hashlib

from comfyloop.errors import NotFound
from comfyloop.records import BASE, Project, VersionState
from comfyloop.serve.routing.names import ModelName, version_name
from comfyloop.store import Store, projects, versions


class Aliases:
    """The projects as they were last read or changed by this process. Thread-safe: rows are replaced whole."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._projects: dict[str, Project] = {}
        self.refresh()

    def refresh(self) -> None:
        """Read the projects again: after one was added or changed."""
        with self._store.read() as conn:
            self._projects = {project.name: project for project in projects.list_all(conn)}

    def put(self, project: Project) -> None:
        """What a name means from now on."""
        self._projects = {**self._projects, project.name: project}

    def all(self) -> list[Project]:
        return list(self._projects.values())

    def find(self, name: str) -> Project | None:
        return self._projects.get(name)

    def get(self, name: str) -> Project:
        """Raises NotFound naming the projects that there are."""
        project = self._projects.get(name)
        if project is None:
            self.refresh()  # it may have been added by another process
            project = self._projects.get(name)
        if project is None:
            known = ", ".join(sorted(self._projects)) or "none yet"
            raise NotFound(f"There is no project {name!r}.", f"Projects: {known}.")
        return project

    def number_of(self, name: ModelName) -> int:
        """The version that `name` means now. Raises NotFound naming the versions that there are."""
        project = self.get(name.project)
        if name.which == "live":
            return project.live
        if name.which == BASE:
            return BASE
        with self._store.read() as conn:
            if name.which != "candidate":
                version = versions.get(conn, name.project, name.which)
                if version.state is VersionState.WITHDRAWN:
                    raise NotFound(
                        f"{version_name(name.project, version.number)} learned from feedback that was taken back.",
                        f"Ask {name.project}, its live version.",
                    )
                return version.number
            newest = versions.list_by(conn, name.project, state=VersionState.CANDIDATE, limit=1)
            if newest:
                return newest[0].number
            others = versions.list_by(conn, name.project, limit=20)
        there = ", ".join(f"{version_name(v.project, v.number)} ({v.state})" for v in others)
        raise NotFound(
            f"The project {name.project!r} has no candidate now.",
            f"There are: {version_name(name.project, BASE)}{', ' + there if there else ''}.",
        )

    def kept(self) -> set[tuple[str, int]]:
        """(project, version) of what must stay loaded."""
        every = self._projects.values()
        return {(p.name, p.live) for p in every} | {(p.name, p.canary) for p in every if p.canary_share}


def answers(project: Project, conversation: str) -> int:
    """The version that answers a conversation with the live one: that, or the canary for its share of them.
    The same conversation always has the same answer while the canary is the same."""
    if not project.canary_share or not conversation:
        return project.live
    told = f"{project.name}@{project.canary}:{conversation}".encode()
    drawn = int.from_bytes(hashlib.blake2b(told, digest_size=7).digest()) / 2**56
    return project.canary if drawn < project.canary_share else project.live
