"""The few settings that the commands need without Ansible."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from vmw.errors import ExitCode, VmwError

SSH_AGENT_MODES = ("forward", "off", "filter")
"""What a guest is lent of the user's SSH agent: all of it, nothing, or chosen keys."""

CONFIG_FILE = "~/.config/vmw/config.yml"


@dataclass(frozen=True)
class Settings:
    """Settings with the defaults of inventory/group_vars/all.yml, which a unit test keeps equal."""

    vmw_state_dir: str = "~/.config/vmw"
    vmw_libvirt_uri: str = "qemu:///system"
    vmw_bridge: str = "br0"
    vmw_warm_start: bool = True
    vmw_ssh_agent: str = "forward"
    vmw_ssh_agent_keys: list[str] = field(default_factory=list)

    @property
    def state_dir(self) -> Path:
        """The directory in which everything of vmw lives."""
        return Path(self.vmw_state_dir).expanduser()

    @property
    def system_libvirt(self) -> bool:
        """Tell whether the VMs run under this machine's system libvirt, and not a session's or a remote one."""
        return self.vmw_libvirt_uri == "qemu:///system"


def load_settings(path: Path | None = None) -> Settings:
    """Read the user's settings.

    Args:
        path: The file; by default the one that the playbooks read.

    Raises:
        VmwError: The file cannot be read, or a setting needed here is a template that only Ansible can evaluate.
    """
    path = path or Path(CONFIG_FILE).expanduser()
    try:
        text = path.read_text()
    except FileNotFoundError:
        return Settings()
    except (OSError, UnicodeDecodeError) as error:
        message = f"{path} cannot be read: {error}"
        raise VmwError(message, f"check it with `cat {shlex.quote(str(path))}`", ExitCode.USAGE) from error
    import yaml  # noqa: PLC0415 - takes 50 ms, and most users have no such file

    try:
        data = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        message = f"{path} is no valid YAML: {' '.join(str(error).split())}"
        raise VmwError(message, "correct the file", ExitCode.USAGE) from error
    if not isinstance(data, dict):
        message = f"{path} holds no settings: expected lines like `vmw_memory_mib: 8192`"
        raise VmwError(message, "correct the file", ExitCode.USAGE)
    names = [each.name for each in fields(Settings)]
    values = {name: _checked(name, data[name], path) for name in names if data.get(name) is not None}
    settings = Settings(**values)
    try:
        settings.state_dir  # noqa: B018 - looked at for its complaint
    except RuntimeError as error:
        message = f"vmw_state_dir in {path} names the home of a user that does not exist: {settings.vmw_state_dir}"
        raise VmwError(message, "correct the file", ExitCode.USAGE) from error
    return settings


def _checked(name: str, value: object, path: Path) -> Any:  # noqa: ANN401 - each setting has a type of its own
    """Return the value of a setting.

    Raises:
        VmwError: It is none.
    """
    if name == "vmw_ssh_agent":
        # YAML 1.1 takes the bare word for a truth value.
        value = "off" if value is False else value
        if value not in SSH_AGENT_MODES:
            message = f"{name} in {path} must be one of {', '.join(SSH_AGENT_MODES)}"
            raise VmwError(message, "correct the file", ExitCode.USAGE)
    if name == "vmw_warm_start":
        # What else Ansible would take for false does not matter here: it decides about a hint only.
        return value is not False
    many = name == "vmw_ssh_agent_keys"
    texts = value if many and isinstance(value, list) else [value]
    if (many and not isinstance(value, list)) or not all(isinstance(text, str) and "{{" not in text for text in texts):
        message = f"{name} in {path} must be {'a list of plain strings' if many else 'a plain string'}"
        raise VmwError(message, "templates are possible in the other settings only", ExitCode.USAGE)
    return value


def log_dir() -> Path:
    """Return the directory of the logs of playbook runs (XDG base directory specification, state home)."""
    base = os.environ.get("XDG_STATE_HOME", "")
    return (Path(base) if base.startswith("/") else Path("~/.local/state").expanduser()) / "vmw" / "log"
