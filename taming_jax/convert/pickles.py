"""What a pickle describes, read without running any of it: no class is looked up, and nothing is called."""

import dataclasses
import pickletools
from typing import Any, BinaryIO

from taming_jax.errors import UserError

MAX_OPERATIONS = 1_000_000  # a thousand layers with their optimizers have a third; a hostile pickle takes seconds
# What code can be run with, and the types among it that only hold values.
DANGEROUS = ("builtins", "__builtin__", "os", "posix", "nt", "sys", "subprocess", "shutil", "runpy", "importlib")
HARMLESS = ("set", "frozenset", "list", "dict", "tuple", "bytearray", "bytes", "int", "float", "str", "bool", "complex")


@dataclasses.dataclass(slots=True, eq=False)
class Object:
    """What a pickle names or would make.

    name: of the class or function, 'collections.OrderedDict'; 'persistent' for what lies outside the pickle.
    args: what it would be called with; None for the name alone. items: the pairs that would be put into it.
    """

    name: str
    args: Any = None
    items: list[tuple[Any, Any]] = dataclasses.field(default_factory=list)


def describe(file: BinaryIO) -> tuple[Any, list[Any]]:
    """Reads one pickle, in time and memory that grow with its length alone; -> (its root, the ids of what lies outside)

    Sets become lists; dictionaries and whatever a class would make become `Object`s. Raises UserError for a pickle that
    names what could run code or is too long, and ValueError, LookupError or TypeError for what is no pickle.
    """
    stack, marks, memo, outside = [], [], {}, []

    def to_mark() -> list:
        start = marks.pop()
        items = stack[start:]
        del stack[start:]
        return items

    def make(what: Any, args: Any) -> None:
        if not isinstance(what, Object) or not isinstance(args, tuple):
            raise ValueError("it calls what is no class")
        stack.append(Object(what.name, args))

    def put(items: list) -> None:
        if isinstance(stack[-1], Object):
            stack[-1].items.extend(zip(items[::2], items[1::2], strict=True))

    for count, (opcode, arg, _) in enumerate(pickletools.genops(file)):
        if count == MAX_OPERATIONS:
            raise UserError(
                f"cannot be read as tensors: its pickle has more than {MAX_OPERATIONS} operations, as no checkpoint has"
            )
        match opcode.name:
            case "PROTO" | "FRAME":
                pass
            case "STOP":
                return stack.pop(), outside
            case "MARK":
                marks.append(len(stack))
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                memo[arg] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(memo[arg])
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[opcode.name])
            case "EMPTY_TUPLE":
                stack.append(())
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                start = len(stack) - int(opcode.name[-1])
                stack[start:] = [tuple(stack[start:])]
            case "TUPLE":
                stack.append(tuple(to_mark()))
            case "EMPTY_LIST" | "EMPTY_SET":
                stack.append([])
            case "LIST" | "FROZENSET":
                stack.append(to_mark())
            case "APPEND" | "APPENDS" | "ADDITEMS":
                items = [stack.pop()] if opcode.name == "APPEND" else to_mark()
                if isinstance(stack[-1], list):
                    stack[-1].extend(items)
            case "EMPTY_DICT":
                stack.append(Object("dict", ()))
            case "DICT":
                items = to_mark()
                stack.append(Object("dict", ()))
                put(items)
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                put([key, value])
            case "SETITEMS":
                put(to_mark())
            case "GLOBAL":
                stack.append(named(*arg.split(" ", 1)))
            case "STACK_GLOBAL":
                function, module = stack.pop(), stack.pop()
                stack.append(named(module, function))
            case "REDUCE" | "NEWOBJ":
                args = stack.pop()
                make(stack.pop(), args)
            case "NEWOBJ_EX":
                _, args = stack.pop(), stack.pop()
                make(stack.pop(), args)
            case "OBJ":
                what, *args = to_mark()
                make(what, tuple(args))
            case "INST":
                make(named(*arg.split(" ", 1)), tuple(to_mark()))
            case "BUILD":  # the state of an object, which is of no use here
                stack.pop()
            case "BINPERSID":
                outside.append(stack.pop())
                stack.append(Object("persistent", outside[-1]))
            case "POP" if marks and marks[-1] == len(stack):
                marks.pop()
            case "POP":
                stack.pop()
            case "POP_MARK":
                to_mark()
            case "DUP":
                stack.append(stack[-1])
            case "PERSID" | "EXT1" | "EXT2" | "EXT4" | "NEXT_BUFFER" | "READONLY_BUFFER":
                raise ValueError(f"it has the operation {opcode.name}")
            case _:  # a number, text or bytes
                stack.append(arg)
    raise ValueError("it has no end")


def named(module: Any, function: Any) -> Object:
    """A class or a function by its name; raises UserError for what could run code."""
    if not isinstance(module, str) or not isinstance(function, str):
        raise ValueError("the name of a class is no text")
    if module.split(".")[0] in DANGEROUS and function not in HARMLESS:
        what = f"{module}.{function}"[:80]
        raise UserError(f"cannot be read as tensors: it names {what!r}, with which code is run; do not trust it")
    return Object(f"{module}.{function}")
