"""What systemd, launchd and Windows are given to start at log-in, each read by who reads it, as far as that is here;
and the command, over a `systemctl` that only notes what it is told."""

from __future__ import annotations

import json
import os
import plistlib
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner

from comfyloop.cli import app, autostart
from comfyloop.platforms import login

ODD = 'a "folder" of 100% $HOME & <家>'
"""Signs that each of them reads in its own way."""
TASK = "{http://schemas.microsoft.com/windows/2004/02/mit/task}"


def wanted(tmp_path: Path) -> login.LogIn:
    home = tmp_path / ODD
    home.mkdir()
    command = [sys.executable, "-m", "comfyloop", "up", "--home", str(home)]
    return login.LogIn("comfyloop", "ComfyLoop: 100% yours", command, home, home / "service.log")


def test_systemd_reads_the_unit(tmp_path: Path) -> None:
    it = wanted(tmp_path)
    text = login.systemd_unit(it)
    line = next(line for line in text.splitlines() if line.startswith("ExecStart="))
    # As systemd takes a line apart, with its two own signs read back.
    read = [
        word.replace("%%", "%").replace("$$", "$") for word in shlex.split(line.removeprefix("ExecStart="))
    ]
    assert read == list(it.command)
    if shutil.which("systemd-analyze") is None:
        pytest.skip("NOT PROVED: systemd-analyze is not installed, so no systemd has read the unit")
    unit = tmp_path / "comfyloop.service"
    unit.write_text(text, "utf-8")
    environment = {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)}
    command = ["systemd-analyze", "--user", "--man=no", "--generators=no", "verify", str(unit)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=200)
    assert done.returncode == 0 and "comfyloop.service" not in done.stderr, done.stderr


def test_launchd_reads_the_agent(tmp_path: Path) -> None:
    it = wanted(tmp_path)
    told = plistlib.loads(login.launchd_agent(it))
    assert told["ProgramArguments"] == list(it.command) and told["RunAtLoad"] is True
    assert told["WorkingDirectory"] == str(it.folder) and told["StandardErrorPath"] == str(it.log)
    assert told["KeepAlive"] == {"SuccessfulExit": False}


def test_windows_reads_the_task(tmp_path: Path) -> None:
    it = wanted(tmp_path)
    data = login.windows_task(it, "STUDIO\\家")
    assert data[:2] in (b"\xff\xfe", b"\xfe\xff")  # schtasks takes UTF-16 with its mark
    task = ElementTree.fromstring(data.decode("utf-16").partition("?>")[2])
    text = {element.tag.removeprefix(TASK): (element.text or "").strip() for element in task.iter()}
    assert text["Command"] == it.command[0] and text["WorkingDirectory"] == str(it.folder)
    assert words_of_windows(text["Arguments"]) == list(it.command[1:])
    users = [element.text for element in task.iter(f"{TASK}UserId")]
    assert users == ["STUDIO\\家"] * 2 and text["RunLevel"] == "LeastPrivilege"
    assert text["ExecutionTimeLimit"] == "PT0S" and text["StopIfGoingOnBatteries"] == "false"


def words_of_windows(line: str) -> list[str]:
    """A command line taken apart as Windows' C library does."""
    words, word, quoted, slashes, begun = [], "", False, 0, False
    for sign in f"{line} ":
        if sign == "\\":
            slashes += 1
            continue
        if sign == '"':
            word += "\\" * (slashes // 2)
            if slashes % 2:
                word += '"'
            else:
                quoted = not quoted
            begun, slashes = True, 0
            continue
        word += "\\" * slashes
        begun, slashes = begun or bool(slashes or word), 0
        if sign in " \t" and not quoted:
            if begun or word:
                words.append(word)
            word, begun = "", False
        else:
            word += sign
    return words


@pytest.fixture
def systemctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Notes what it is told; returns where."""
    told = tmp_path / "told"
    program = tmp_path / "bin" / "systemctl"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho "$*" >> {shlex.quote(str(told))}\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "settings"))
    monkeypatch.setenv("COMFYLOOP_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(autostart, "starts_by_itself", lambda: True)
    monkeypatch.chdir(tmp_path)
    return told


def command_line(*words: str, code: int = 0) -> dict[str, object]:
    done = CliRunner().invoke(app, ["autostart", *words, "--json"])
    assert done.exit_code == code, done.output
    return json.loads(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="systemd is Linux's")
def test_on_off_and_status(systemctl: Path, tmp_path: Path) -> None:
    assert command_line("status", code=1) == {"on": False}
    said = command_line("on", "--port", "8300")
    unit = tmp_path / "settings" / "systemd" / "user" / "comfyloop.service"
    assert said["where"] == str(unit) and unit.read_text("utf-8").count("[Service]") == 1
    assert said["command"] == [
        *(sys.executable, "-m", "comfyloop", "up", "--home", str(tmp_path / "home"), "--port", "8300")
    ]
    assert command_line("status") == {"on": True}
    assert command_line("off") == {"on": False, "removed": True}
    assert command_line("off") == {"on": False, "removed": False} and not unit.exists()
    assert systemctl.read_text().splitlines() == [
        *("--user show-environment", "--user daemon-reload", "--user enable comfyloop"),
        *("--user restart comfyloop", "--user disable --now comfyloop", "--user daemon-reload"),
    ]


@pytest.mark.skipif(sys.platform != "linux", reason="systemd is Linux's")
def test_where_there_is_no_session_nothing_is_left_behind(systemctl: Path, tmp_path: Path) -> None:
    (tmp_path / "bin" / "systemctl").write_text("#!/bin/sh\necho 'Failed to connect to bus' >&2; exit 1\n")
    done = CliRunner().invoke(app, ["autostart", "on"])
    assert str(done.exception) == (
        "systemctl refuses: Failed to connect to bus. Start it by hand with `comfyloop up`, or have your desktop start "
        "that at log-in."
    )
    assert not (tmp_path / "settings").exists()
