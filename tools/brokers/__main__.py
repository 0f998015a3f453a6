"""Starts Kafka and Redis on loopback, and stops them.

    python -m tools.brokers run -- COMMAND ...    # with PICE_KAFKA and PICE_REDIS set for it, as long as it runs
    python -m tools.brokers up                    # until Ctrl-C

Where PICE_KAFKA or PICE_REDIS name a broker already, that one is used and left alone; else it is started: as a
container where a Docker engine answers, or as a program of this machine. Where none can be had, `run` runs its command
all the same and says why in PICE_NO_BROKERS; with PICE_REQUIRE_BROKERS=1 it fails instead.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tools.brokers import docker
from tools.brokers.errors import NoBrokers
from tools.brokers.kafka_server import start_kafka
from tools.brokers.program import Broker, free_port
from tools.brokers.redis_server import start_redis

ADDRESSES = {"PICE_KAFKA": "127.0.0.1:{port}", "PICE_REDIS": "redis://127.0.0.1:{port}/0"}
PROGRAMS: dict[str, Callable[[Path, int], Broker]] = {"PICE_KAFKA": start_kafka, "PICE_REDIS": start_redis}
CONTAINERS: dict[str, Callable[[int], Broker]] = {"PICE_KAFKA": docker.start_kafka, "PICE_REDIS": docker.start_redis}


SETTINGS = {"PICE_KAFKA": "PICE_KAFKA__BOOTSTRAP_SERVERS", "PICE_REDIS": "PICE_REDIS__URL"}
"""What tests read, and the settings of services that say the same."""


@contextmanager
def brokers(ports: dict[str, int] | None = None) -> Iterator[dict[str, str]]:
    """The brokers' addresses by variable; those started here end with the block.

    Raises:
        NoBrokers: one of them cannot be had.
    """
    with ExitStack() as stack:
        addresses = {variable: os.environ[variable] for variable in ADDRESSES if os.environ.get(variable)}
        missing = [variable for variable in ADDRESSES if variable not in addresses]
        in_containers = bool(missing) and docker.has_engine()
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pice-brokers-")))
        for variable in missing:
            port = (ports or {}).get(variable) or free_port()
            broker = CONTAINERS[variable](port) if in_containers else PROGRAMS[variable](folder, port)
            stack.callback(broker.stop)
            addresses[variable] = ADDRESSES[variable].format(port=port)
        yield addresses


def run(command: list[str]) -> int:
    """Exit code of the command, run with brokers or told why there are none."""
    try:
        with brokers() as addresses:
            return subprocess.run(command, env=os.environ | addresses, check=False).returncode
    except NoBrokers as error:
        print(f"brokers: {error}", file=sys.stderr)
        if os.environ.get("PICE_REQUIRE_BROKERS") == "1":
            return 1
        return subprocess.run(command, env=os.environ | {"PICE_NO_BROKERS": str(error)}, check=False).returncode


def up(ports: dict[str, int]) -> int:
    """Runs the brokers until a signal comes."""
    try:
        with brokers(ports) as addresses:
            for variable, address in addresses.items():
                print(f"export {variable}={address} {SETTINGS[variable]}={address}", flush=True)
            signal.sigwait({signal.SIGINT, signal.SIGTERM})
    except NoBrokers as error:
        print(f"brokers: {error}", file=sys.stderr)
        return 1
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.brokers", description="A Kafka and a Redis on loopback.")
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser("run", help="run a command with them")
    running.add_argument("words", nargs="+", metavar="COMMAND")
    staying = commands.add_parser("up", help="run them until Ctrl-C")
    staying.add_argument("--kafka-port", type=int, default=0, help="0 takes any that is free")
    staying.add_argument("--redis-port", type=int, default=0, help="0 takes any that is free")
    args = parser.parse_args()
    if args.command == "run":
        return run(args.words)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    return up({"PICE_KAFKA": args.kafka_port, "PICE_REDIS": args.redis_port})


if __name__ == "__main__":
    sys.exit(main())
