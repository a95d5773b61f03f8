"""Settings as they are read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from comfyloop.cli.base import settings_of
from comfyloop.errors import InvalidInput
from comfyloop.settings import FOLDER_MAY_SET, GROUPS, Settings, files_read, in_table, unknown_variables


def test_folders_are_absolute_since_runs_have_working_directories_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COMFYLOOP_CACHE_DIR", "~/cache")
    settings = Settings(home=Path("data"))
    assert settings.home == tmp_path / "data"
    assert settings.cache_dir == Path.home() / "cache"


def test_what_is_empty_is_not_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Docker Compose leaves a variable that has no value; a home of no name would be any folder one is in."""
    monkeypatch.chdir(tmp_path)
    for name in ("HOME", "PORT", "PROJECT", "RECIPE", "ENGINE_ARGS", "AUTO_PROMOTE"):
        monkeypatch.setenv(f"COMFYLOOP_{name}", "")
    settings = Settings()
    assert settings.home != tmp_path and (settings.port, settings.project) == (8265, "default")
    with pytest.raises(ValueError, match="name a folder, or leave it out"):
        Settings(home="")  # type: ignore[arg-type]


HOSTILE = """
vllm_python = "/tmp/x"
swift_python = "/tmp/x"
engine = "vllm"
engine_args = ["--x"]
home = "/tmp/x"
engine_url = "http://evil.example"
comfyui_url = "http://evil.example"
database_url = "postgresql://evil.example/x"
blob_url = "s3://x"
host = "0.0.0.0"
token = "x"
container_engine = "docker"
model = "/etc"
not_a_setting = 1
epochs = 3.5
"""


def test_a_folders_file_sets_how_to_learn_and_nothing_that_runs_reads_or_sends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, folder = tmp_path / "home", tmp_path / "folder"
    home.mkdir(), folder.mkdir()
    monkeypatch.setenv("COMFYLOOP_HOME", str(home))
    monkeypatch.chdir(folder)
    plain = Settings()
    (folder / "comfyloop.toml").write_text(HOSTILE)
    (home / "comfyloop.toml").write_text('engine_args = ["--mine"]\nepochs = 2.0\nlora_r = 4\n')
    settings = Settings()
    own = {"epochs": 3.5, "lora_r": 4, "engine_args": ("--mine",)}
    assert settings == plain.model_copy(update=own)
    (first, second) = files_read()
    assert first == (home / "comfyloop.toml", ())
    assert second.path == folder / "comfyloop.toml" and "vllm_python" in second.ignored
    assert "epochs" not in second.ignored and "home" in second.ignored


def test_in_the_home_directory_itself_the_file_is_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COMFYLOOP_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "comfyloop.toml").write_text('engine_args = ["--mine"]\n')
    assert Settings().engine_args == ("--mine",)
    (tmp_path / "comfyloop.toml").write_text("engine_args = [")
    with pytest.raises(InvalidInput, match=r"comfyloop\.toml cannot be read"):
        Settings()


@pytest.mark.parametrize("written", ['"C:\\Users\\me"', '"C:\\models"', '"C:\\temp"', '"C:\\new\\qwen"'])
def test_a_path_of_windows_in_double_quotes_is_told_how_to_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: str
) -> None:
    """TOML's own words name no backslash, and of two of these it makes a tab and a line break."""
    monkeypatch.setenv("COMFYLOOP_HOME", str(tmp_path))
    (tmp_path / "comfyloop.toml").write_text(f"model = {written}\n")
    with pytest.raises(InvalidInput, match="single quotes"):
        Settings()
    single = written.replace('"', "'")
    (tmp_path / "comfyloop.toml").write_text(f"model = {single}\n")
    assert Settings().model == written.strip('"')


def test_every_setting_that_names_a_place_or_program_is_kept_from_folders() -> None:
    for name, field in Settings.model_fields.items():
        if name.endswith(
            ("_python", "_url", "_args", "_dir", "_image", "_hosts", "_origins", "_address", "token")
        ):
            assert name not in FOLDER_MAY_SET, field
    assert Settings.model_fields.keys() >= FOLDER_MAY_SET


