"""The verbs that change something: what each needs before its playbook, and how it is run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ansible_collections.vmw.worktree.plugins.module_utils.domain_xml import marked_record
from ansible_collections.vmw.worktree.plugins.module_utils.instance import InstanceFiles
from ansible_collections.vmw.worktree.plugins.module_utils.passt_units import unit_names
from ansible_collections.vmw.worktree.plugins.module_utils.state import State
from ansible_collections.vmw.worktree.plugins.module_utils.user_units import unit_directory

from vmw.errors import ExitCode, VmwError
from vmw.runner.events import Grouping
from vmw.runner.playbook import PlaybookRunner, Run
from vmw.services import records, virsh
from vmw.services.units import published, units_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmw.layout import Layout
    from vmw.runner.inputs import ExtraVars
    from vmw.runner.playbook import Observer, Outcome
    from vmw.settings import Settings


@dataclass(frozen=True)
class Operations:
    """The verbs, for one collection, one set of settings, one display and the command that the user typed."""

    layout: Layout
    settings: Settings
    observer: Observer
    command: str

    def host(self, password: str | None) -> Outcome:
        """Set up this machine.

        Args:
            password: The password for sudo, or None when Ansible needs none from us.
        """
        return self._run(Run("host", {}, self.command, Grouping.ROLE, password))

    def secrets(self, profile: str) -> Outcome:
        """Make the file of a secrets profile; one that is there is left alone."""
        return self._run(Run("secrets", {"vmw_secrets": profile}, self.command))

    def spawn(self, extra_vars: ExtraVars) -> Outcome:
        """Make or start the VM of a worktree."""
        return self._run(Run("spawn", extra_vars, self.command))

    def state(self, name: str) -> str:
        """Return the state of a VM as `vmw list` shows it.

        Raises:
            VmwError: There is no such VM, or libvirt does not answer.
        """
        instance, _ = records.find(self.settings.state_dir, name)
        return virsh.Virsh(instance.libvirt_uri).states().get(name, virsh.UNDEFINED)

    def start(self, name: str) -> Outcome:
        """Start a VM and wait until it can be reached; one that is on already is left alone."""
        return self._run(Run("start", {"vmw_name": name}, self.command))

    def stop(self, name: str, *, force: bool, timeout: int) -> Outcome:
        """Stop a VM and wait until it is off; one that is off already is left alone.

        Args:
            name: The VM.
            force: Pull the plug instead of asking the guest.
            timeout: How long the guest may take, in seconds.
        """
        values: ExtraVars = {"vmw_name": name, "vmw_stop_timeout": timeout, "vmw_stop_force": force}
        return self._run(Run("stop", values, self.command))

    def suspend(self, name: str, *, timeout: int) -> Outcome:
        """Save a VM's memory and switch it off; one that is off already is left alone.

        Args:
            name: The VM.
            timeout: How long saving may take, in seconds.
        """
        return self._run(Run("suspend", {"vmw_name": name, "vmw_suspend_timeout": timeout}, self.command))

    def resume(self, name: str) -> Outcome:
        """Start a suspended VM where it was and wait until it can be reached; one that is on already is left alone."""
        return self._run(Run("resume", {"vmw_name": name}, self.command))

    def port(self, name: str, spec: str, *, remove: bool) -> Outcome:
        """Publish a VM's port on this machine's loopback, or publish it no more.

        Args:
            name: The VM.
            spec: The guest's port and, after a colon, the host's.
            remove: Whether it is published no more.
        """
        values: ExtraVars = {"vmw_name": name, "vmw_port": spec, "vmw_port_state": "absent" if remove else "present"}
        return self._run(Run("port", values, self.command))

    def net(self, name: str, *, mode: str = "", allow: Sequence[str] = (), forbid: Sequence[str] = ()) -> Outcome:
        """Change what a VM may reach in the network, at once.

        Args:
            name: The VM.
            mode: The new policy; empty for the one it has.
            allow: Hosts to add to its own list.
            forbid: Hosts to take off its own list.
        """
        hosts = {"vmw_net_allow": ",".join(allow), "vmw_net_forbid": ",".join(forbid)}
        values: ExtraVars = {"vmw_name": name, "vmw_net_mode": mode, **{key: text for key, text in hosts.items() if text}}
        return self._run(Run("net", values, self.command))

    def keys(self, name: str, **limits: bool | int | None) -> Outcome:
        """Limit what a VM does with the host's keys; what is None stays as it is.

        Args:
            name: The VM.
            limits: ``revoked``, ``daily_requests`` and ``daily_tokens``.
        """
        values: ExtraVars = {"vmw_name": name}
        values.update({f"vmw_keys_{key}": value for key, value in limits.items() if value is not None})
        return self._run(Run("keys", values, self.command))

    def destroy(self, name: str, *, told: bool = False) -> Outcome:
        """Remove a VM, also a half-made or half-removed one. The worktree is never touched.

        Args:
            name: The VM.
            told: Whether the user knows already what work goes with it.
        """
        values: ExtraVars = {"vmw_name": name, "vmw_tell_work": False} if told else {"vmw_name": name}
        return self._run(Run("destroy", values, self.command))

    def git_pull(self, name: str, *, branch: str, force: bool) -> Outcome:
        """Fetch the commits of an isolated VM.

        Args:
            name: The VM.
            branch: Its branch; empty for what it has checked out.
            force: Whether commits that came before may be left out.
        """
        return self._run(Run("git_pull", {"vmw_name": name, "vmw_git_branch": branch, "vmw_git_force": force}, self.command))

    def git_push(self, name: str, *, branch: str) -> Outcome:
        """Send branches of the host to an isolated VM.

        Args:
            name: The VM.
            branch: The one branch to send; empty for all but those that came from guests.
        """
        return self._run(Run("git_push", {"vmw_name": name, "vmw_git_branch": branch}, self.command))

    def build_image(self) -> Outcome:
        """Build a new generation of the golden image."""
        return self._run(Run("image", {}, self.command))

    def prune_images(self) -> Outcome:
        """Remove the generations that no VM uses and that are not the current one."""
        return self._run(Run("prune", {}, self.command))

    def _run(self, run: Run) -> Outcome:
        return PlaybookRunner(self.layout, self.observer).run(run)


def left_of(settings: Settings, name: str) -> bool:
    """Tell whether anything of a VM is there: its directory, its domain, or the units of its shares and ports.

    Raises:
        VmwError: All there is of this name is a domain of somebody else's, or libvirt does not answer.
    """
    if any(recorded.name == name for recorded in records.all_recorded(settings.state_dir)) or units_of(name, "socket"):
        return True
    if any(each.name == name for each in published()):
        return True
    if (unit_directory() / unit_names(name)[0]).exists():
        return True
    definition = virsh.Virsh(settings.vmw_libvirt_uri).definition(name)
    if not definition:
        return False
    owner = marked_record(definition)
    if owner != str(InstanceFiles(State(settings.state_dir), name).record):
        whose = f"belongs to {owner}" if owner else "was not made by vmw"
        message = f"there is no VM of yours named {name!r}, but libvirt has a domain of that name, which {whose}"
        raise VmwError(message, "vmw leaves it alone; `virsh` removes it if it is yours", ExitCode.CONFLICT)
    return True


def is_suspended(settings: Settings, name: str) -> bool:
    """Tell whether a VM has saved memory; no where libvirt does not answer or the record cannot be read."""
    recorded = records.recorded(settings.state_dir, name)
    try:
        return bool(recorded and recorded.instance and virsh.Virsh(recorded.instance.libvirt_uri).is_saved(name))
    except VmwError:
        return False


def work_warnings(settings: Settings, name: str) -> list[str]:
    """Return what to tell about a VM's work before it is removed; nothing for what has no record that can be read."""
    from ansible_collections.vmw.worktree.plugins.module_utils import git_work  # noqa: PLC0415 - needed only here

    recorded = records.recorded(settings.state_dir, name)
    if recorded is None or recorded.instance is None:
        return []
    return git_work.warnings(recorded.instance, git_work.work_at_risk(recorded.instance, recorded.files))


def refuse_without_terminal(name: str) -> VmwError:
    """Return the error for a destroy that nobody can confirm."""
    message = f"destroying {name} needs a confirmation, and there is no terminal to ask on"
    return VmwError(message, f"run `vmw destroy {name} --yes`", ExitCode.USAGE)
