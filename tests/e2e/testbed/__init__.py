"""A fresh Debian machine in a container, and stand-ins for the servers it talks to."""
