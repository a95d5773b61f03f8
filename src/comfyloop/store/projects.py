"""Projects. Only `versions.promote` and `versions.rollback` change the live version."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy import Connection

from comfyloop.errors import Conflict, NotFound
from comfyloop.records import BASE, Project
from comfyloop.store.locks import one_at_a_time
from comfyloop.store.schema import projects, versions


def add(conn: Connection, project: Project) -> None:
    """Raises:
    Conflict: The name is taken, or the project claims a live version before it has any.
    """
    one_at_a_time(conn, "projects")
    if project.live != BASE:
        raise Conflict(
            f"A new project cannot have version {project.live} live.", "Add versions, then promote one."
        )
    if find(conn, project.name) is not None:
        raise Conflict(f"A project {project.name!r} exists already.", "Choose another name.")
    conn.execute(projects.insert().values(project.model_dump()))


def ensure(conn: Connection, project: Project) -> Project:
    """The stored project of this name, added first when there is none."""
    one_at_a_time(conn, "projects")
    stored = find(conn, project.name)
    if stored is None:
        add(conn, project)
        return project
    return stored


def find(conn: Connection, name: str) -> Project | None:
    row = conn.execute(sa.select(projects).where(projects.c.name == name)).one_or_none()
    return None if row is None else Project.model_validate(row._asdict())


def get(conn: Connection, name: str) -> Project:
    """Raises:
    NotFound: With the names that exist.
    """
    project = find(conn, name)
    if project is None:
        names = list(conn.scalars(sa.select(projects.c.name).order_by(projects.c.name).limit(20)))
        there = f"There are: {', '.join(names)}." if names else "There are none yet."
        raise NotFound(f"There is no project {name!r}.", f"{there} POST /v1/projects makes one.")
    return project


def list_all(conn: Connection) -> list[Project]:
    """All projects by name."""
    rows = conn.execute(sa.select(projects).order_by(projects.c.name))
    return [Project.model_validate(row._asdict()) for row in rows]


def update(
    conn: Connection,
    name: str,
    *,
    base_model: str | None = None,
    image_model: str | None = None,
    image_vae: str | None = None,
    image_prediction_type: str | None = None,
    system_prompt: str | None = None,
    auto: bool | None = None,
) -> Project:
    """Change what is given, keep the rest.

    Raises:
        NotFound: There is no such project.
        Conflict: Another base model is given while versions exist: their adapters fit the old one only.
    """
    project = get(conn, name)
    if base_model is not None and base_model != project.base_model:
        count = conn.scalar(
            sa.select(sa.func.count()).select_from(versions).where(versions.c.project == name)
        )
        if count:
            raise Conflict(
                f"The project {name!r} has {count} versions trained on {project.base_model!r}, "
                f"which cannot be used with {base_model!r}.",
                "Make a new project for the other model.",
            )
    values = {
        "base_model": base_model,
        "image_model": image_model,
        "image_vae": image_vae,
        "image_prediction_type": image_prediction_type,
        "system_prompt": system_prompt,
        "auto": auto,
    }
    changes = {key: value for key, value in values.items() if value is not None}
    if changes:
        conn.execute(projects.update().where(projects.c.name == name).values(changes))
    return get(conn, name)
