# Copyright (c) 2026 The vmw authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""One VM, layer by layer, as the roles of the same names: each layer is found or made, or removed, by itself."""
