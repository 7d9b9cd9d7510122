"""Facts of this machine's access to W&B: the server, the key's form, whether the server answers. Never the key."""

import configparser
import http.client
import netrc
import re
import urllib.error
import urllib.request
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

REACH_SECONDS = 4.0


def account_facts(environment: Mapping[str, str], home: Path) -> dict[str, Any]:
    """JSON-ready: mode, server, where the key is from ("" for none), what is wrong with its form, and "reach".

    reach: "" where the server answers, a reason where it does not, None where it was not asked: offline, or no key.
    """
    server = re.sub(r"//[^/@]*@", "//", server_of(environment, home))  # without a login, which is told nowhere
    login = Path(environment.get("NETRC") or home / ".netrc")
    source, key = find_key(environment, login, server)
    mode = environment.get("WANDB_MODE", "")
    asked = bool(source) and mode not in ("offline", "disabled", "dryrun")
    return {
        "mode": mode,
        "server": server,
        "netrc": str(login),
        "source": source,
        "length": len(key),
        "form": form_problem(key) if source else "",
        "reach": unreachable(server) if asked else None,
    }


def server_of(environment: Mapping[str, str], home: Path) -> str:
    """The server that the client takes: WANDB_BASE_URL, its settings file, its default."""
    from wandb.sdk.lib.urls import DEFAULT_BASE_URL

    folder = Path(environment.get("WANDB_CONFIG_DIR") or home / ".config" / "wandb")
    settings = configparser.ConfigParser(interpolation=None)
    with suppress(configparser.Error):  # its words hold a line of the file, which may be a key
        settings.read(folder / "settings")
    written = settings.get("default", "base_url", fallback="")
    return (environment.get("WANDB_BASE_URL") or written or DEFAULT_BASE_URL).rstrip("/")


def find_key(environment: Mapping[str, str], login: Path, server: str) -> tuple[str, str]:
    """Where the key is from and the key; two empty strings without one."""
    from wandb.sdk.lib.urls import forge_upstream_url

    if environment.get("WANDB_API_KEY"):
        return "WANDB_API_KEY", environment["WANDB_API_KEY"]
    if not login.is_file():
        return "", ""
    try:
        written = netrc.netrc(str(login))
    except netrc.NetrcParseError:
        return str(login), ""
    for url in (server, forge_upstream_url(server)):
        if found := written.authenticators(urlsplit(url).netloc):
            return str(login), found[2] or ""
    return "", ""


def form_problem(key: str) -> str:
    """What the client holds against the key's form; "" for nothing."""
    from wandb.sdk.lib.wbauth import check_api_key

    if key != key.strip() or key.strip("\"'") != key:
        return "It has blanks or quotes around it."
    return str(check_api_key(key) or "")


def unreachable(server: str) -> str:
    """Why the server gives no answer; "" where it gives one, whatever it says."""
    try:
        urllib.request.urlopen(server, timeout=REACH_SECONDS).close()
    except urllib.error.HTTPError:
        return ""
    except OSError as reason:
        return str(reason)
    except (ValueError, http.client.HTTPException):
        return "it is no address of a web server"
    return ""
