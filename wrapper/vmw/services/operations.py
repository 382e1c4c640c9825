"""The verbs that change something: what each needs before its playbook, and how it is run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ansible_collections.vmw.worktree.plugins.module_utils.domain_xml import marked_record
from ansible_collections.vmw.worktree.plugins.module_utils.instance import InstanceFiles
from ansible_collections.vmw.worktree.plugins.module_utils.state import State

from vmw.errors import ExitCode, VmwError
from vmw.runner.events import Grouping
from vmw.runner.playbook import PlaybookRunner, Run
from vmw.services import records, virsh
from vmw.services.units import units_of

if TYPE_CHECKING:
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

    def spawn(self, extra_vars: ExtraVars) -> Outcome:
        """Make or start the VM of a worktree."""
        return self._run(Run("spawn", extra_vars, self.command))

    def is_on(self, name: str) -> bool:
        """Tell whether a VM is on.

        Raises:
            VmwError: There is no such VM, or libvirt does not answer.
        """
        instance, _ = records.find(self.settings.state_dir, name)
        return virsh.Virsh(instance.libvirt_uri).states().get(name) in virsh.ON

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

    def destroy(self, name: str) -> Outcome:
        """Remove a VM, also a half-made or half-removed one. The worktree is never touched."""
        return self._run(Run("destroy", {"vmw_name": name}, self.command))

    def build_image(self) -> Outcome:
        """Build a new generation of the golden image."""
        return self._run(Run("image", {}, self.command))

    def prune_images(self) -> Outcome:
        """Remove the generations that no VM uses and that are not the current one."""
        return self._run(Run("prune", {}, self.command))

    def _run(self, run: Run) -> Outcome:
        return PlaybookRunner(self.layout, self.observer).run(run)


def left_of(settings: Settings, name: str) -> bool:
    """Tell whether anything of a VM is there: its directory, its domain, or the units of its shares.

    Raises:
        VmwError: All there is of this name is a domain of somebody else's, or libvirt does not answer.
    """
    if any(recorded.name == name for recorded in records.all_recorded(settings.state_dir)) or units_of(name, "socket"):
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


def refuse_without_terminal(name: str) -> VmwError:
    """Return the error for a destroy that nobody can confirm."""
    message = f"destroying {name} needs a confirmation, and there is no terminal to ask on"
    return VmwError(message, f"run `vmw destroy {name} --yes`", ExitCode.USAGE)
