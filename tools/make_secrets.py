"""Makes the secrets of a deployment, each in a file of its own: `python -m tools.make_secrets secrets`.

    cluster_secret          the key of every site follows from it: for cloud nodes and collectors
    NAME_key                of each site in the configuration
    redis_password          of Redis's user `pice`
    NAME_redis_password     of the user `site-NAME`, for each site
    redis_users             Redis's own list of users, with the rights in docs/redis-acl.md
    grafana_password        of the user `admin`

Secrets that are there stay; what follows from them is written anew. So to change one, delete its file, run this
again, and start again all that use it. Files can be read by containers of any user (0444), the folder by its owner
alone (0700).
"""

import argparse
import hashlib
import os
import re
import secrets
import sys
from collections.abc import Mapping
from pathlib import Path

from pice.config import load_settings
from pice.errors import ConfigError
from pice.message.signing import site_key
from pice.settings import SiteSettings

ROOT = Path(__file__).parents[1]
NUM_BYTES = 32
REDIS_USER = "pice"
REDIS_SITE_USER = "site-{site}"
_SETUSER = re.compile(r"^ +ACL SETUSER (\S+) reset on >PASSWORD (.+)$", re.MULTILINE)
_DOCUMENTED_SITE = "paris"
"""Of the pool `main`: the site whose rights the page shows."""


def make(folder: Path, sites: Mapping[str, SiteSettings]) -> None:
    """Writes all files of a deployment with these sites."""
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    _write(folder / ".gitignore", "*")
    secret = _kept(folder / "cluster_secret")
    for name in sites:
        _write(folder / f"{name}_key", site_key(secret, name))
    passwords = {name: _kept(folder / f"{name}_redis_password") for name in sites}
    _write(folder / "redis_users", redis_users(_kept(folder / "redis_password"), passwords, sites))
    _kept(folder / "grafana_password")


def redis_users(password: str, of_sites: Mapping[str, str], sites: Mapping[str, SiteSettings]) -> str:
    """An ACL file for Redis: the user of cloud nodes, collectors, clients and operators, and one for each site."""
    rights = dict(_SETUSER.findall((ROOT / "docs" / "redis-acl.md").read_text(encoding="utf-8")))
    shown = rights[REDIS_SITE_USER.format(site=_DOCUMENTED_SITE)]
    lines = ["user default off", _user(REDIS_USER, password, rights[REDIS_USER])]
    for name, site in sites.items():
        own = shown.replace(f":{_DOCUMENTED_SITE}", f":{name}").replace(":pool:main", f":pool:{site.pool}")
        lines.append(_user(REDIS_SITE_USER.format(site=name), of_sites[name], own))
    return "\n".join(lines)


def _user(name: str, password: str, rights: str) -> str:
    return f"user {name} on #{hashlib.sha256(password.encode()).hexdigest()} {rights}"


def _kept(path: Path) -> str:
    if not path.exists():
        _write(path, secrets.token_hex(NUM_BYTES))
    return path.read_text(encoding="ascii").strip()


def _write(path: Path, text: str) -> None:
    """As a new file: one that containers have open stays as it is."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_text(f"{text}\n", encoding="ascii")
    part.chmod(0o444)
    part.rename(path)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.make_secrets", description="The secrets of a deployment.")
    parser.add_argument("folder", type=Path, help="where they shall lie")
    parser.add_argument("--config", type=Path, default=ROOT / "config" / "cluster.toml", help="names the sites")
    args = parser.parse_args()
    try:
        make(args.folder, load_settings(args.config).sites)
    except (ConfigError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{args.folder}: {', '.join(sorted(path.name for path in args.folder.iterdir() if path.name[0] != '.'))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
