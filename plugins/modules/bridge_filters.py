#!/usr/bin/python
# Copyright (c) 2026 The vmw authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Keep the host's packet filters from cutting off the VMs."""

from __future__ import annotations

DOCUMENTATION = r"""
module: bridge_filters
short_description: Keep the host's packet filters from cutting off the VMs
version_added: 0.1.0
description:
  - Takes bridged frames out of iptables, now and whenever C(br_netfilter) is loaded, as Docker does.
    Where a file in C(sysctl.d) asks for the contrary, that stays, with a warning.
  - Lets what the VMs send, and the answers to it, through the chain that Docker keeps for such rules,
    now and whenever Docker starts. Where the bridge is the LAN's too, only what stays on it.
author:
  - The vmw authors
attributes:
  check_mode:
    support: full
    description: Can run in check mode and tells what would change.
  diff_mode:
    support: full
    description: Shows what changes in the files.
  idempotent:
    support: full
    description: What is as it should be is not touched.
options:
  bridge:
    description: The VMs' bridge.
    type: str
    required: true
"""

EXAMPLES = r"""
- name: Keep packet filters from cutting off the VMs
  vmw.worktree.bridge_filters:
    bridge: br0
  become: true
"""

RETURN = r"""
rules:
  description: The rules that were added to Docker's chain, or taken out of it.
  returned: success
  type: list
  elements: str
"""

import re
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.vmw.worktree.plugins.module_utils.errors import run
from ansible_collections.vmw.worktree.plugins.module_utils.state import command, write_file

DOCKER_SCRIPT = "/usr/local/lib/vmw/docker-forward"
SYSCTL = "/usr/lib/systemd/systemd-sysctl"
SYSCTL_DIRECTORIES = ("/etc/sysctl.d", "/run/sysctl.d", "/usr/local/lib/sysctl.d", "/usr/lib/sysctl.d")
_ASKED = re.compile(r"^\s*-?net[./]bridge[./]bridge-nf-call-\w+\s*=\s*1", re.MULTILINE)
SETTINGS = Path("/proc/sys/net/bridge")
DOCKER_SOCKET = Path("/run/docker.sock")


def filter_files(bridge: str) -> dict[str, str]:
    """Return the files that keep the host's packet filters from cutting off the VMs.

    Args:
        bridge: The VMs' bridge.

    Returns:
        Contents by path.
    """
    return {
        "/etc/sysctl.d/60-vmw-bridge.conf": (
            "# Managed by vmw. Frames between VMs and LAN are not this host's to filter; Docker's rules would drop them.\n"
            "-net.bridge.bridge-nf-call-arptables = 0\n"
            "-net.bridge.bridge-nf-call-ip6tables = 0\n"
            "-net.bridge.bridge-nf-call-iptables = 0\n"
        ),
        "/etc/udev/rules.d/60-vmw-bridge.rules": (
            "# Managed by vmw. The settings exist only once br_netfilter is loaded, long after the boot's other settings.\n"
            f'ACTION=="add", SUBSYSTEM=="module", KERNEL=="br_netfilter", RUN+="{SYSCTL} --prefix=/net/bridge"\n'
        ),
        DOCKER_SCRIPT: f"""#!/bin/sh
# Managed by vmw. Docker drops what passes this host and is not its own. Says what it changes.
routed='--in-interface {bridge} --jump ACCEPT'
answers='--out-interface {bridge} --match conntrack --ctstate RELATED,ESTABLISHED --jump ACCEPT'
bridged='--in-interface {bridge} --out-interface {bridge} --jump ACCEPT'
# With a port that is no VM's the bridge is the LAN's too, and neighbours shall not get past Docker to its containers.
lan=
for port in /sys/class/net/{bridge}/brif/*; do
  case ${{port##*/}} in '*' | vmw-* | vnet* | tap* | virbr*) ;; *) lan=yes ;; esac
done
if [ "$lan" ]; then set -- "$bridged"; else set -- "$routed" "$answers"; fi
for tables in iptables ip6tables; do
  "$tables" --wait --numeric --list DOCKER-USER > /dev/null 2>&1 || continue
  # The words of the rules.
  # shellcheck disable=SC2086
  [ "$lan" ] && "$tables" --wait --delete DOCKER-USER $routed 2> /dev/null && echo "$tables without $routed"
  for rule in "$@"; do
    # shellcheck disable=SC2086
    "$tables" --wait --check DOCKER-USER $rule 2> /dev/null && continue
    # shellcheck disable=SC2086
    "$tables" --wait --insert DOCKER-USER $rule && echo "$tables $rule"
  done
done
""",
        "/etc/systemd/system/docker.service.d/vmw.conf": (
            f"# Managed by vmw.\n[Service]\nExecStartPost=-/bin/sh {DOCKER_SCRIPT}\n"
        ),
    }


def asks_for_filter(text: str) -> bool:
    """Tell whether a file of ``sysctl.d`` has bridged frames filtered."""
    return _ASKED.search(text) is not None


def asked_for(own: set[str]) -> list[str]:
    """Return the files other than ours that have bridged frames filtered."""
    files = (file for directory in SYSCTL_DIRECTORIES for file in sorted(Path(directory).glob("*.conf")) if file.is_file())
    return [str(file) for file in files if str(file) not in own and asks_for_filter(file.read_text(errors="replace"))]


def configure(module: AnsibleModule) -> dict[str, Any]:
    """Do the module's work and return its results."""
    diffs = []
    files = filter_files(module.params["bridge"])
    for name, after in files.items():
        path = Path(name)
        before = path.read_text() if path.is_file() else ""
        if before != after:
            diffs.append({"before_header": name, "after_header": name, "before": before, "after": after})
            if not module.check_mode:
                path.parent.mkdir(parents=True, exist_ok=True)
                write_file(path, after)
    if diffs and not module.check_mode:
        command("systemctl", "daemon-reload")
    filtered = any(path.read_text().strip() == "1" for path in SETTINGS.glob("bridge-nf-call-*"))
    if filtered:
        asked = asked_for(set(files))
        if asked:
            module.warn(f"{asked[0]} has iptables filter bridged frames, which may cut off the VMs")
            filtered = False
        elif not module.check_mode:
            command(SYSCTL, "--prefix=/net/bridge")
    rules = []
    if DOCKER_SOCKET.exists() and not module.check_mode:
        rules = command("/bin/sh", DOCKER_SCRIPT).splitlines()
    return {"changed": bool(diffs or filtered or rules), "rules": rules, "diff": diffs}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(argument_spec={"bridge": {"type": "str", "required": True}}, supports_check_mode=True)
    run(module, configure)


if __name__ == "__main__":
    main()
