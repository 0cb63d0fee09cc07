"""Who may import whom: the rooms of the package, and which lie beneath which."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "taming_jax"
COMMANDS = {
    "train",
    "sample",
    "evaluate",
    "encode",
    "show_data",
    "compile_ahead",
    "report.__main__",
    "hub.__main__",
    "convert.__main__",
    "demo.__main__",
}
# What a room must not know.
FORBIDDEN = {
    "data": {"tasks", "conditions", "cli", "checkpoint", "first_stage", "second_stage", "completion", "sharding"},
    "models": {"sharding", "data", "tasks", "conditions", "checkpoint", "completion", "cli"},
    "sampling": {"models", "first_stage", "second_stage", "conditions", "tasks", "data", "completion", "sharding"},
    "losses": {"models", "data", "tasks", "sharding"},
    "state": {"images", "sampling", "writer", "tasks"},
    "loop": {"conditions", "models", "sampling", "tasks.vqgan", "tasks.transformer", "cli"},
    "conditions": {"tasks", "second_stage", "completion", "checkpoint", "cli", "sharding"},
}


def modules() -> dict[str, ast.Module]:
    """By their names below the package."""
    files = {file: ".".join(file.relative_to(PACKAGE).with_suffix("").parts) for file in PACKAGE.rglob("*.py")}
    return {name.removesuffix(".__init__"): ast.parse(file.read_text()) for file, name in files.items()}


def imports(tree: ast.Module) -> set[str]:
    """What a module imports of the package, by names below it."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "taming_jax":
            room = node.module.removeprefix("taming_jax").lstrip(".")
            found |= {f"{room}.{alias.name}".lstrip(".") for alias in node.names} | ({room} if room else set())
        if isinstance(node, ast.Import):
            found |= {a.name.removeprefix("taming_jax.") for a in node.names if a.name.startswith("taming_jax.")}
    return found


def within(name: str, room: str) -> bool:
    return name == room or name.startswith(f"{room}.")


@pytest.mark.parametrize("room", FORBIDDEN)
def test_a_room_knows_only_what_lies_beneath_it(room):
    inside = {name: tree for name, tree in modules().items() if within(name, room) and name != "data.check"}
    assert inside
    for name, tree in inside.items():
        known = {other for other in imports(tree) for below in FORBIDDEN[room] if within(other, below)}
        assert not known, f"taming_jax.{name} imports {', '.join(sorted(known))}"


def test_commands_do_not_import_each_other_and_alone_speak_of_flags():
    for name, tree in modules().items():
        known = imports(tree)
        others = {other for other in known for command in COMMANDS if within(other, command)}
        assert not others, f"taming_jax.{name} imports the commands {others}"
        absl = {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module == "absl"}
        flags = absl and any(
            a.name == "flags" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) for a in n.names
        )
        assert not flags or name in {*COMMANDS, "cli", "help", "data.workers"}, f"taming_jax.{name} speaks of flags"


def test_nothing_goes_round_in_a_circle():
    """By the modules' own imports; a module's own package does not count."""
    trees = modules()
    after = {
        name: {other for other in imports(tree) & set(trees) if not within(name, other)} for name, tree in trees.items()
    }
    done: set[str] = set()
    while len(done) < len(after):
        ready = {name for name, needs in after.items() if name not in done and needs <= done}
        assert ready, f"in a circle, or above one: {sorted(set(after) - done)}"
        done |= ready
