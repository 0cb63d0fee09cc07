"""What the comments of configs say of their fields. A comment means the field whose line it ends."""

import ast
import io
import tokenize
from collections.abc import Iterator
from pathlib import Path

from taming_jax.config_files import OURS, find, folders

EXPLAINED = ("custom_vq", "custom_transformer")  # they say of each field what configs that set it leave without comment


def read_meanings(given: str) -> dict[str, str]:
    """The meaning of a config's fields by full name; that of a group, where it has one, holds for its fields.

    given: a config's name or file. Its own comments come before those of the configs that it imports, and those of
    EXPLAINED come last. Raises UserError where there is no such config.
    """
    begun = [Path(find(given).partition(":")[0]), *(OURS / f"{name}.py" for name in EXPLAINED)]
    files = dict.fromkeys(file for first in begun for file in with_imported(first))
    read, found = [Comments(file) for file in files], {}
    for comments in read:
        for name, text in comments.fields:
            found.setdefault(name, text)
        for group, function in comments.calls:
            for other in read:
                for name, text in other.returned.get(function, ()):
                    found.setdefault(f"{group}.{name}", text)
    return found


def meaning_of(name: str, meanings: dict[str, str]) -> str:
    """That of a field, or of the nearest group that it is in and that has one, or ''."""
    while name and name not in meanings:
        name = name.rpartition(".")[0]
    return meanings.get(name, "")


def with_imported(file: Path) -> list[Path]:
    """A config, those that it imports, and those that these import."""
    files = [file]
    for file in files:  # which grow
        froms = [node for node in ast.walk(ast.parse(file.read_bytes())) if isinstance(node, ast.ImportFrom)]
        names = [alias.name for node in froms if node.module == "configs" for alias in node.names]
        paths = [folder / f"{name}.py" for name in names for folder in folders()]
        files += [path for path in paths if path.is_file() and path not in files]
    return files


class Comments:
    """The comments of a file at the ends of fields' lines.

    fields: (full name, comment), as `c.group.field = 1  # comment` and the arguments of what is assigned, or given to
    `update`, have them. returned: by function, those of the arguments of what it returns. calls: (group, function) that
    makes the group.
    """

    def __init__(self, file: Path):
        source = file.read_bytes()
        self.ends = {}  # comments by line, of lines that hold something else too
        for token in tokenize.tokenize(io.BytesIO(source).readline):
            if token.type == tokenize.COMMENT and token.line[: token.start[1]].strip():
                self.ends[token.start[0]] = token.string.lstrip("# ")
        self.calls, self.returned = [], {}
        tree = ast.parse(source)
        self.fields = [pair for node in ast.walk(tree) for pair in self.of_statement(node)]
        for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
            values = [node.value for node in ast.walk(function) if isinstance(node, ast.Return | ast.Assign)]
            names = [node.targets[0] for node in ast.walk(function) if isinstance(node, ast.Assign)]
            if not any(isinstance(name, ast.Attribute) for name in names):  # it makes a group, and sets no field
                self.returned[function.name] = [pair for value in values for pair in self.of_value("", value)]

    def of_statement(self, node: ast.AST) -> Iterator[tuple[str, str]]:
        """Of an assignment to a field, or an `update` of a group."""
        if isinstance(node, ast.Assign) and (name := dotted(node.targets[0])):
            yield from self.of_field(name, node.lineno, node.value)
        elif isinstance(node, ast.Call) and (name := dotted(node.func)) and name.rpartition(".")[2] == "update":
            yield from self.of_value(name.rpartition(".")[0], node)

    def of_field(self, name: str, line: int, value: ast.expr) -> Iterator[tuple[str, str]]:
        """Of a field that is set in some lines: of its first one, or else of its last."""
        text = self.ends.get(line) or self.ends.get(value.end_lineno)
        if text:
            yield name, text
        yield from self.of_value(name, value, line)

    def of_value(self, group: str, value: ast.expr, line: int = 0) -> Iterator[tuple[str, str]]:
        """Of the named arguments of calls, such as `ConfigDict(dict(...))`, each in a line of its own, not `line`."""
        if isinstance(value, ast.BinOp):
            yield from self.of_value(group, value.left, line)
            yield from self.of_value(group, value.right, line)
        if not isinstance(value, ast.Call):
            return
        if isinstance(value.func, ast.Name | ast.Attribute):
            self.calls.append((group, value.func.attr if isinstance(value.func, ast.Attribute) else value.func.id))
        for argument in value.args:
            yield from self.of_value(group, argument, line)
        lines = [line, *(word.value.end_lineno for word in value.keywords)]
        for word in value.keywords:
            if lines.count(word.value.end_lineno) == 1 and word.arg:
                yield from self.of_field(f"{group}.{word.arg}".lstrip("."), word.lineno, word.value)


def dotted(target: ast.expr) -> str:
    """'group.field' of `c.group.field`, '' of other expressions."""
    names = []
    while isinstance(target, ast.Attribute):
        names.append(target.attr)
        target = target.value
    return ".".join(reversed(names)) if isinstance(target, ast.Name) else ""
