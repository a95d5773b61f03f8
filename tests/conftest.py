"""Fixtures for every kind of test: a clean environment and tiny models of the real classes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings
from sqlalchemy import Connection

from comfyloop.settings import Settings
from comfyloop.store import migrate

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# How long an example takes says how busy the machine is, not whether the code is right.
hypothesis_settings.register_profile("comfyloop", deadline=None, suppress_health_check=[HealthCheck.too_slow])
hypothesis_settings.load_profile("comfyloop")

REPOSITORY = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A developer's own COMFYLOOP_* settings do not reach the tests, except where caches and engines are."""
    kept = {
        "COMFYLOOP_CACHE_DIR",
        "COMFYLOOP_SWIFT_PYTHON",
        "COMFYLOOP_VLLM_PYTHON",
        "COMFYLOOP_LMDEPLOY_PYTHON",
    }
    for name in [n for n in os.environ if n.startswith("COMFYLOOP_") and n not in kept]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="session", autouse=True)
def _migrated_once() -> Iterator[None]:
    """The first new SQLite database is made by the migrations, the others by the statements that these have left:
    a fraction of the time, some 280 times."""
    real = migrate.upgrade
    left: list[str] = []

    def upgrade(conn: Connection, shown: str) -> None:
        new = conn.dialect.name == "sqlite" and not sa.inspect(conn).get_table_names()
        if new and left:
            for statement in left:
                conn.exec_driver_sql(statement)
            return
        real(conn, shown)
        if new:
            made = "SELECT sql FROM sqlite_master WHERE sql IS NOT NULL AND name NOT LIKE 'sqlite_%'"
            version = f"INSERT INTO alembic_version VALUES ('{migrate.revision(conn)}')"
            left[:] = [*(sql for (sql,) in conn.exec_driver_sql(made)), version]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(migrate, "upgrade", upgrade)
        yield


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home", project="acme", port=0)


@pytest.fixture(scope="session")
def tiny_llm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a random LlamaForCausalLM of 0.2 M parameters and a ChatML tokenizer."""
    from tests.models import make_tiny_llm

    return make_tiny_llm(tmp_path_factory.mktemp("models") / "tiny-llm")


@pytest.fixture(scope="session")
def tiny_vlm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a random LlavaForConditionalGeneration (CLIP tower, 28 px, 4 tokens) and processor."""
    from tests.models import make_tiny_vlm

    return make_tiny_vlm(tmp_path_factory.mktemp("models") / "tiny-vlm")


@pytest.fixture(scope="session")
def tiny_sd15(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SD1.5-shaped checkpoint of 64 pixels in one file, with random weights."""
    from tests.image_models import make_tiny_sd15

    return make_tiny_sd15(tmp_path_factory.mktemp("models") / "tiny-sd15.safetensors")


@pytest.fixture(scope="session")
def tiny_sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SDXL-shaped checkpoint of 64 pixels in one file, with random weights."""
    from tests.image_models import make_tiny_sdxl

    return make_tiny_sdxl(tmp_path_factory.mktemp("models") / "tiny-sdxl.safetensors")


@pytest.fixture(scope="session")
def starter() -> Iterator[Path]:
    """The embedded starter, built once into the cache directory of this machine."""
    from comfyloop import starter as embedded

    yield embedded.ensure(Settings().cache_dir)
