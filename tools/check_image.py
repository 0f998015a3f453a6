"""Runs the steps of the Dockerfile without Docker, and tries what comes of them: `python -m tools.check_image`.

A stage is a folder, RUN is done in it by chroot, and the images are tried as their user, with their environment. In
place of `python:...-slim` stands a small Debian with its own Python, so it needs root and debootstrap. Of mounted
caches nothing is kept. It compiles llama.cpp, which takes some minutes.
"""

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from string import Template

ROOT = Path(__file__).parents[1]
CHROOT = shutil.which("chroot") or "/usr/sbin/chroot"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""As in the image that the Debian stands for."""
MIRROR = "http://deb.debian.org/debian"
SUITE = "bookworm"
PACKAGES = "ca-certificates,python3,python3-pip,python3-venv"
PASSED_ON = ("PIP_", "SSL_", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")
"""Beginnings of variables of this machine by which pip finds its index."""
BORROWED = ("etc/resolv.conf", "etc/pip.conf", "etc/ssl/certs/ca-certificates.crt")
CONFIG = "etc/pice/cluster.toml"
HAS_LLAMA = "import llama_cpp; llama_cpp.llama_backend_init()"
HAS_CLIENTS = "import aiokafka, httpx, orjson, prometheus_client, redis, uvloop"
TRIALS: Mapping[str, Sequence[tuple[str, bool]]] = {
    "cloud": (("python -c 'import llama_cpp'", False),),
    "edge": ((f"python -c '{HAS_LLAMA}'", True),),
    "": (
        ("pice --version", True),
        ("pice config check", True),
        ("pice cloud --help", True),
        ("pice edge --site paris --help", True),
        ("pice collector --help", True),
        ("pice topics create --help", True),
        (f"python -c '{HAS_CLIENTS}'", True),
        ("for tool in cc c++ gcc make cmake; do command -v $tool; done | grep .", False),
        ("touch /opt/pice/x || touch /etc/x || touch /usr/x", False),
        ("find /opt /usr /etc /var -xdev -type f -writable | grep .", False),
    ),
}
"""What shall succeed, or fail, in an image; "" for both."""

Step = tuple[str, str]


def read_stages(dockerfile: str) -> dict[str, list[Step]]:
    """Keyword and rest of every instruction, by the name of its stage; each begins with its FROM, and "" is what
    stands before the first."""
    lines = [line for line in dockerfile.splitlines() if not line.startswith("#")]
    steps = "\n".join(lines).replace("\\\n", " ").splitlines()
    stages: dict[str, list[Step]] = {"": []}
    name = ""
    for keyword, rest in (step.split(None, 1) for step in steps if step.strip()):
        if keyword == "FROM":
            name = rest.split()[-1]
        stages.setdefault(name, []).append((keyword, rest))
    return stages


@dataclass(frozen=True)
class Image:
    """A root folder, and how a process begins in it."""

    root: Path
    environment: Mapping[str, str] = field(default_factory=lambda: {"PATH": PATH})
    folder: str = "/"
    user: str = "0:0"

    def run(self, command: str, arguments: Mapping[str, str]) -> int:
        """Exit code of a line of shell, given these build arguments; its output comes out here."""
        words = [CHROOT, f"--userspec={self.user}", "--groups=", str(self.root), "/bin/sh", "-c"]
        script = f"cd {shlex.quote(self.folder)} && {command}"
        return subprocess.run([*words, script], env={**self.environment, **arguments}, check=False).returncode


class Build:
    """Stages as folders in `work`, each made once."""

    def __init__(self, work: Path) -> None:
        self._work = work
        self._stages = read_stages((ROOT / "Dockerfile").read_text(encoding="utf-8"))
        self._made: dict[str, Image] = {}
        self._passed_on = {name: value for name, value in os.environ.items() if name.upper().startswith(PASSED_ON)}

    def image(self, name: str) -> Image:
        """The stage, or the base image, of this name."""
        if name not in self._made:
            self._made[name] = self._make(name) if name in self._stages else _debian(self._work / "base")
        return self._made[name]

    def _make(self, name: str) -> Image:
        steps = self._stages[name]
        parent = self.image(steps[0][1].split()[0])
        image = replace(parent, root=self._work / name)
        subprocess.run(["cp", "-ax", "--reflink=auto", str(parent.root), str(image.root)], check=True)
        arguments: dict[str, str] = {}
        for keyword, rest in steps[1:]:
            print(f"[{name}] {keyword} {rest}", flush=True)
            if keyword == "ARG":
                given, _, default = rest.partition("=")
                arguments[given] = shlex.split(default)[0] if default else ""
            else:
                image = self._done(image, keyword, rest, arguments)
        return image

    def _done(self, image: Image, keyword: str, rest: str, arguments: Mapping[str, str]) -> Image:
        match keyword:
            case "ENV":
                words = (Template(word).safe_substitute(image.environment) for word in shlex.split(rest))
                given = dict(word.split("=", 1) for word in words)
                return replace(image, environment={**image.environment, **given})
            case "WORKDIR":
                (image.root / rest.lstrip("/")).mkdir(parents=True, exist_ok=True)
                return replace(image, folder=rest)
            case "USER":
                return replace(image, user=rest)
            case "COPY":
                self._copy(image, rest.split())
            case "RUN":
                words = rest.split()
                command = " ".join(word for word in words if not word.startswith("--mount="))
                if code := image.run(command, {**arguments, **self._passed_on}):
                    raise SystemExit(f"the step ended with {code}: {command}")
            case "ENTRYPOINT" | "LABEL":
                pass
            case _:
                raise SystemExit(f"{keyword} is not known to this script: teach it, or leave it out of the Dockerfile")
        return image

    def _copy(self, image: Image, words: list[str]) -> None:
        """As COPY does: of a folder what is in it."""
        source_root = self.image(words.pop(0).partition("=")[2]).root if words[0].startswith("--from=") else ROOT
        *sources, place = words
        target = image.root / os.path.join(image.folder, place).lstrip("/")  # noqa: PTH118 - an absolute place wins
        for source in (source_root / each.lstrip("/") for each in sources):
            if source.is_dir():
                ignored = shutil.ignore_patterns("__pycache__", "*.pyc") if source_root == ROOT else None
                shutil.copytree(source, target, symlinks=True, ignore=ignored, dirs_exist_ok=True)
            else:
                into = target / source.name if place.endswith("/") else target
                into.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, into)


def _debian(root: Path) -> Image:
    """A small Debian whose Python goes by the names that it has in the image it stands for; one that is there is
    used again."""
    if not root.exists():
        make = ["debootstrap", "--variant=minbase", f"--include={PACKAGES}", SUITE, str(root), MIRROR]
        print(shlex.join(make), flush=True)
        subprocess.run(make, check=True, stdout=subprocess.DEVNULL)
    for name in ("python", "pip"):
        link = root / "usr" / "local" / "bin" / name
        link.unlink(missing_ok=True)
        link.symlink_to(f"/usr/bin/{name}3")
    for name in BORROWED:
        if (Path("/") / name).exists():
            shutil.copy2(Path("/") / name, root / name)
    return Image(root)


def try_out(name: str, image: Image) -> list[str]:
    """What is wrong with an image."""
    place = image.root / CONFIG
    place.parent.mkdir(parents=True)
    shutil.copy(ROOT / "config" / "cluster.toml", place)
    faults = []
    for command, succeeds in (*TRIALS[""], *TRIALS[name]):
        print(f"[{name}] $ {command}", flush=True)
        if (image.run(command, {}) == 0) != succeeds:
            faults.append(f"{name}: {command}: should have {'succeeded' if succeeds else 'failed'}")
    return faults


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.check_image", description="The Dockerfile without Docker.")
    parser.add_argument("--target", action="append", choices=["cloud", "edge"], help="both if not given")
    parser.add_argument("--work", type=Path, help="a folder to work in, which stays; else a temporary one")
    args = parser.parse_args()
    if os.geteuid() or not shutil.which("debootstrap"):
        print("error: this needs root and debootstrap (Debian's package: debootstrap)", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="pice-image-") as temporary:
        work = args.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        build, faults = Build(work), list[str]()
        for name in args.target or ["cloud", "edge"]:
            image = build.image(name)
            faults += try_out(name, image)
            subprocess.run(["du", "-sh", str(image.root / "opt" / "pice")], check=True)
    print("\n".join(f"fault: {fault}" for fault in faults) or "no fault found")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
