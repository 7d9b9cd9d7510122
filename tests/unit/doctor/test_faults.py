"""Each injected fault is found, told with value and remedy, and told once; what can be mended is."""

import contextlib
import grp
import json
import os
import socket
import time
from pathlib import Path
from threading import Thread

import pytest

from distcifar.doctor import examine, ray_here, storage, uploads
from distcifar.doctor.fixes import fix
from tests.unit.doctor import cluster_faults, machine_faults
from tests.unit.doctor.cluster_faults import listening, tracked
from tests.unit.doctor.faults import FAULTS, SECRET, Bench, Fault, bench, told, written

PAGE = Path(__file__).parents[3] / "docs" / "doctor.md"
assert machine_faults
assert cluster_faults


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name.replace(" ", "-"))
def test_a_fault_is_found_and_told(fault: Fault, tmp_path: Path):
    with bench(tmp_path) as place:
        problems = [finding for finding in fault.inject(place) if finding.level != "ok"]
    assert SECRET[1:] not in json.dumps([finding.__dict__ for finding in problems]), "a secret is told"
    found = [finding for finding in problems if finding.check == fault.check]
    assert len(found) == 1, problems
    assert (found[0].level, found[0].fix) == (fault.level, fault.fix)
    assert fault.what in found[0].what
    assert fault.remedy in found[0].remedy
    assert found[0].why
    others = {finding.check for finding in problems} - {fault.check}
    assert not others or (fault.name, others) in EXPECTED, others


# What else is true of some faults.
EXPECTED = [
    ("a full disk", {"runs space"}),
    ("a read-only disk", {"runs space"}),
]


def test_the_page_has_each_fault_as_it_was_tried():
    lines = [f"| {one.name} | {one.how} | {one.check} | {one.level} | {one.fix} |" for one in FAULTS]
    table = PAGE.read_text().partition("| fault |")[2].splitlines()[2:]
    assert table == lines, "docs/doctor.md should end with:\n" + "\n".join(lines)


FIXABLE = [fault for fault in FAULTS if fault.fix and fault.fix != "leaks"]


@pytest.mark.parametrize("fault", FIXABLE, ids=lambda fault: fault.name.replace(" ", "-"))
def test_a_fix_is_told_and_mends(fault: Fault, tmp_path: Path):
    said: list[str] = []
    with bench(tmp_path) as place:
        fix(fault.inject(place), place.place(), "", said.append)
        assert len(said) == 1
        assert not problems_after(fault, place)


def problems_after(fault: Fault, at: Bench) -> list[str]:
    """What is still wrong with what `fault` has broken."""
    facts = {
        "leftovers": lambda: {"storage": {"runs": storage.folder_facts(at.runs)}},
        "sessions": lambda: {"sessions": ray_here.session_facts(at.ray_temp, time.time())},
        "dead-head": lambda: {"head": ray_here.head_facts({}, at.ray_temp)},
    }.get(fault.fix, lambda: {"auth": ray_here.auth_facts({}, at.home)})()
    found = told(**facts) + tracked(at.place(WANDB_MODE="offline"))
    return [finding.what for finding in found if finding.level != "ok" and "space" not in finding.check]


def test_what_is_young_or_alive_is_not_removed(tmp_path: Path):
    with bench(tmp_path) as place:
        findings = cluster_faults.dead_sessions(place) + machine_faults.leftovers(place)
        fix(findings, place.place(), "", print)
        # A new one, and one whose logs are; the third was named by a process that has ended since.
        assert sorted(path.name[-2:] for path in place.ray_temp.iterdir()) == ["_0", "_2"]
        assert (place.runs / ".aside-0-new").exists()
        assert not (place.runs / ".aside-1-old").exists()


def test_a_head_with_a_token_is_no_fault(tmp_path: Path):
    with bench(tmp_path) as place:
        head = place.listening("gcs_server", RAY_AUTH_MODE="token")
        guarded = place.http(401)
        assert [finding.level for finding in listening(head, guarded)] == ["ok"]


def test_a_key_file_behind_a_private_folder_is_no_fault(tmp_path: Path):
    with bench(tmp_path) as place:
        written(place.home / ".ray" / "auth_token", SECRET, 0o644)
        place.home.chmod(0o700)
        assert [finding.level for finding in told(auth=ray_here.auth_facts({}, place.home))] == ["ok"]


def test_a_file_for_the_owners_own_group_is_no_fault_and_each_class_counts_alone(tmp_path: Path):
    """Ubuntu's homes have mode 750 and a group of the user's own: the others' bit of a file opens it to nobody."""
    with bench(tmp_path) as place:
        token = written(place.home / "key", SECRET, 0o644)
        place.home.chmod(0o750)
        assert not ray_here.exposed(token)
        token.chmod(0o640)
        place.home.chmod(0o755)
        assert not ray_here.exposed(token), "root's group has root alone"
        os.chown(token, 0, grp.getgrnam("adm").gr_gid)
        place.patch.setattr(ray_here, "_is_alone", lambda user, group: False)
        assert ray_here.exposed(token)
    assert not ray_here._is_alone(0, 999_999)


