"""The last collective of a rank is told from torch's own record, here over gloo."""

import socket
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from distcifar.cluster.collectives import flight_record, last_collective


def _rank(rank: int, port: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    before = last_collective(flight_record())
    dist.all_reduce(torch.ones(2))
    dist.broadcast(torch.ones(2), 0)
    (Path(folder) / f"{rank}").write_text(f"{before}|{last_collective(flight_record())}")
    dist.barrier()
    dist.destroy_process_group()


def test_the_newest_collective_is_named_with_its_number(tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    mp.spawn(_rank, (port, str(tmp_path)), nprocs=2)
    for rank in "01":
        assert (tmp_path / rank).read_text() == "|gloo:broadcast number 2"


def test_without_a_process_group_there_is_none():
    assert flight_record() == b""
    assert last_collective(b"") == ""
