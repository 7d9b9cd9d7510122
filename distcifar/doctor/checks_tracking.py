"""Checks of W&B and of secrets: the key's form, who can read it, whether the server answers, what would be uploaded."""

from collections.abc import Iterator

from distcifar.doctor.findings import Facts, Finding, error, ok, warning

MIB = 2**20
MOST_UPLOADED = 100 * MIB  # after compression: Ray's dashboard refuses a larger request


def wandb_key(wandb: Facts) -> Iterator[Finding]:
    """The key has the form of one. Without a key runs stay here, which is no fault."""
    if wandb["form"]:
        what = f"The key in {wandb['source']} ({wandb['length']} characters): {wandb['form']}"
        why = "The client refuses it, and runs stay on this machine"
        yield error("W&B key", what, why, "Copy it anew from W&B's page /authorize; wandb login --relogin")
    else:
        yield ok("W&B key", f"in {wandb['source']}" if wandb["source"] else "none: runs stay on this machine")


def netrc_is_private(wandb: Facts) -> Iterator[Finding]:
    """Only its owner reads the file of keys."""
    if wandb["exposed"]:
        why = "Whoever reads it writes to your W&B account"
        remedy = f"chmod 600 {wandb['netrc']} (or doctor.py --fix)"
        yield warning("netrc", f"Others on this machine can read {wandb['netrc']}", why, remedy, "permissions")


def wandb_answers(wandb: Facts) -> Iterator[Finding]:
    """The server answers; without a key, or offline, it is not asked."""
    if wandb["reach"] is None:
        yield ok("W&B server", f"not asked: {'WANDB_MODE=' + wandb['mode'] if wandb['mode'] else 'no key'}")
    elif wandb["reach"]:
        why = "Training goes on, and rows wait here until `report.py sync`"
        remedy = "Correct WANDB_BASE_URL, set HTTPS_PROXY, or WANDB_MODE=offline"
        yield warning("W&B server", f"{wandb['server']} does not answer: {wandb['reach']}", why, remedy)
    else:
        yield ok("W&B server", f"{wandb['server']} answers")


def upload_secrets(upload: Facts) -> Iterator[Finding]:
    """No secret would travel with the working directory."""
    if upload["secrets"]:
        what = f"Secrets seem to be in {_some(upload['secrets'])}"
        why = "`ray job submit --working-dir` puts these files on each node, where other jobs read them"
        yield error("upload", what, why, "Take them out, or name the files in .rayignore; then make new keys")


def upload_size(upload: Facts) -> Iterator[Finding]:
    """The working directory is small enough for Ray."""
    told = f"{upload['bytes'] / MIB:.0f} MiB in {upload['files']} files of {upload['folder']}"
    if not upload["whole"] or upload["bytes"] > MOST_UPLOADED:
        why = "Ray refuses more than 100 MiB, compressed, with error 413"
        yield warning(
            "upload size", told + ", or more" * (not upload["whole"]), why, "Name what is large in .rayignore"
        )
    else:
        yield ok("upload size", told)


def config_secrets(config: Facts) -> Iterator[Finding]:
    """No secret is written in the files that describe clusters."""
    if config["secrets"]:
        why = "`ray up` copies the file to the head, and it is under version control"
        yield error("cluster file", f"Secrets seem to be in {_some(config['secrets'])}", why, "Take them out; new keys")


def _some(places: list[str]) -> str:
    return ", ".join(places[:5]) + (f" and {len(places) - 5} more" if len(places) > 5 else "")
