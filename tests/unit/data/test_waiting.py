"""Waiting is told by the device's clock."""

import time

import pytest
import torch

from distcifar.data.waiting import moment, seconds_between
from tests.unit.data.conftest import CPU


def test_on_a_cpu_it_is_the_hosts_time():
    start = moment(CPU)
    time.sleep(0.02)
    assert 0.02 <= seconds_between(start, moment(CPU)) < 5


@pytest.mark.gpu
def test_a_gpu_that_is_busy_has_not_waited_and_one_without_work_has():
    cuda = torch.device("cuda", 0)
    torch.cuda.synchronize(cuda)
    torch.cuda._sleep(400_000_000)  # a step of some 200 ms
    busy = moment(cuda)
    time.sleep(0.05)  # the host waits for a batch meanwhile
    ready = moment(cuda)
    torch.cuda.synchronize(cuda)
    assert seconds_between(busy, ready) < 0.01
    idle = moment(cuda)
    time.sleep(0.05)
    ready = moment(cuda)
    torch.cuda.synchronize(cuda)
    assert seconds_between(idle, ready) > 0.04
