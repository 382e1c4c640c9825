# Copyright (c) 2026 The vmw authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""The user's proxy: what of the network VMs reach by name, and the API keys that they use and never see."""
