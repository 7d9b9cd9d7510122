"""Sentences that several recipes share."""

HELD_OUT = (
    "The best epoch is chosen on 5,000 held-out training images; the author chose on the test images and trained"
    " on all others, so expect a slightly lower and more honest number."
)
NOT_CHOSEN = (
    "The author took the last epoch of training on all 50,000; here 5,000 are held out to choose the best epoch."
)


def lines(*sentences: str) -> str:
    """A description of one line per sentence."""
    return "\n".join(sentences)
