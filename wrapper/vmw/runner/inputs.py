"""What goes into a playbook run: environment, extra variables, ansible-runner's own settings."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, MutableMapping

    from vmw.layout import Layout

ExtraVars = dict[str, str | int | bool]

POLL_SECONDS = 0.1
"""How often ansible-runner hands control back: the latency of Ctrl-C and of the display. Its default is 5 s."""

PASSWORD_FILE = "ANSIBLE_BECOME_PASSWORD_FILE"  # noqa: S105 - a variable's name

_ASKING = ("ANSIBLE_ASK_PASS", "ANSIBLE_ASK_VAULT_PASS", "ANSIBLE_BECOME_ASK_PASS")
_IDENTITIES = "ANSIBLE_VAULT_IDENTITY_LIST"
_PROMPTS = frozenset({"prompt", "prompt_ask_vault_pass"})
"""Sources of a vault's password that are the person at the terminal (ansible.cli.CLI.setup_vault_secrets)."""

_PLAIN = frozenset(map(chr, range(0x20, 0x7F))) - {'"', "\\"}


def _quoted(text: str) -> str:
    """Return ``text`` as a YAML double-quoted scalar in plain ASCII; YAML refuses raw control characters."""
    return '"' + "".join(c if c in _PLAIN else f"\\U{ord(c):08X}" for c in text) + '"'


def extra_vars_yaml(extra_vars: Mapping[str, str | int | bool]) -> str:
    """Return extra variables as a file for `-e @file`, each string marked so that Ansible never templates it."""
    if not extra_vars:
        # Ansible takes an empty file for no dictionary.
        return "--- {}\n"
    lines = ["---"]
    for name, value in extra_vars.items():
        if isinstance(value, str):
            lines.append(f"{name}: !unsafe {_quoted(value)}")
        else:
            lines.append(f"{name}: {json.dumps(value)}")
    return "\n".join(lines) + "\n"


def runner_settings() -> str:
    """Return ansible-runner's `env/settings`; passed as an argument they would be dropped without a word."""
    return json.dumps({"pexpect_timeout": POLL_SECONDS, "suppress_ansible_output": True, "suppress_output_file": True})


def drop_questions(environ: MutableMapping[str, str]) -> None:
    """Take out of an environment what has Ansible ask for passwords: nobody sees the terminal that it runs on."""
    for name in _ASKING:
        environ.pop(name, None)
    identities = environ.pop(_IDENTITIES, "").split(",")
    silent = [identity for identity in identities if identity and identity.rpartition("@")[2] not in _PROMPTS]
    if silent:
        environ[_IDENTITIES] = ",".join(silent)


def own_password_file(base: Mapping[str, str]) -> Path | None:
    """Return the caller's own file with the password for sudo; Ansible itself runs in another directory."""
    return Path(base[PASSWORD_FILE]).expanduser().absolute() if base.get(PASSWORD_FILE) else None


def environment(layout: Layout, base: Mapping[str, str], become_password_file: Path | None, private: Path) -> dict[str, str]:
    """Return what is set on top of the caller's environment for ansible-playbook.

    Args:
        layout: Where the collection is.
        base: The caller's environment.
        become_password_file: File with the password for sudo, or None when there is none or the caller's own serves.
        private: The run's private directory.
    """
    values = {
        # The virtual environment need not be activated, and `pipx` and `uv tool` leave ansible-playbook off PATH.
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), base.get("PATH", os.defpath)]),
        "ANSIBLE_CONFIG": str(layout.ansible_cfg),
        "ANSIBLE_COLLECTIONS_PATH": str(layout.collections),
        # What our own inventory is written in; Ansible would look for more plugins first.
        "ANSIBLE_INVENTORY_ENABLED": "yaml",
        "ANSIBLE_NOCOLOR": "1",
        "ANSIBLE_FORCE_COLOR": "0",
        "ANSIBLE_LOCALHOST_WARNING": "0",
        # Not in the home directory, whose disk a guest may have filled: what stops or removes that guest is run all the same.
        "ANSIBLE_LOCAL_TEMP": str(private / "ansible"),
        "ANSIBLE_REMOTE_TEMP": str(private / "ansible"),
    }
    charset = base.get("LC_ALL") or base.get("LC_CTYPE") or base.get("LANG") or ""
    if "utf" not in charset.lower():
        # Ansible refuses to start in any other character set.
        values["LC_ALL"] = "C.UTF-8"
    # A Python set up for something else must not reach into the virtual environment.
    values.update({name: "" for name in ("PYTHONHOME", "PYTHONPATH") if name in base})
    password_file = become_password_file or own_password_file(base)
    if password_file:
        values[PASSWORD_FILE] = str(password_file)
    return values
