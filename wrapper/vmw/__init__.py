"""The command line of vmw: run a coding agent in its own virtual machine, one per git worktree."""

__version__ = "0.1.0"
