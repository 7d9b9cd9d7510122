"""gloo and NCCL are told the interface that has the node's address, and what a user has chosen stays."""

import psutil
import pytest

from distcifar.cluster import interfaces
from distcifar.cluster.interfaces import interface_of, use_node_interface


def test_an_interface_is_known_by_its_address():
    assert interface_of("127.0.0.1") in psutil.net_if_addrs()
    assert interface_of("203.0.113.9") == ""


@pytest.mark.parametrize("chosen", [None, "eth7"])
def test_the_nodes_interface_is_used_unless_another_was_chosen(monkeypatch: pytest.MonkeyPatch, chosen: str | None):
    monkeypatch.setattr(interfaces.ray.util, "get_node_ip_address", lambda: "127.0.0.1")
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        monkeypatch.delenv(name, raising=False)
        if chosen:
            monkeypatch.setenv(name, chosen)
    use_node_interface()
    own = interface_of("127.0.0.1")
    assert interfaces.os.environ["GLOO_SOCKET_IFNAME"] == (chosen or own)
    assert interfaces.os.environ["NCCL_SOCKET_IFNAME"] == (chosen or f"={own}")
