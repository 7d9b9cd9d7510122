"""How long a device stood still for want of a batch, told by its own clock.

The host's clock would not do on a GPU: there, asking for a batch queues work and returns, and while the host waits for
FFCV the device may still be busy with the step before. What counts is the time between the end of the step before and
the moment at which the batch is there; both are places in the stream of the steps, which the device itself times.
"""

import time

import torch

Moment = float | torch.cuda.Event


def moment(device: torch.device) -> Moment:
    """Now; on a GPU, when it will have done all that its current stream was given so far. The host does not wait."""
    if device.type != "cuda":
        return time.monotonic()  # stands still while a laptop sleeps
    event = torch.cuda.Event(enable_timing=True)
    event.record(torch.cuda.current_stream(device))
    return event


def seconds_between(start: Moment, stop: Moment) -> float:
    """Seconds from one moment to a later one of the same device, which a GPU has to have reached."""
    if isinstance(start, float) or isinstance(stop, float):
        return float(stop) - float(start)  # type: ignore[arg-type]
    return start.elapsed_time(stop) / 1000
