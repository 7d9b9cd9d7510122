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


@pytest.mark.parametrize("make", ["SGD([weight], lr=0.1, momentum=0.9, nesterov=True)", "AdamW([weight], lr=0.1)"])
def test_the_same_weights_without_the_compiler(make: str):
    (_, usual), (imported, lean) = outcome(make, lean=False), outcome(make, lean=True)
    assert imported == "False"
    assert lean == usual
