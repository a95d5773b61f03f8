"""A program that the system starts when this user logs in: a unit of systemd, an agent of launchd, a task of Windows.

What is written for each is a pure function of what is started; turning it on and off is the system's own program.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

LABEL = "io.github.comfyloop"
"""What launchd calls it."""
SECONDS = 60.0


@dataclass(frozen=True)
class LogIn:
    """
    Attributes:
        name: What the system calls it; its file is called so.
        says: What it is, in a few words.
        command: Started in `folder`.
        log: Where what it prints goes, where the system keeps no log of its own.
    """

    name: str
    says: str
    command: Sequence[str]
    folder: Path
    log: Path


def systemd_unit(it: LogIn) -> str:
    """`KillMode=process`: a training run outlives the service, which finds it again. What a person has to mend (wrong
    settings, a port that is taken) is not tried again and again."""
    command = " ".join(map(_for_systemd, it.command))
    # A path to a folder takes no quotes and every blank as it is.
    folder = str(it.folder).replace("%", "%%")
    return f"""[Unit]
Description={it.says.replace("%", "%%")}

[Service]
ExecStart={command}
WorkingDirectory={folder}
KillMode=process
TimeoutStopSec=60
Restart=on-failure
RestartSec=10
RestartPreventExitStatus=2 3 4 8

[Install]
WantedBy=default.target
"""


def _for_systemd(word: str) -> str:
    for sign, written in (("\\", "\\\\"), ('"', '\\"'), ("%", "%%"), ("$", "$$")):
        word = word.replace(sign, written)
    return f'"{word}"'


def launchd_agent(it: LogIn) -> bytes:
    import plistlib  # not where the service starts

    return plistlib.dumps(
        {
            "Label": LABEL,
            "ProgramArguments": list(it.command),
            "WorkingDirectory": str(it.folder),
            "RunAtLoad": True,
            "KeepAlive": {"SuccessfulExit": False},
            "ThrottleInterval": 10,
            "ExitTimeOut": 60,
            "ProcessType": "Interactive",  # a person waits for its answers
            "StandardOutPath": str(it.log),
            "StandardErrorPath": str(it.log),
        }
    )


def windows_task(it: LogIn, user: str) -> bytes:
    """For one user, without an administrator's rights, and without the limits that tasks have by themselves: three
    days, and only on mains power."""
    from xml.sax.saxutils import escape  # not where the service starts

    program, *words = it.command
    written = f"""<?xml version="1.0" encoding="UTF-16"?>
<Task version="1.2" xmlns="http://schemas.microsoft.com/windows/2004/02/mit/task">
  <RegistrationInfo><Description>{escape(it.says)}</Description></RegistrationInfo>
  <Triggers><LogonTrigger><Enabled>true</Enabled><UserId>{escape(user)}</UserId></LogonTrigger></Triggers>
  <Principals><Principal id="Author"><UserId>{escape(user)}</UserId><LogonType>InteractiveToken</LogonType>
    <RunLevel>LeastPrivilege</RunLevel></Principal></Principals>
  <Settings><MultipleInstancesPolicy>IgnoreNew</MultipleInstancesPolicy>
    <DisallowStartIfOnBatteries>false</DisallowStartIfOnBatteries><StopIfGoingOnBatteries>false</StopIfGoingOnBatteries>
    <ExecutionTimeLimit>PT0S</ExecutionTimeLimit><Priority>5</Priority></Settings>
  <Actions Context="Author"><Exec><Command>{escape(program)}</Command>
    <Arguments>{escape(subprocess.list2cmdline(words))}</Arguments>
    <WorkingDirectory>{escape(str(it.folder))}</WorkingDirectory></Exec></Actions>
