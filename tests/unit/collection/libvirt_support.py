"""What stands for libvirt's binding, which a virtual environment cannot have."""

from __future__ import annotations


class LibvirtError(Exception):
    """Stand for the binding's own."""

    def __init__(self, code: int) -> None:
        super().__init__(f"error {code}")
        self.code = code

    def get_error_code(self) -> int:
        return self.code