@pytest.mark.parametrize("body", [b"<html>a page</html>", b""])
def test_a_page_of_another_program_is_not_called_an_open_dashboard(tmp_path: Path, body: bytes):
    with bench(tmp_path) as place:
        found = listening(place.http(200, body))
    assert [(finding.level, finding.what.partition(":")[0]) for finding in found] == [
        ("warning", "Not known who listens, on a port of Ray's")
    ]


def test_what_answers_no_http_hides_nothing_and_no_proxy_is_asked(tmp_path: Path):
    with bench(tmp_path) as place, socket.create_server(("0.0.0.0", 0)) as strange:
        place.patch.setenv("http_proxy", f"http://127.0.0.1:{place.http(403)}")
        Thread(target=lambda: strange.accept()[0].sendall(b"\x00\x00\x12\x04\r\n\r\n" * 4), daemon=True).start()
        found = listening(strange.getsockname()[1], place.http(200))
    assert sorted(finding.level for finding in found) == ["error", "warning"]


def test_each_machine_is_told_of_its_own_faults(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """The same fault on two nodes and here is told three times; of two nodes on one machine once."""
    ill = {"python": {"version": "3.10.4", "executable": "python"}}
    machines = {key: ill | {"host": host} for key, host in (("n1", "a"), ("n2", "b"), ("n3", "b"), ("n4", "here"))}
    nodes = {key: {"host": key, "address": "10.0.0.1", "alive": True, "died": ""} for key in machines}
    seen = {"machines": machines, "nodes": nodes}
    monkeypatch.setattr(examine, "gather", lambda place: ill | {"host": "here", "auth": {"problem": "x"}})
    monkeypatch.setattr(examine, "connected", lambda *_: contextlib.nullcontext())
    monkeypatch.setattr(examine, "look_at_cluster", lambda place: seen)
    with bench(tmp_path) as place:
        found = examine.examine(place.place(), "x:1", lambda text: None).findings
    assert [finding.where for finding in found if finding.check == "python"] == ["", "a (10.0.0.1)", "b (10.0.0.1)"]


def test_a_login_in_an_address_or_a_broken_settings_file_is_not_told(tmp_path: Path):
    with bench(tmp_path) as place:
        found = tracked(place.place(WANDB_BASE_URL=f"https://user:{SECRET}@127.0.0.1:1", WANDB_API_KEY=SECRET))
        written(place.home / ".config" / "wandb" / "settings", f"api_key = {SECRET}\n")
        found += tracked(place.place(WANDB_MODE="offline"))
    told_of = json.dumps([vars(finding) for finding in found])
    assert SECRET[:8] not in told_of
    assert "could not be looked at" not in told_of


def test_offline_is_no_fault(tmp_path: Path):
    with bench(tmp_path) as place:
        assert {finding.level for finding in tracked(place.place())} == {"ok"}
        assert {finding.level for finding in tracked(place.place(WANDB_API_KEY=SECRET, WANDB_MODE="offline"))} == {"ok"}


def test_any_answer_of_the_server_will_do(tmp_path: Path):
    with bench(tmp_path) as place:
        url = f"http://127.0.0.1:{place.http(404)}"
        found = tracked(place.place(WANDB_API_KEY=SECRET, WANDB_BASE_URL=url))
        assert [finding.what for finding in found][-1] == f"{url} answers"


def test_an_upload_is_what_ray_sends(tmp_path: Path):
    """Against Ray's own walk, over ignore files at two depths and a default exclusion."""
    from ray._private.ray_constants import get_runtime_env_default_excludes
    from ray._private.runtime_env.packaging import _dir_travel, _get_excludes

    for name in ("a.py", "b/c.py", "b/d.log", "b/e/f.txt", ".git/g", "h/i", "j.log", "b/k"):
        written(tmp_path / name, "x")
    written(tmp_path / ".gitignore", "*.log\n/h/\n")
    written(tmp_path / "b" / ".rayignore", "e\n")
    sent: list[Path] = []
    excludes = [_get_excludes(tmp_path, get_runtime_env_default_excludes())]
    _dir_travel(tmp_path, excludes, sent.append, include_gitignore=True)
    files = sorted(str(path.relative_to(tmp_path)) for path in sent if path.is_file())
    assert files == [".gitignore", "a.py", "b/.rayignore", "b/c.py", "b/k"]
    assert uploads.upload_facts(tmp_path)["files"] == len(files)
    from distcifar.cluster.upload import uploaded_files

    assert sorted(str(path.relative_to(tmp_path)) for path in uploaded_files(tmp_path)) == files
