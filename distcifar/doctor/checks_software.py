"""Checks of what is installed: Python, the pins, torch and its GPUs, FFCV's libraries, numba's threads."""

import re
from collections.abc import Iterator

from distcifar.doctor.findings import Facts, Finding, error, ok, warning

FIRST_PYTHON, PYTHON_AFTER = (3, 11), (3, 15)
NEEDED = ("torch", "ray", "ffcv", "wandb", "numpy", "numba")
# Which Debian package brings a library, by the beginning of its name.
APT = {"libopencv": "libopencv-imgproc-dev", "libturbojpeg": "libturbojpeg0-dev", "libGL": "libgl1"}


def python_version(python: Facts) -> Iterator[Finding]:
    """There are wheels of every pin for this Python."""
    if FIRST_PYTHON <= _numbers(python["version"])[:2] < PYTHON_AFTER:
        yield ok("python", f"Python {python['version']}")
    else:
        why = "Not all of requirements.lock has wheels for it"
        yield error("python", f"Python {python['version']}", why, "make setup PYTHON=python3.12 (3.11 to 3.14 work)")


def packages_installed(packages: Facts) -> Iterator[Finding]:
    """What the project imports is there."""
    if missing := [name for name in NEEDED if packages[name] is None]:
        why = "Programs end with ModuleNotFoundError"
        yield error("packages", f"Not installed: {', '.join(missing)}", why, "make setup, and run .venv/bin/python")
    else:
        yield ok("packages", " ".join(f"{name} {packages[name]}" for name in NEEDED))


def packages_locked(packages: Facts, locked: Facts) -> Iterator[Finding]:
    """Versions are those that the tests ran with."""
    other = [
        f"{name} {version}, locked {' or '.join(locked[name])}"
        for name, version in packages.items()
        if version and name in locked and version.partition("+")[0] not in locked[name]
    ]
    if other:
        why = "Other versions are untested here; Ray refuses nodes of another version"
        yield warning("locked versions", "; ".join(other), why, "make setup installs requirements.lock")
    else:
        yield ok("locked versions", "as in requirements.lock")


def torch_imports(torch: Facts) -> Iterator[Finding]:
    """torch can be imported at all."""
    if "failure" in torch:
        yield error(
            "torch", torch["failure"], "Nothing can be trained", "make setup; the message names what is missing"
        )
    else:
        yield ok("torch", f"{torch['version']}, " + (f"CUDA {torch['cuda']}" if torch["cuda"] else "CPU only"))


def driver_answers(gpus: Facts) -> Iterator[Finding]:
    """Where there are GPUs, their driver answers, for each of them."""
    if "failure" not in gpus:
        names = ", ".join(card["name"] for card in _cards(gpus)) or "no card"
        hidden = f" ({gpus['hidden']} more hidden by CUDA_VISIBLE_DEVICES)" if gpus["hidden"] else ""
        yield ok("GPUs", f"driver {gpus['driver']}: {names}{hidden}")
    elif gpus["devices"]:
        why = "torch will not find the GPU, and train on the CPU"
        remedy = (
            "Reboot after an update of the driver (WSL: wsl --shutdown); in a container mount the driver (--gpus all)"
        )
        yield error("GPUs", f"There are NVIDIA devices, but their driver says: {gpus['failure']}", why, remedy)
    else:
        yield ok("GPUs", "none: training on the CPU")
    for card in gpus.get("cards", ()):
        if "failure" in card:
            why = "A worker on it fails, and CUDA may not start on the other cards either"
            remedy = "nvidia-smi; reboot if it is lost; or leave it out with CUDA_VISIBLE_DEVICES"
            yield error(f"GPU {card['index']}", f"The driver says of it: {card['failure']}", why, remedy)


def _cards(gpus: Facts) -> list[Facts]:
    """Those that could be looked at."""
    return [card for card in gpus.get("cards", ()) if "failure" not in card]


def driver_serves_the_wheel(torch: Facts, gpus: Facts) -> Iterator[Finding]:
    """The driver is new enough for the CUDA that torch was built with: within a major version any is."""
    if "failure" in torch or not _cards(gpus):
        return
    served = ".".join(map(str, gpus["cuda"]))
    if not torch["cuda"]:
        why = "The GPUs stay idle"
        yield error("CUDA", "torch was built without CUDA, and there are GPUs", why, "Install torch's CUDA wheel")
    elif gpus["cuda"][0] < _numbers(torch["cuda"])[0]:
        what = f"Driver {gpus['driver']} serves CUDA {served}, torch was built with {torch['cuda']}"
        remedy = (
            f"Update the driver to one of CUDA {_numbers(torch['cuda'])[0]}, or install a torch wheel of CUDA {served}"
        )
        yield error("CUDA", what, "torch will say that the driver is too old, and use the CPU", remedy)
    else:
        yield ok("CUDA", f"the driver serves {served}, torch has {torch['cuda']}")