</Task>
"""
    return written.encode("utf-16")


def without_window(python: str) -> str:
    """The Python that opens no console, where there is another one for that."""
    beside = Path(python).with_name("pythonw.exe")
    return str(beside) if sys.platform == "win32" and beside.is_file() else python


def keeps_log() -> bool:
    """Whether the system itself keeps what a program prints that it starts at log-in."""
    return sys.platform != "win32"


def switch_on(it: LogIn) -> str:
    """Have it started now and at each log-in; where it stands, or what the system calls it.

    Raises:
        OSError: The system refuses; `strerror` is a sentence.
    """
    if sys.platform == "win32":
        user = f"{os.environ.get('USERDOMAIN', '.')}\\{os.environ.get('USERNAME', '')}"
        descriptor, file = tempfile.mkstemp(suffix=".xml")
        try:
            with os.fdopen(descriptor, "wb") as written:
                written.write(windows_task(it, user))
            _tell("schtasks", "/Create", "/TN", it.name, "/XML", file, "/F")
            _tell("schtasks", "/Run", "/TN", it.name)
        finally:
            Path(file).unlink(missing_ok=True)
        return f"the task {it.name}"
    elif sys.platform == "darwin":
        agent = place(it.name)
        for folder in (agent.parent, it.log.parent):
            folder.mkdir(parents=True, exist_ok=True)
        agent.write_bytes(launchd_agent(it))
        with contextlib.suppress(OSError):  # it was not there
            _tell("launchctl", "bootout", f"gui/{os.getuid()}/{LABEL}")
        _tell("launchctl", "bootstrap", f"gui/{os.getuid()}", str(agent))
        return str(agent)
    else:
        _tell(
            "systemctl", "--user", "show-environment"
        )  # nothing is left behind where there is none to read it
        unit = place(it.name)
        unit.parent.mkdir(parents=True, exist_ok=True)
        unit.write_text(systemd_unit(it), "utf-8")
        _tell("systemctl", "--user", "daemon-reload")
        _tell("systemctl", "--user", "enable", it.name)
        _tell("systemctl", "--user", "restart", it.name)
        return str(unit)


def switch_off(name: str) -> bool:
    """Have it started no more, and end it; False when it was not.

    Raises:
        OSError: The system refuses; `strerror` is a sentence.
    """
    if not is_on(name):
        return False
    if sys.platform == "win32":
        with contextlib.suppress(OSError):  # it does not run
            _tell("schtasks", "/End", "/TN", name)
        _tell("schtasks", "/Delete", "/TN", name, "/F")
    elif sys.platform == "darwin":
        with contextlib.suppress(OSError):  # it was not loaded
            _tell("launchctl", "bootout", f"gui/{os.getuid()}/{LABEL}")
        place(name).unlink()
    else:
        _tell("systemctl", "--user", "disable", "--now", name)
        place(name).unlink()
        _tell("systemctl", "--user", "daemon-reload")
    return True


def is_on(name: str) -> bool:
    """Whether it is started at each log-in."""
    if sys.platform == "win32":
        try:
            _tell("schtasks", "/Query", "/TN", name)
        except OSError:
            return False
        return True
    else:
        return place(name).exists()


def place(name: str) -> Path:
    """Where the file of a user's own program lies; Windows keeps its tasks itself."""
    if sys.platform == "darwin":
        return Path.home() / "Library" / "LaunchAgents" / f"{LABEL}.plist"
    else:
        settings = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
        return settings / "systemd" / "user" / f"{name}.service"


def _tell(program: str, *words: str) -> None:
    found = shutil.which(program)
    if found is None:
        raise OSError(0, f"This system has no {program}")
    try:
        done = subprocess.run(
            [found, *words], capture_output=True, encoding="utf-8", errors="replace", timeout=SECONDS
        )
    except subprocess.TimeoutExpired:
        raise OSError(0, f"{program} {words[0]} did not end within a minute") from None
    if done.returncode:
        said = " ".join((done.stderr or done.stdout).split()) or f"exit code {done.returncode}"
        raise OSError(0, f"{program} refuses: {said.rstrip('.')}")
