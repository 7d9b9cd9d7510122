"""What looks like a secret, and what only seems to."""

import json
import time
from pathlib import Path

import pytest

from distcifar.doctor.secrets import is_secret, secret_lines, secret_names
from distcifar.doctor.uploads import upload_facts
from tests.unit.doctor.faults import SECRET

ROOT = Path(__file__).parents[3]
HIDDEN = [
    f"export WANDB_API_KEY={SECRET}",
    f'api_key: "{SECRET}"',
    f"  password {SECRET}",
    f'{{"aws_secret_access_key": "{SECRET}"}}',
    "id = " + "AKIA" + "ABCDEFGHIJKLMNOP",
    "-----BEGIN OPENSSH " + "PRIVATE KEY-----",
    "x " + "ghp_" + SECRET[:36],
]
HARMLESS = [
    f"    --hash=sha256:{SECRET}{SECRET[:24]}",
    f"git checkout {SECRET}",
    "WANDB_API_KEY=${WANDB_API_KEY}",
    "WANDB_API_KEY=your-key-comes-here-in-its-place",
    "RAY_AUTH_TOKEN_PATH=/home/user1/.ray/auth_token",
    "token = read_token_of_the_account(path2)",
    "password: ********************************",
]


@pytest.mark.parametrize("line", HIDDEN)
def test_a_secret_is_found_at_its_line(line: str):
    assert list(secret_lines(f"first\n{line}\nlast\n")) == [2]


@pytest.mark.parametrize("line", HARMLESS)
def test_what_is_no_secret_is_left_alone(line: str):
    assert list(secret_lines(line)) == []


def test_this_repository_has_none():
    assert upload_facts(ROOT)["secrets"] == []


def test_names_are_found_however_deep_and_values_are_not_told():
    document = {"a": [{"env_vars": {"WANDB_API_KEY": SECRET, "PATH": "/bin"}}], "HF_TOKEN": "x"}
    assert secret_names(json.dumps(document)) == ["WANDB_API_KEY"]
    assert secret_names("no json") == secret_names("") == []


def test_a_long_word_is_looked_at_once():
    """From each of its letters it took minutes."""
    begun = time.process_time()
    assert list(secret_lines("a" * 200_000 + "\n" + "-" * 200_000)) == []
    assert time.process_time() - begun < 1.0


def test_a_form_is_enough_without_a_name():
    assert is_secret("A", "AKIA" + "ABCDEFGHIJKLMNOP")
    assert not is_secret("A", SECRET)
