"""What a secret looks like. Names and lines are told, values never."""

import json
import re
from collections.abc import Iterator
from typing import Any

NAME = re.compile(r"API_?KEY|SECRET|TOKEN|PASSWORD|PASSWD|PRIVATE_?KEY|ACCESS_?KEY|CREDENTIAL", re.IGNORECASE)
# Forms that nothing else has: keys of AWS, GitHub, Hugging Face, Slack, Google, W&B, and private keys as files.
FORM = re.compile(
    r"\bAKIA[0-9A-Z]{16}\b|\bgh[pousr]_[A-Za-z0-9]{36}|\bgithub_pat_\w{22,}|\bhf_[A-Za-z0-9]{30,}"
    r"|\bxox[abp]-[\w-]{20,}|\bAIza[\w-]{35}|\bwandb_v1_\w{30,}|-----BEGIN [A-Z ]*PRIVATE KEY-----"
)
# A name begins where a word does: elsewhere a long word would be looked at from each of its letters.
ASSIGNED = re.compile(r"(?<![\w.-])(?P<name>[\w.-]{1,100})[\"']?\s*[:=]\s*[\"']?(?P<value>[\w+/=.-]{20,})")
LOGIN = re.compile(r"\bpassword\s+[\w-]{32,}")  # of a netrc file
RANDOM = re.compile(r"(?=.*\d)(?=.*[A-Za-z])[\w+=-][\w+/=.-]{15,}")


def is_secret(name: str, value: str) -> bool:
    """Whether a variable looks like one: by its value's form, or by its name where the value could be random."""
    return bool(FORM.search(value)) or bool(NAME.search(name) and RANDOM.fullmatch(value))


def secret_lines(text: str) -> Iterator[int]:
    """The numbers of lines in which a secret seems to be written."""
    for number, line in enumerate(text.splitlines(), 1):
        assigned = (is_secret(found["name"], found["value"]) for found in ASSIGNED.finditer(line))
        if FORM.search(line) or LOGIN.search(line) or any(assigned):
            yield number


def secret_names(document: str) -> list[str]:
    """The keys in a JSON document, however deep, whose values look like secrets. [] for what is no JSON."""
    try:
        return sorted(set(_names(json.loads(document)))) if document else []
    except ValueError:
        return []


def _names(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for name, below in value.items():
            if isinstance(below, str) and is_secret(name, below):
                yield name
            yield from _names(below)
    elif isinstance(value, list):
        for below in value:
            yield from _names(below)
