"""What the documentation of a module says that it takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from ansible_collections.vmw.worktree.plugins.doc_fragments.instance import ModuleDocFragment

MODULES = Path(__file__).parents[3] / "plugins/modules"


def documented_options(module: str) -> dict[str, Any]:
    """Return a module's documented options, those of the fragments it extends among them."""
    text = (MODULES / f"{module}.py").read_text()
    documentation = yaml.safe_load(text.split('DOCUMENTATION = r"""')[1].split('"""')[0])
    options = dict(documentation["options"])
    for name in documentation.get("extends_documentation_fragment", []):
        part = name.removeprefix("vmw.worktree.instance").lstrip(".") or "documentation"
        options.update(yaml.safe_load(getattr(ModuleDocFragment, part.upper()))["options"])
    return options
