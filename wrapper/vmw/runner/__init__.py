"""Run playbooks through ansible-runner and turn its events into something to show."""
