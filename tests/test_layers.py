"""The direction of imports: core <- pure <- ports <- adapters; nodes know ports, and only `pice.app` names adapters."""

import ast
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

PURE = ("metrics", "plan", "sketch", "answer", "message")
PORTS = ("engine", "jobs", "registry", "store", "transport")
FORBIDDEN_IN_PURE = {
    "asyncio",
    "datetime",
    "logging",
    "multiprocessing",
    "random",
    "secrets",
    "socket",
    "subprocess",
    "threading",
    "time",
    "uuid",
}
CLIENTS = ("aiokafka", "gguf", "httpx", "huggingface_hub", "llama_cpp", "msgpack", "prometheus_client", "redis", "vllm")

MAY_IMPORT = {
    "core": set(),
    "errors": set(),
    "pure": {"core", "errors", "pure"},
    "port": {"core", "errors"},
    "adapter": {"core", "errors", "pure", "port", "client", "adapter"},
    "client": {"errors", "client"},
    "node": {"core", "errors", "pure", "port", "batch", "node"},
    "service": {"core", "errors", "pure", "port", "node", "service"},
    "settings": {"core", "errors", "pure", "settings"},
    "batch": {"core", "errors", "pure", "port", "batch"},
    "simulation": {"core", "errors", "pure", "port", "node", "reference", "simulation"},
    "pipeline": {"core", "errors", "pure", "node", "settings"},
    "loop": {"errors"},
    "models": {"core", "errors", "pure", "models"},
    "demo": {"core", "errors", "pure", "demo"},
    "cli": {
        "package",
        "core",
        "errors",
        "pure",
        "settings",
        "batch",
        "pipeline",
        "models",
        "demo",
        "loop",
        "app",
        "cli",
    },
    "package": {"app", "core", "loop", "pipeline"},
    "__main__": {"cli"},
}
"""What each layer may import; `app`, absent here, may import everything. A `reference` is an adapter too."""
REFERENCES = {"pice.transport.memory", "pice.store.memory", "pice.engine.emulated", "pice.jobs.memory"}


def layer(module: str) -> str:
    top = module.split(".")[1] if "." in module else "package"
    if top in PURE:
        return "pure"
    if top in PORTS:
        return "port" if module.endswith(".base") or module == f"pice.{top}" else "adapter"
    if top == "kafka_client" or top.startswith("redis_"):
        return "client"
    return "settings" if top in ("settings", "config", "setting_faults") else top


