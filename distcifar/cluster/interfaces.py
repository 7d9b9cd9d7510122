"""Which network interface gloo and NCCL use on a node: the one with the address by which the cluster knows the node.

Left alone, gloo looks up the host's own name: where that gives 127.0.0.1 or nothing, ranks of two hosts never meet, and
NCCL takes the first interface that is no loopback, which may be a container's bridge.
"""

import os
import socket
from typing import Any

import psutil
import ray
from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend


class OnNodeInterface(TorchConfig):
    """TorchConfig whose ranks are connected over their nodes' own interfaces. What a user has set stays."""

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        """Ray's own backend, with a step before it."""
        return _Backend


class _Backend(_TorchBackend):
    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        worker_group.execute(use_node_interface)
        super().on_start(worker_group, backend_config)


def use_node_interface() -> None:
    """Tells gloo and NCCL, in this process, the interface of its node's address."""
    name = interface_of(ray.util.get_node_ip_address())
    if name:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
        os.environ.setdefault("NCCL_SOCKET_IFNAME", f"={name}")  # =: this one, not all that begin so


def interface_of(address: str) -> str:
    """The name of the interface that has `address`; "" for none."""
    for name, found in psutil.net_if_addrs().items():
        if any(each.family in (socket.AF_INET, socket.AF_INET6) and each.address == address for each in found):
            return str(name)
    return ""
