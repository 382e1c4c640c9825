"""The few settings that the commands need without Ansible."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass, fields
from pathlib import Path

from vmw.errors import ExitCode, VmwError

CONFIG_FILE = "~/.config/vmw/config.yml"


@dataclass(frozen=True)
class Settings:
    """Settings with the defaults of inventory/group_vars/all.yml, which a unit test keeps equal."""

    vmw_state_dir: str = "~/.config/vmw"
    vmw_libvirt_uri: str = "qemu:///system"
    vmw_bridge: str = "br0"

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
    values: dict[str, str] = {}
    for field in fields(Settings):
        value = data.get(field.name)
        if value is None:
            continue
        if not isinstance(value, str) or "{{" in value:
            message = f"{field.name} in {path} must be a plain string"
            raise VmwError(message, "templates are possible in the other settings only", ExitCode.USAGE)
        values[field.name] = value
    settings = Settings(**values)
    try:
        settings.state_dir  # noqa: B018 - looked at for its complaint
    except RuntimeError as error:
        message = f"vmw_state_dir in {path} names the home of a user that does not exist: {settings.vmw_state_dir}"
        raise VmwError(message, "correct the file", ExitCode.USAGE) from error
    return settings


def log_dir() -> Path:
    """Return the directory of the logs of playbook runs (XDG base directory specification, state home)."""
    base = os.environ.get("XDG_STATE_HOME", "")
    return (Path(base) if base.startswith("/") else Path("~/.local/state").expanduser()) / "vmw" / "log"
