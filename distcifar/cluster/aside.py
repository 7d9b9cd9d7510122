"""Something that takes long, in a thread beside this one, which takes signals meanwhile."""

import queue
import threading
from collections.abc import Callable
from typing import Any

Answer = queue.Queue[Any]


def answer_of(action: Callable[[], Any]) -> Answer:
    """Where what `action` returns or raises will be. The thread does not outlive the program."""
    answer: Answer = queue.Queue(1)

    def run() -> None:
        try:
            answer.put(action())
        except BaseException as error:
            answer.put(error)

    threading.Thread(target=run, daemon=True).start()
    return answer
