"""A store on each database: SQLite, and a PostgreSQL server that this test run starts and stops."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from comfyloop.records import Generation, Message, Project
from comfyloop.settings import Settings
from comfyloop.store import Store, generations, open_store, projects


def _binaries() -> Path | None:
    """The folder with initdb and postgres: Debian's, else the one on the PATH."""
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    found = debian[-1] if debian else shutil.which("initdb")
    return Path(found).parent if found else None


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """A running PostgreSQL server, as a URL whose database name is to be filled in."""
    binaries = _binaries()
    if binaries is None:
        pytest.skip("PostgreSQL is not installed here (Debian: apt-get install postgresql)")
    who: dict[str, object] = {}
    if os.geteuid() == 0:  # initdb refuses root
        names = {entry.pw_name for entry in pwd.getpwall()}
        user = pwd.getpwnam("postgres" if "postgres" in names else "nobody")
        who = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    folder = Path(tempfile.mkdtemp(prefix="pg"))
    if who:
        os.chown(folder, who["user"], who["group"])  # type: ignore[arg-type]
    data = folder / "data"
    try:
        made = subprocess.run(
            [binaries / "initdb", "-D", data, "-U", "loop", "-A", "trust", "-E", "UTF8", "--locale=C"],
            capture_output=True,
            text=True,
            cwd=folder,
            **who,  # type: ignore[call-overload]
        )
        if made.returncode:
            pytest.skip(f"PostgreSQL's initdb failed here: {made.stderr.strip()[-300:]}")
        with (folder / "log").open("w") as log:
            # fsync guards against power cuts, which no test here makes, and slows new databases down.
            settings = ["listen_addresses=", f"unix_socket_directories={folder}", "fsync=off"]
            options = [word for setting in settings for word in ("-c", setting)]
            server = subprocess.Popen(
                [binaries / "postgres", "-D", data, *options],
                stdout=log,
                stderr=log,
                cwd=folder,
                **who,  # type: ignore[call-overload]
            )
        try:
            _wait(server, folder)
            yield f"postgresql://loop@/{{database}}?host={folder}"
        finally:
            server.send_signal(2)  # "fast" shutdown
            try:
                server.wait(20)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _wait(server: subprocess.Popen[bytes], folder: Path) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            psycopg.connect(f"postgresql://loop@/postgres?host={folder}").close()
            return
        except psycopg.OperationalError:
            if server.poll() is not None or time.monotonic() > deadline:
                pytest.skip(f"PostgreSQL does not start here: {(folder / 'log').read_text()[-300:]}")
            time.sleep(0.05)


@pytest.fixture
def postgres_url(postgres: str) -> Iterator[str]:
    """The URL of an empty database."""
    name = f"t{uuid.uuid4().hex}"
    with psycopg.connect(postgres.format(database="postgres"), autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name}")  # type: ignore[call-overload]
        yield postgres.format(database=name)
        admin.execute(f"DROP DATABASE {name} WITH (FORCE)")  # type: ignore[call-overload]


@pytest.fixture(params=["sqlite", "postgresql"])
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    """Settings of an empty home, on either database."""
    url = request.getfixturevalue("postgres_url") if request.param == "postgresql" else ""
    return Settings(home=tmp_path / "home", database_url=url)


@pytest.fixture
def store(settings: Settings) -> Iterator[Store]:
    """A store with the project `acme` and its generation `gen_1`, whose answer is "A rose."."""
    with open_store(settings) as store:
        with store.begin() as conn:
            projects.add(conn, Project(name="acme", base_model="starter"))
            generations.add(conn, _generation("acme", "gen_1"))
        yield store


def _generation(project: str, id: str, answer: str = "A rose.") -> Generation:
    messages = (Message.of("user", "What is it?"),)
    return Generation(id=id, project=project, version=0, model=project, messages=messages, answer=answer)


@pytest.fixture
def generation() -> Callable[..., Generation]:
    """Makes a generation: (project, id, answer)."""
    return _generation


@pytest.fixture
def fresh_project(store: Store) -> Callable[[], str]:
    """Makes a project of a new name, so that Hypothesis' examples do not meet each other in one store."""

    def make() -> str:
        name = f"p{uuid.uuid4().hex[:20]}"
        with store.begin() as conn:
            projects.add(conn, Project(name=name, base_model="starter"))
            generations.add(conn, _generation(name, f"gen_{name}"))
        return name

    return make
