"""cluster.yaml and its twin for own machines: valid for Ray, closed to strangers, in step with the set-up, and told."""

import json
import os
import re
import subprocess
import zipfile
from pathlib import Path

import pytest
import yaml
from ray._private.runtime_env.packaging import create_package
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).parents[2]
FILES = ("cluster.yaml", "docs/cluster-local.yaml")
SECRET = r"AKIA|BEGIN [A-Z ]*PRIVATE|[0-9a-f]{40}|(?i:api_key|password|secret|auth_token)\s*[:=]\s*[\"']?\w"
TYPES = yaml.safe_load((ROOT / "cluster.yaml").read_text())["available_node_types"]


def text(name: str) -> str:
    return (ROOT / name).read_text()


def config(name: str) -> dict:
    return yaml.safe_load(text(name))


def starts(name: str, side: str) -> str:
    (command,) = [line for line in config(name)[f"{side}_start_ray_commands"] if "ray start" in line]
    return command


@pytest.mark.parametrize("name", FILES)
def test_ray_takes_the_file_as_it_is(name: str):
    """Without an account: what Ray would ask AWS about the machines stands in the file."""
    prepared = prepare_config(config(name))
    validate_config(prepared)
    assert prepared["head_node_type"] in prepared["available_node_types"]


def test_rays_schema_is_asked():
    with pytest.raises(Exception, match="Additional properties"):
        validate_config({**prepare_config(config(FILES[0])), "max_worker": 1})


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("side", ["head", "worker"])
def test_every_start_command_asks_for_the_token_and_names_the_interface(name: str, side: str):
    command = starts(name, side)
    assert command.index("RAY_AUTH_MODE=token") < command.index("ray start")
    for word in ("RAY_USAGE_STATS_ENABLED=0", "GLOO_SOCKET_IFNAME=$(ip -o ", "NCCL_SOCKET_IFNAME==$GLOO_SOCKET_IFNAME"):
        assert word in command
    assert "ray stop" in config(name)[f"{side}_start_ray_commands"]


