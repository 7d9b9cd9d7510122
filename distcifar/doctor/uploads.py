"""Facts of what `ray job submit --working-dir` would send to the cluster: its size, and secrets in it."""

from pathlib import Path

from distcifar.cluster.upload import uploaded_files
from distcifar.doctor.findings import Facts
from distcifar.doctor.secrets import secret_lines

MOST_FILES = 20_000
TEXT_BYTES = 1 << 20  # larger files hold data, and no key by mistake
CONFIGS = ("cluster.yaml", "docs/cluster-local.yaml")


def upload_facts(folder: Path) -> Facts:
    """{"folder", "files", "bytes", "whole", "secrets": ["PATH:LINE"]}; `whole` is false beyond MOST_FILES files."""
    count, size, secrets = 0, 0, list[str]()
    for path in uploaded_files(folder):
        if count == MOST_FILES:
            return {"folder": str(folder), "files": count, "bytes": size, "whole": False, "secrets": secrets}
        count, size = count + 1, size + path.stat().st_size
        secrets += secrets_of_file(path, folder)
    return {"folder": str(folder), "files": count, "bytes": size, "whole": True, "secrets": secrets}


def config_secrets(folder: Path) -> Facts:
    """{"secrets": ["PATH:LINE"]} of the files that describe clusters, uploaded or not."""
    paths = [folder / name for name in CONFIGS if (folder / name).is_file()]
    return {"secrets": [found for path in paths for found in secrets_of_file(path, folder)]}


def secrets_of_file(path: Path, folder: Path) -> list[str]:
    """Where in a text file secrets seem to be written; [] for large files and for what is no text."""
    if path.stat().st_size > TEXT_BYTES:
        return []
    content = path.read_bytes()
    if b"\0" in content[:1024]:
        return []
    text = content.decode(errors="replace")
    return [f"{path.relative_to(folder)}:{line}" for line in secret_lines(text)]
