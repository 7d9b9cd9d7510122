"""Problems of one rank and of all: what a user can mend is raised on all ranks alike, or not as such."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from distcifar.errors import DistcifarError, DivergenceError
from distcifar.world import World

T = TypeVar("T")


def agreed(world: World, action: Callable[[], T]) -> T:
    """The value of `action` on this rank. A DistcifarError on any rank is raised on all. A collective."""
    problem: DistcifarError | None = None
    try:
        value = action()
    except DistcifarError as error:
        problem = error
    problem = world.first(problem)
    if problem is not None:
        raise problem
    return value


@contextmanager
def alone(world: World) -> Iterator[None]:
    """Within, what a user can mend is raised as such only where all ranks raise it.

    A rank that has met it alone (a disk that cannot be read) fails as for a bug: the others wait for it, and Ray
    starts all of them again.
    """
    try:
        yield
    except DivergenceError:
        raise
    except DistcifarError as error:
        if world.size > 1:
            raise RuntimeError(str(error)) from error
        raise