def imported(module: str, source: str, known: Mapping[str, object], *, is_package: bool = False) -> Iterator[str]:
    """Names of the modules that `source` imports, wherever in it; a name taken from one of ours is resolved to a
    module where there is one."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = module.split(".")
            above = parts[: len(parts) - node.level + is_package] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                full = f"{base}.{alias.name}"
                yield full if full in known else base


def faults(sources: Mapping[str, str], packages: frozenset[str] = frozenset()) -> list[str]:
    """Every import that goes against the direction, in `sources` by module name."""
    edges = {
        module: sorted(set(imported(module, source, sources, is_package=module in packages)))
        for module, source in sources.items()
    }
    return [*_upward(edges), *_impure(edges), *_shared_clients(edges), *_cycles(edges)]


def _upward(edges: Mapping[str, list[str]]) -> Iterator[str]:
    for module, targets in edges.items():
        own = layer(module)
        for target in targets:
            if target.split(".")[0] != "pice" or own == "app":
                continue
            if own not in MAY_IMPORT:
                yield f"{module} is in no layer: give it one in this file"
                break
            kinds = {layer(target)} | ({"reference"} if target in REFERENCES else set())
            beside = own == "adapter" and layer(target) == "adapter" and module.split(".")[1] != target.split(".")[1]
            if not kinds & MAY_IMPORT[own] or beside:
                yield f"{module} ({own}) imports {target} ({layer(target)})"


def _impure(edges: Mapping[str, list[str]]) -> Iterator[str]:
    for module, targets in edges.items():
        if layer(module) in ("core", "errors", "pure"):
            yield from (
                f"{module} is pure, but imports {it}" for it in targets if it.split(".")[0] in FORBIDDEN_IN_PURE
            )


def _shared_clients(edges: Mapping[str, list[str]]) -> Iterator[str]:
    for client in CLIENTS:
        users = [module for module, targets in edges.items() if any(it.split(".")[0] == client for it in targets)]
        if len(users) > 1:
            yield f"{client} is imported in more than one file: {', '.join(sorted(users))}"


def _cycles(edges: Mapping[str, list[str]]) -> Iterator[str]:
    try:
        TopologicalSorter(
            {module: [it for it in targets if it in edges] for module, targets in edges.items()}
        ).prepare()
    except CycleError as error:
        yield "cycle: " + " <- ".join(error.args[1])


def house() -> tuple[dict[str, str], frozenset[str]]:
    """The sources of `pice` by module name, and which of them are packages."""
    sources, packages = {}, set()
    for path in sorted((ROOT / "pice").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        sources[name] = path.read_text(encoding="utf-8")
        packages |= {name} if parts[-1] == "__init__" else set()
    return sources, frozenset(packages)


def test_imports_keep_their_direction() -> None:
    sources, packages = house()
    assert "pice.core" in sources
    assert not faults(sources, packages)


PLANTED = [
    ("pice.core", "from pice.errors import PiceError", "pice.core (core) imports pice.errors (errors)"),
    ("pice.errors", "import pice.core", "pice.errors (errors) imports pice.core (core)"),
    ("pice.plan.x", "from pice.engine.base import Engine", "pice.plan.x (pure) imports pice.engine.base (port)"),
    ("pice.answer.x", "import asyncio", "pice.answer.x is pure, but imports asyncio"),
    ("pice.sketch.x", "def f():\n    from time import monotonic", "pice.sketch.x is pure, but imports time"),
    ("pice.message.x", "import random", "pice.message.x is pure, but imports random"),
    ("pice.core", "import logging.config", "pice.core is pure, but imports logging.config"),
    ("pice.store.base", "from pice.plan import x", "pice.store.base (port) imports pice.plan.x (pure)"),
    ("pice.node.x", "from pice.engine import emulated", "pice.node.x (node) imports pice.engine.emulated (adapter)"),
    ("pice.node.x", "from ..store.memory import S", "pice.node.x (node) imports pice.store.memory (adapter)"),
    ("pice.node.x", "from pice.app import run", "pice.node.x (node) imports pice.app (app)"),
    ("pice.store.x", "import pice.engine.emulated", "pice.store.x (adapter) imports pice.engine.emulated (adapter)"),
    ("pice.simulation.x", "import pice.store.redis", "(simulation) imports pice.store.redis (adapter)"),
    ("pice.cli.x", "from pice.engine.emulated import E", "pice.cli.x (cli) imports pice.engine.emulated (adapter)"),
    ("pice.node.x", "import pice.redis_client", "pice.node.x (node) imports pice.redis_client (client)"),
    ("pice.redis_client", "import pice.core", "pice.redis_client (client) imports pice.core (core)"),
    ("pice.app", "import httpx", "httpx is imported in more than one file: pice.app, pice.engine.openai"),
    ("pice.gateway.x", "import pice.core", "pice.gateway.x is in no layer: give it one in this file"),
    ("pice.answer.x", "import pice.plan.x", "cycle: pice.answer.x <- pice.plan.x <- pice.answer.x"),
]

SMALL_HOUSE = {
    "pice.core": "",
    "pice.errors": "",
    "pice.plan.x": "import pice.answer.x",
    "pice.answer.x": "from pice.core import Plan",
    "pice.engine.base": "from pice.core import Curve",
    "pice.engine.emulated": "from pice.engine.base import Engine\nimport random",
    "pice.engine.openai": "import httpx",
    "pice.store.memory": "import asyncio",
    "pice.store.redis": "from pice.redis_client import RedisClient",
    "pice.redis_client": "from redis import asyncio\nfrom pice.errors import TransportError",
    "pice.simulation.x": "from pice.store.memory import MemoryStore",
    "pice.node.x": "from pice.plan import x\nimport asyncio",
    "pice.app": "import pice.engine.emulated, pice.node.x",
    "pice.cli.x": "from pice.app import run",
}


def test_house_in_order_has_no_faults() -> None:
    assert not faults(SMALL_HOUSE)


@pytest.mark.parametrize(("module", "line", "fault"), PLANTED, ids=[f"{it[0]}: {it[1]}" for it in PLANTED])
def test_planted_import_is_found(module: str, line: str, fault: str) -> None:
    sources = SMALL_HOUSE | {module: f"{SMALL_HOUSE.get(module, '')}\n{line}"}
    found = faults(sources)
    if fault.startswith("cycle"):
        assert any(set(it.removeprefix("cycle: ").split(" <- ")) == {"pice.answer.x", "pice.plan.x"} for it in found)
    else:
        assert any(it.endswith(fault) for it in found)