def wheel_serves_the_cards(torch: Facts, gpus: Facts) -> Iterator[Finding]:
    """torch was compiled for each card's compute capability."""
    if "failure" in torch or not torch["cuda"]:
        return
    for card in _cards(gpus):
        if not _covers(torch["archs"], card["capability"]):
            name = f"GPU {card['index']} {card['name']} (sm_{card['capability'][0]}{card['capability'][1]})"
            why = "Its first kernel fails: no kernel image is available"
            remedy = "Install a torch wheel whose torch.cuda.get_arch_list() has it"
            yield error("architecture", f"torch has {' '.join(torch['archs'])}, not {name}", why, remedy)


def _covers(archs: list[str], capability: list[int]) -> bool:
    """Code for sm_XY runs on X.Y and later minors of X; compute_XY is compiled at the start for anything later."""
    for kind, number in re.findall(r"(sm|compute)_(\d+)", " ".join(archs)):
        built = [int(number[:-1]), int(number[-1])]
        if built <= capability and (kind == "compute" or built[0] == capability[0]):
            return True
    return False


def cards_are_free(gpus: Facts) -> Iterator[Finding]:
    """Each card may be used by several processes, whole, and is not full already."""
    for card in _cards(gpus):
        name = f"GPU {card['index']} {card['name']}"
        if card["mode"] == "prohibited":
            yield error(name, "It takes no process at all", "CUDA cannot start on it", "sudo nvidia-smi -c DEFAULT")
        elif card["mode"] == "exclusive":
            why = "A second worker, or a GPU test beside a training, ends with 'device busy'"
            yield warning(name, "It takes one process only", why, "sudo nvidia-smi -c DEFAULT")
        if card["mig"]:
            why = "A worker sees one part of it, and NCCL does not join parts of one card"
            yield warning(name, "It is divided (MIG)", why, "One worker for each part, or sudo nvidia-smi -mig 0")
        if "used_bytes" in card and card["used_bytes"] > 0.1 * card["memory_bytes"] + 2**29:
            used, of = card["used_bytes"] / 2**30, card["memory_bytes"] / 2**30
            why = "Others compute there too: slower, and out of memory earlier"
            yield warning(name, f"{used:.1f} of {of:.0f} GiB are taken", why, "nvidia-smi names the processes")


def ffcv_libraries(ffcv: Facts) -> Iterator[Finding]:
    """What FFCV's compiled part needs is found by the linker."""
    if "failure" in ffcv:
        yield error("FFCV", ffcv["failure"], "Data can be neither written nor streamed", "make setup compiles it")
    elif ffcv["missing"]:
        needed = sorted({apt for name in ffcv["missing"] for begin, apt in APT.items() if name.startswith(begin)})
        remedy = f"sudo apt-get install {' '.join(needed)}; then " if needed else ""
        remedy += ".venv/bin/uv cache clean ffcv; rm -r .venv; make setup"
        what = f"Not found: {', '.join(ffcv['missing'])}"
        yield error("FFCV", what, "It was compiled against another version, and `import ffcv` fails", remedy)
    else:
        yield ok("FFCV", "its shared libraries are found")


def numba_layer(numba: Facts) -> Iterator[Finding]:
    """numba has threads that FFCV's threads may use together."""
    layers, asked = numba["layers"], numba["asked"]
    if asked in ("tbb", "omp", "workqueue") and asked not in layers:
        why = "The first image that is decoded ends the program"
        yield error("numba", f"NUMBA_THREADING_LAYER={asked} cannot be loaded", why, "unset NUMBA_THREADING_LAYER")
    elif asked == "workqueue" or not {"tbb", "omp"} & set(layers):
        why = "workqueue ends the program when two threads use it at once, as FFCV's do"
        remedy = "unset NUMBA_THREADING_LAYER; sudo apt-get install libgomp1"
        yield warning("numba", "Only the threading layer workqueue is used", why, remedy)
    else:
        yield ok("numba", f"threads through {asked or ' or '.join(layers[:-1])}")


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version.partition("+")[0])[:3])