def test_a_verb_says_what_it_read_and_runs_nothing_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "comfyloop.toml").write_text('swift_python = "./x"\nengine_args = ["--x"]\nepochs = 2.0\n')
    (tmp_path / "typing_extensions.py").write_text("raise SystemExit('the folder ran')\n")
    script = Path(sys.executable).with_name("comfyloop")
    environment = {**os.environ, "COMFYLOOP_HOME": str(tmp_path / "home"), "COMFYLOOP_PORT": "1"}
    said = subprocess.run(
        [script, "doctor", "--json"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert "the folder ran" not in said.stderr and "but not engine_args, swift_python" in said.stderr, said
    assert json.loads(said.stdout)


def test_a_variable_that_is_no_setting_is_told_of(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COMFYLOOP_IMAGE_MODLE", "x")
    monkeypatch.setenv("COMFYLOOP_URL", "http://127.0.0.1:1")  # the node pack's
    monkeypatch.setenv("comfyloop_port", "9000")  # pydantic takes it so
    assert unknown_variables() == ["COMFYLOOP_IMAGE_MODLE"]
    assert settings_of().port == 9000
    told = "COMFYLOOP_IMAGE_MODLE is not used: there is no such setting; COMFYLOOP_IMAGE_MODEL is one."
    assert told in capsys.readouterr().err


@pytest.fixture
def home_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`comfyloop.toml` in the home directory; the working directory has none."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.setenv("COMFYLOOP_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path / "elsewhere")
    return tmp_path / "comfyloop.toml"


OLD = """
port = 9000
engine = "url"
learning_rate = 0.5
train_threads = 3
image_epochs = 2.0
gate_min_items = 9
trigger_samples = 5
[filters.shouting]
share = 0.5
"""
TABLES = """
[serve]
port = 9000
engine = "url"
[train]
learning_rate = 0.5
threads = 3
[image]
epochs = 2.0
[gate]
min_items = 9
[loop]
trigger_samples = 5
[curate.filters.shouting]
share = 0.5
"""


def test_settings_in_tables_are_those_that_stood_at_the_top(home_file: Path) -> None:
    home_file.write_text(OLD)
    old = Settings()
    home_file.write_text(TABLES)
    assert Settings() == old
    assert (old.port, old.train_threads, old.image_epochs, old.epochs) == (9000, 3, 2.0, 0.0)
    home_file.write_text(TABLES.replace("min_items", "gate_min_items"))  # with the table's name, too
    assert Settings() == old


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("gate_level = 0.1\n[gate]\nlevel = 0.2\n", "gate_level is set twice"),
        ("[gate]\nlevle = 0.2\n", r"gate\.levle"),
        ("[gate]\nport = 1\n", r"gate\.port"),
    ],
)
def test_a_setting_that_stands_twice_or_in_no_such_table_is_named(
    home_file: Path, text: str, told: str
) -> None:
    home_file.write_text(text)
    with pytest.raises((InvalidInput, ValidationError), match=told):
        Settings()


def test_a_folders_tables_are_held_to_the_same(home_file: Path) -> None:
    Path("comfyloop.toml").write_text('[serve]\nhost = "0.0.0.0"\n[train]\nepochs = 3.0\nengine = "swift"\n')
    assert (Settings().host, Settings().epochs, Settings().train_engine) == ("127.0.0.1", 3.0, "comfyloop")
    assert files_read()[-1].ignored == ("host", "train_engine")


def test_every_setting_is_in_one_table_under_one_name() -> None:
    fields = [name for group in GROUPS.values() for name in group.model_fields]
    assert sorted(fields) == sorted(Settings.model_fields)
    for table, group in GROUPS.items():
        names = [
            *group.model_fields,
            *(in_table(table, n) for n in group.model_fields if in_table(table, n) != n),
        ]
        assert len(names) == len(set(names)), table