@pytest.mark.parametrize("name", FILES)
def test_the_token_comes_as_a_file_that_only_its_owner_reads(name: str):
    found = config(name)
    assert found["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    assert found["setup_commands"][0] == "chmod 700 ~/.ray && chmod 600 ~/.ray/auth_token"
    assert any("RAY_AUTH_MODE=token" in line and ".bashrc" in line for line in found["setup_commands"]), (
        "for `ray exec`"
    )


@pytest.mark.parametrize("name", FILES)
def test_nobody_outside_reaches_the_dashboard_and_nothing_looks_like_a_secret(name: str):
    assert "--dashboard-host=127.0.0.1" in starts(name, "head")
    assert "0.0.0.0" not in text(name)
    assert not re.search(SECRET, text(name))


@pytest.mark.parametrize(
    "planted", ["AKIAIOSFODNN7EXAMPLE", "api_key: abc", "-----BEGIN OPENSSH PRIVATE KEY-----", "a" * 40]
)
def test_a_secret_would_be_seen(planted: str):
    assert re.search(SECRET, planted)


@pytest.mark.parametrize("name", FILES)
def test_each_key_and_command_is_told(name: str):
    """A comment in the line, or above it or the first of its list of commands."""
    lines = text(name).splitlines()
    silent = []
    for number, line in enumerate(lines):
        if re.match(r"\s*(- )?[\w~\"./-]+:( |$)", line) and "#" not in line:
            above = lines[number - 1].strip()
            if not above.startswith("#"):
                silent.append(line)
    assert not silent, silent


def test_the_gap_in_rays_own_security_group_is_closed():
    """Ray's own group lets the world in at port 22, whatever the file adds to it: a group of ours has to be named."""
    for name, kind in TYPES.items():
        machine = kind["node_config"]
        assert machine["SecurityGroupIds"] == ["sg-FILL-IN"], name
        assert machine["MetadataOptions"]["HttpTokens"] == "required"
        assert all(disk["Ebs"]["Encrypted"] for disk in machine["BlockDeviceMappings"])
    assert "security_group" not in config("cluster.yaml")["provider"]


@pytest.mark.slow
def test_rays_own_aws_code_starts_these_machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Up to the first SSH, on moto's EC2: each word is one that AWS knows, and no group but the user's is made."""
    moto, boto3 = pytest.importorskip("moto"), pytest.importorskip("boto3")
    from ray.autoscaler._private.providers import _NODE_PROVIDERS

    (tmp_path / ".ssh").mkdir()
    words = {
        "HOME": str(tmp_path),
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "x",
        "AWS_DEFAULT_REGION": "us-west-2",
    }
    for name, value in words.items():
        monkeypatch.setenv(name, value)
    with moto.mock_aws():
        cloud = boto3.client("ec2")
        network = cloud.describe_vpcs()["Vpcs"][0]["VpcId"]
        group = cloud.create_security_group(GroupName="mine", Description="mine", VpcId=network)["GroupId"]
        image = cloud.describe_images()["Images"][0]["ImageId"]
        filled = re.sub(r"ami-FILL-IN-\w+", image, text("cluster.yaml")).replace("sg-FILL-IN", group)
        asked = yaml.safe_load(filled)
        role = boto3.client("iam").create_instance_profile(InstanceProfileName="mine")["InstanceProfile"]
        asked["available_node_types"]["head"]["node_config"]["IamInstanceProfile"] = {"Arn": role["Arn"]}
        provider = _NODE_PROVIDERS["aws"](asked["provider"])
        told = provider.fillout_available_node_types_resources(prepare_config(asked))
        validate_config(told)
        done = provider.bootstrap_config(told)
        started = provider(done["provider"], done["cluster_name"])
        for name, kind in done["available_node_types"].items():
            assert kind["resources"].items() >= TYPES[name]["resources"].items(), "as AWS has them"
            started.create_node(kind["node_config"], {"ray-user-node-type": name}, 1)
        machines = [each for made in cloud.describe_instances()["Reservations"] for each in made["Instances"]]
        groups = {each["GroupName"] for each in cloud.describe_security_groups()["SecurityGroups"]}
    found = {each["InstanceType"]: each for each in machines}
    assert found.keys() == {kind["node_config"]["InstanceType"] for kind in TYPES.values()}
    for machine in machines:
        assert [each["GroupId"] for each in machine["SecurityGroups"]] == [group]
        assert machine["MetadataOptions"]["HttpTokens"] == "required"
        assert machine.get("InstanceLifecycle") == (None if machine["InstanceType"].startswith("m7i") else "spot")
    assert groups == {"default", "mine"}


def test_what_aws_needs_is_in_the_lock():
    """`ray up` and the head speak with AWS through boto3."""
    assert re.search(r"^boto3==", text("requirements.lock"), re.MULTILINE)
    assert "head_setup_commands" not in config("cluster.yaml")


def test_the_head_stays_and_workers_are_spot_machines_from_none_up():
    assert "InstanceMarketOptions" not in TYPES["head"]["node_config"]
    assert TYPES["head"]["resources"] == {"CPU": 0, "GPU": 0}
    for name in TYPES.keys() - {"head"}:
        assert TYPES[name]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
        assert TYPES[name]["node_config"]["InstanceInitiatedShutdownBehavior"] == "terminate"
        assert TYPES[name]["min_workers"] == 0
        assert TYPES[name]["resources"]["GPU"] > 0


@pytest.mark.parametrize(
    ("minutes_with_ray", "ended"), [("0", "15"), ("[1-9]|10", "25"), ("[1-7]", "22"), ("*", "never")]
)
def test_a_worker_without_ray_ends_itself_and_no_other_does(tmp_path: Path, minutes_with_ray: str, ended: str):
    """The command as it stands in the file, with minutes that take no time; the fortieth ends it."""
    (command,) = [line for line in config("cluster.yaml")["worker_start_ray_commands"] if "shutdown" in line]
    programs = {
        "sleep": "echo >>minutes; [ $(wc -l <minutes) -lt 40 ] || { echo never >ended; kill $PPID; }",
        "pgrep": f"case $(wc -l <minutes) in {minutes_with_ray}) ;; *) exit 1 ;; esac",
        "sudo": "[ \"$*\" = 'shutdown -h now' ] && wc -l <minutes >ended",
    }
    for name, lines in programs.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{lines}\n")
        (tmp_path / name).chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    subprocess.run(["bash", "-c", f"{command} wait"], cwd=tmp_path, env={"PATH": path}, check=False, timeout=60)
    assert (tmp_path / "ended").read_text().strip() == ended


def test_what_the_file_says_of_machines_is_what_the_price_table_says():
    known = {kind["name"]: kind for kind in json.loads(text("distcifar/cluster/estimates/prices.json"))["instances"]}
    for name, kind in TYPES.items():
        machine = known[kind["node_config"]["InstanceType"]]
        if name != "head":  # which offers none of what it has
            assert kind["resources"] == {"CPU": machine["cores"], "GPU": machine["gpus"]}


@pytest.mark.parametrize("name", FILES)
def test_nodes_are_set_up_as_the_readme_does_it(name: str):
    """`make setup` is .ci/setup, and a node has all files that .ci/setup reads, and no others."""
    recipe = subprocess.run(
        ["make", "--no-print-directory", "-n", "-B", "setup"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert recipe.strip() == "bash .ci/setup"
    assert "bash ~/distcifar/.ci/setup" in config(name)["setup_commands"]
    mounts = {far.removeprefix("~/distcifar/"): near for far, near in config(name)["file_mounts"].items()}
    del mounts["~/.ray/auth_token"]
    wanted = {".ci", "distcifar", "jobs", "pyproject.toml", "README.md", "requirements.lock"}
    assert mounts == {path: path for path in wanted}
    assert all((ROOT / path).exists() for path in wanted)


def test_the_twin_says_the_heads_address_twice_and_alike():
    found = config("docs/cluster-local.yaml")
    assert f"HEAD={found['provider']['head_ip']} " in starts("docs/cluster-local.yaml", "head")


def test_both_files_say_the_same_where_they_can():
    aws, own = map(config, FILES)
    for key in ("file_mounts", "rsync_exclude"):
        assert aws[key] == own[key]
    assert starts("cluster.yaml", "worker") == starts("docs/cluster-local.yaml", "worker")
    assert aws["setup_commands"][:3] == own["setup_commands"][:3]


def test_a_job_uploads_the_code_and_nothing_else(tmp_path: Path):
    """By Ray's own archive of a folder that has everything in it that must not go."""
    folder, package = tmp_path / "project", tmp_path / "package.zip"
    wanted = {"distcifar/world.py", "jobs/train.py", "pyproject.toml", "README.md"}
    others = {
        "data/big.beton", "runs/a/x.csv", "docs/quick.png", "tests/test_a.py", ".venv/x", ".gpu/x", ".env", ".netrc",
        "jobs/key.pem", "jobs/id_ed25519", "cluster.yaml", "Dockerfile", "jobs/__pycache__/train.pyc",
    }  # fmt: skip
    for name in wanted | others:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")
    for name in (".gitignore", ".rayignore"):
        (folder / name).write_text(text(name))
    create_package(str(folder), package, include_gitignore=True, excludes=[".git", ".venv", "venv", "__pycache__"])
    sent = {name for name in zipfile.ZipFile(package).namelist() if not name.endswith("/")}
    assert sent - {".gitignore", ".rayignore"} == wanted
