"""The program: no false alarm on a healthy machine, one JSON document, exit codes, a screen of 80 columns."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from distcifar.doctor import gather
from distcifar.doctor.examine import MACHINE, examine
from distcifar.doctor.findings import Finding, exit_code, findings_of
from distcifar.doctor.screen import show
from tests.unit.doctor.faults import SECRET, bench, free_port, written

ROOT = Path(__file__).parents[3]
DOCTOR = str(ROOT / "jobs" / "doctor.py")
# Of its own: the network (no other Ray listens), /tmp (no dead heads, room), /dev/shm, the limit of open files.
HEALTHY = """
ip link set lo up && mount -t tmpfs -o size=4g tmpfs /tmp && mount -t tmpfs -o size=60% tmpfs /dev/shm &&
mkdir -m 700 /tmp/home && cd /tmp/home && ulimit -n 8192 && echo prepared >&2 && HOME=/tmp/home exec "$@"
"""


def test_no_false_alarm_on_a_healthy_machine():
    words = ["unshare", "--net", "--mount", "sh", "-c", HEALTHY, "-", sys.executable, DOCTOR, "--json"]
    keep = {name: value for name, value in os.environ.items() if name in ("PATH", "LANG", "VIRTUAL_ENV")}
    done = subprocess.run(words, capture_output=True, text=True, env=keep, timeout=240)
    if "prepared" not in done.stderr:
        pytest.skip(f"no right to namespaces of its own: {done.stderr.strip()}")
    document = json.loads(done.stdout)
    assert [found for found in document["findings"] if found["level"] != "ok"] == []
    assert (done.returncode, document["exit_code"], document["fixed"]) == (0, 0, [])
    checked = {found["check"] for found in document["findings"]}
    assert {"python", "torch", "FFCV", "threads", "runs latency", "ports", "W&B server", "upload size"} <= checked


def test_an_ill_machine_a_dead_cluster_and_what_is_mended(tmp_path: Path):
    with bench(tmp_path) as place:
        # --fix must find nothing of this machine: its home and Ray's folder are the test's own.
        note = written(place.ray_temp / "ray_current_cluster", f"127.0.0.1:{free_port()}")
        written(place.upload / "a.env", f"WANDB_API_KEY={SECRET}\n")
        written(place.upload / "requirements.lock", "numpy==1.26.0\n")
        netrc = written(place.home / ".netrc", f"machine x\nlogin user\npassword {SECRET}\n", 0o644)
        environment = {
            **os.environ,
            "HOME": str(place.home),
            "RAY_ADDRESS": note.read_text(),
            "RAY_TMPDIR": str(tmp_path),
        }
        environment.pop("RAY_AUTH_TOKEN_PATH", None)
        words = ["--json", "--fix", "--runs", str(place.runs), "--working-dir", str(place.upload), "--data-root"]
        done = subprocess.run(
            [sys.executable, DOCTOR, *words, str(tmp_path)],
            capture_output=True,
            text=True,
            env=environment,
            timeout=240,
        )
        document = json.loads(done.stdout)
        told = {found["check"]: found for found in document["findings"] if found["level"] != "ok"}
        assert (done.returncode, document["exit_code"]) == (1, 1)
        assert {"upload", "locked versions", "head", "cluster"} <= set(told)
        assert "No Ray head answers" in told["cluster"]["what"]
        assert document["fixed"] == [f"Removing {note}", f"chmod 600 {netrc}"]
        assert "netrc" not in told, "mended, and looked at again"
        assert netrc.stat().st_mode & 0o777 == 0o600
        assert SECRET[1:] not in done.stdout + done.stderr


def test_what_cannot_be_looked_at_is_told(tmp_path: Path):
    with bench(tmp_path) as place:
        place.patch.setattr(gather, "memory_facts", lambda: 1 / 0)
        for name in ("numba_facts", "port_facts", "upload_facts"):
            place.patch.setattr(gather, name, lambda *_: {"problem": "left out"})
        report = examine(place.place(), "", lambda _: None)
    told = [found.what for found in report.findings if found.check == "memory"]
    assert told == ["could not be looked at: ZeroDivisionError: division by zero"]
    assert report.facts["machine"]["shm"]["total_bytes"] > 0


def test_a_check_reads_only_what_was_gathered():
    assert findings_of({}, MACHINE) == []


@pytest.mark.parametrize(
    ("levels", "code"), [((), 0), (("ok", "warning"), 0), (("warning", "error"), 1), (("error", "ok"), 1)]
)
def test_only_an_error_fails(levels: tuple[str, ...], code: int):
    assert exit_code(Finding("a", level, "") for level in levels) == code


def test_the_screen_is_worst_first_and_fits():
    long = "a rather long sentence " * 12
    findings = [
        Finding("fine", "ok", "[b]all[/b] is well"),
        Finding("careful", "warning", long, long, long, "sessions"),
        Finding("broken", "error", "it is", "so", "mend it", where="node-2"),
    ]
    text = io.StringIO()
    show(findings, Console(file=text, width=80))
    lines = text.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    order = [
        next(i for i, line in enumerate(lines) if word in line) for word in ("broken on node-2", "careful", "[b]all")
    ]
    assert order == sorted(order)
    assert lines[-1].strip() == "1 error(s), 1 warning(s). --fix can mend 1 of them."
