"""Training without the compiler's import gives the same weights, and really does not import it."""

import subprocess
import sys
import textwrap

import pytest

PROGRAM = """
    import sys, torch
    if {lean}:
        from distcifar.training.lean import leave_compiler_out
        leave_compiler_out()
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(5, 4))
    optimizer = torch.optim.{make}
    for _ in range(3):
        optimizer.zero_grad()
        (weight**2).sum().backward()
        optimizer.step()
    state = optimizer.state_dict()
    optimizer.load_state_dict(state)
    assert weight.requires_grad and torch.is_grad_enabled()
    print("torch._dynamo" in sys.modules, weight.detach().double().sum().item())
"""


def outcome(make: str, *, lean: bool) -> tuple[str, str]:
    """Whether the compiler was imported, and the weights' sum, in a fresh process."""
    program = textwrap.dedent(PROGRAM.format(make=make, lean=lean))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    imported, total = done.stdout.split()
    return imported, total


@pytest.mark.slow
@pytest.mark.parametrize(
    "make",
    [
        "SGD([weight], lr=0.1, momentum=0.9, nesterov=True, fused=True)",
        "AdamW([weight], lr=0.1, fused=True)",
    ],
)
def test_the_same_weights_without_the_compiler(make: str):
    (_, usual), (imported, lean) = outcome(make, lean=False), outcome(make, lean=True)
    assert imported == "False"
    assert lean == usual


def test_ddp_is_built_and_run_without_the_compiler(tmp_path):
    program = f"""
        import sys, torch, torch.distributed as dist
        from distcifar.training.lean import building_ddp, leave_compiler_out
        leave_compiler_out()
        dist.init_process_group("gloo", init_method="file://{tmp_path}/rendezvous", rank=0, world_size=1)
        with building_ddp():
            net = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(2, 2))
        net(torch.ones(1, 2)).sum().backward()
        print("torch._dynamo" in sys.modules, net.module.weight.grad.sum().item())
        import torch._dynamo.utils
        print(torch._dynamo.utils.get_optimize_ddp_mode())
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "4.0", "ddp_optimizer"]
