"""What the command lines share."""

import itertools
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags
from ml_collections.config_flags.config_flags import ConfigFileFlagParser, is_config_flag

from taming_jax import checkpoint, config_files, job, stopping, values
from taming_jax.backend import quiet_libtpu
from taming_jax.console import Lasting
from taming_jax.errors import ArgumentError, UserError, fail, nearest, shorten, show
from taming_jax.help import examples_of, fields_of, page
from taming_jax.hub import address

HELP = {"--help", "-help", "-h", "-?", "--helpshort"}
OUT_OF_MEMORY = "out of memory: make the batch smaller, or what is asked for"


class ConfigParser(ConfigFileFlagParser):
    """Parses a flag for a config, which may be a name or a file."""

    def parse(self, path: str) -> ConfigDict:
        return config_files.load(path).lock()


@contextmanager
def one_line() -> Iterator[None]:
    """Within, a user's mistake prints one line and ends the command with 2, without a stack trace.

    So does what the system refuses: a full disk, a place where nobody may write, too little memory.
    """
    for stream in (sys.stdout, sys.stderr):  # a file's name need not be UTF-8
        stream.reconfigure(errors="backslashreplace")
    try:
        yield
        sys.stdout.flush()
    except ArgumentError as e:
        fail(f"--{e}")
    except checkpoint.Unsaved as e:
        print(f"error: {e}", file=sys.stderr, flush=True)
        os._exit(2)
    except UserError as e:
        fail(str(e))
    except BrokenPipeError:  # whoever reads the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except OSError as e:
        fail(f"{e.filename}: {e.strerror}" if e.filename else str(e) or type(e).__name__)
    except MemoryError:
        fail(OUT_OF_MEMORY)
    except jax.errors.JaxRuntimeError as e:
        if "RESOURCE_EXHAUSTED" not in str(e):
            raise
        fail(f"{OUT_OF_MEMORY} ({str(e)[:200]})")
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on where it can", file=sys.stderr)
        sys.exit(130)


def group(title: str) -> None:
    """The flags that are defined from here on stand under this title in --help."""
    _begun[title] = len(own_flags())


_begun: dict[str, int] = {}  # titles, each with how many flags were defined before


def own_flags() -> list[flags.Flag]:
    """The flags of the command that runs, in the order of their definition, without those of libraries."""
    modules = (sys.argv[0], __name__)
    return [flags.FLAGS[name] for name in flags.FLAGS if flags.FLAGS.find_module_defining_flag(name) in modules]


def grouped_flags() -> dict[str, list[flags.Flag]]:
    """Those flags by the titles of `group`."""
    own = own_flags()
    begun = ({} if 0 in _begun.values() else {"Flags": 0}) | _begun
    ends = [*list(begun.values())[1:], len(own)]
    return {title: own[start:end] for (title, start), end in zip(begun.items(), ends, strict=True) if start < end}


def parse(argv: list[str], takes_words: bool = False) -> list[str]:
    """Parses the flags; -> the words that are none. Ends the command with one line where they are wrong."""
    for name in flags.FLAGS:
        if is_config_flag(flags.FLAGS[name]):
            flags.FLAGS[name].parser = ConfigParser(name)
    try:
        _, *words = flags.FLAGS(argv)
    except flags.UnrecognizedFlagError as e:
        fail(f"unknown flag --{e.flagname}{nearest(e.flagname, [n for n in flags.FLAGS if len(n) > 1])}")
    except Exception as e:  # whatever it is, a flag's text was its reason
        words = str(e.args[0] if isinstance(e, KeyError) else e).replace("\\n", " ").split()
        fail(" ".join(shorten(word) for word in words) or type(e).__name__)
    if words and not takes_words:
        fail(f"{show(words[0])} is no flag; flags are written --name=value")
    return words


def show_help(usage: str, doc: str, argv: list[str]) -> None:
    """Prints the page of --help, with the fields of the config that is given, or of that of the first example."""
    configs, groups = {}, grouped_flags()
    given = [word for last, word in itertools.pairwise(argv) if word.startswith("--config") or last == "--config"]
    named = any(word.partition("=")[0] == "--config" for word in given)
    first = [word for example in examples_of(doc)[:1] for word in example if word.startswith("--config=")]
    if "config" in flags.FLAGS and is_config_flag(flags.FLAGS["config"]) and (named or first):
        parse([argv[0], *([] if named else first), *given])
        name = flags.FLAGS["config"].config_filename
        about = "" if named else "; --help with another --config shows that one's"
        configs[f"Fields of the config {Path(name).stem}, set by --config.NAME=VALUE{about}"] = fields_of(
            name, flags.FLAGS["config"].value
        )
    print(page(usage, doc, groups, configs))


def run(main: Callable[..., None], operands: str = "") -> None:
    """Parses the flags and calls `main` under `one_line`.

    operands: a word for what the command takes beside flags, one or more; `main` gets them as arguments.
    """
    doc, spec = main.__globals__["__doc__"], main.__globals__["__spec__"]
    module = spec.name.removesuffix(".__main__") if spec else f"taming_jax.{Path(sys.argv[0]).stem}"
    words = f"{operands} ..." if operands else "--flag=value ..."
    usage = f"python -m {module} {words}"
    if module.startswith("taming_jax."):
        usage = f"taming {module.removeprefix('taming_jax.')} {words}, or {usage}"

    def begin(argv: list[str]) -> list[str]:
        if HELP & set(argv[1:]):
            with one_line():
                show_help(usage, doc, argv)
            sys.exit()
        if "--helpfull" in argv[1:]:  # absl's own, which would exit with 1
            print(flags.FLAGS.get_help())
            sys.exit()
        words = parse(argv, bool(operands))
        if operands and not words:
            fail(f"{operands} is missing: {usage}")
        return words

    def guarded(words: list[str]) -> None:
        sys.stdout, sys.stderr = Lasting(sys.stdout), Lasting(sys.stderr)
        logging.set_verbosity(logging.ERROR)  # the user need not see library warnings
        signal.signal(signal.SIGINT, signal.default_int_handler)  # until here, it has ended the process
        with stopping.leaving_at_once(), one_line(), job.ending_with_others():
            main(*words)

    quiet_libtpu()
    app.run(guarded, flags_parser=begin)


def define_processes() -> None:
    """The flags of `join_processes`."""
    group("Several processes")
    flags.DEFINE_bool("distributed", False, "Join the job's processes, told by Cloud TPU, GKE, SLURM or Open MPI.")
    flags.DEFINE_string(
        "coordinator_address", None, "Without --distributed: host:port of process 0, the same in all processes."
    )
    flags.DEFINE_integer("num_processes", None, "Without --distributed: how many processes there are.", lower_bound=1)
    flags.DEFINE_integer(
        "process_id", None, "Without --distributed: the number of this process, from 0.", lower_bound=0
    )
    flags.DEFINE_integer("join_timeout", 300, "Seconds to wait for the job's other processes.", lower_bound=1)


def join_processes() -> None:
    """Joins the processes of a job into one program. Call it before anything asks for devices.

    Raises UserError where the environment names no job, where flags are missing, or where other processes do not join.
    """
    given = {name: flags.FLAGS[name].value for name in ("coordinator_address", "num_processes", "process_id")}
    missing = [name for name, value in given.items() if value is None]
    if 0 < len(missing) < len(given):
        raise UserError(
            f"--{missing[0]} is missing: --coordinator_address, --num_processes and --process_id go together"
        )
    if missing and not flags.FLAGS.distributed:
        return
    seconds, where = flags.FLAGS.join_timeout, "" if missing else f" at {given['coordinator_address']}"
    message = (
        f"the job's processes did not come together{where} in {seconds} s: do all run, and can they reach process 0?"
    )
    # Without this timer, jax would abort with a stack trace.
    give_up = threading.Timer(seconds, lambda: (print(f"error: {message}", file=sys.stderr, flush=True), os._exit(2)))
    give_up.daemon = True
    give_up.start()
    try:
        jax.distributed.initialize(
            **({} if missing else given),
            initialization_timeout=seconds + 60,
            heartbeat_timeout_seconds=job.HEARTBEAT,
        )
    except (RuntimeError, ValueError) as e:
        raise UserError(f"the job's processes did not come together: {' '.join(str(e).split())[:300]}") from e
    finally:
        give_up.cancel()
    job.shorten_deaths()


def required(name: str) -> str:
    """A flag's value; raises UserError where it was not given."""
    value = flags.FLAGS[name].value
    if value is None:
        raise UserError(f"--{name} is missing")
    return value


def required_folder(name: str) -> Path:
    """The folder that a flag names; raises UserError where it was not given, or can be no folder of this machine."""
    required(name)
    return folder(name)


def folder(name: str) -> Path | None:
    """As `required_folder`, but None where the flag was not given."""
    found = _path(name, values.folder, "folder")
    if found is not None and found.is_file():
        raise ArgumentError(f"{name}={found} is a file; name a folder")
    return found


def required_run(name: str) -> str:
    """As `required_folder`, or the address of a published run, as it was given."""
    value = required(name)
    values.run(name, value, ArgumentError)
    return value if address.is_address(value) else str(required_folder(name))


def run_folder(name: str) -> Path | None:
    """The folder of a run to read, None where the flag was not given; a published run is downloaded."""
    return None if flags.FLAGS[name].value is None else address.find(required_run(name))


def file(name: str) -> Path | None:
    """The file that a flag names, None where it was not given; raises UserError where it can be no file here."""
    return _path(name, values.path, "file")


def _path(name: str, rule: values.Rule, kind: str) -> Path | None:
    value = flags.FLAGS[name].value
    if value is None:
        return None
    rule(name, value, ArgumentError)
    if not value.strip():
        raise ArgumentError(f"{name} is empty: name a {kind}")
    return Path(value)


def new_file(name: str) -> Path | None:
    """As `file`, for one that is written at the end of long work: its folder is there."""
    found = file(name)
    if found is not None and found.is_dir():
        raise ArgumentError(f"{name}={found} is a folder; name a file")
    if found is not None and not found.absolute().parent.is_dir():
        raise ArgumentError(f"{name}={found}: there is no folder {found.parent}")
    if found is not None:
        try:
            with tempfile.TemporaryFile(dir=found.absolute().parent):
                pass
        except OSError as e:
            raise ArgumentError(
                f"{name}={found}: {found.absolute().parent} cannot be written: {e.strerror or e}"
            ) from e
    return found


def required_config() -> ConfigDict:
    """The config of --config, locked; raises UserError where it was not given."""
    config = flags.FLAGS["config"].value
    if config is None:
        raise UserError("--config is missing: a name such as openmoji_vq, or a file")
    return config


def define_config(what: str) -> None:
    """The flag --config; what: whose config it is."""
    text = f"Config of {what}: a name or a file; its fields are set by --config.NAME=VALUE."
    config_flags.DEFINE_config_file("config", None, text, lock_config=True)


def define_sampling() -> None:
    """The flags of how a transformer's codes are drawn, None where the run's own config says it."""
    group("How codes are drawn; by default as the run's config says")
    flags.DEFINE_float("temperature", None, "Above 1 is wilder, below 1 is tamer.")
    flags.DEFINE_integer("top_k", None, "Draw from the k likeliest codes.")
    flags.DEFINE_float("top_p", None, "Draw from the likeliest codes that hold this share of the probability.")
    flags.DEFINE_float("guidance", None, "Above 1, the condition weighs more (if trained with cond.drop).")
    flags.DEFINE_float("guidance_power", None, "Above 0, guidance rises to that along a power-cosine, as in RAR.")
    flags.DEFINE_integer("guidance_codes", None, "How many first codes are guided; 0 for all.")
    flags.DEFINE_integer("passes", None, "Of a masked transformer: how many passes write an image.")
    flags.DEFINE_float("choice_temperature", None, "Of a masked transformer: noise in which codes each pass keeps.")


def define_stages() -> None:
    """The flags of `stages`."""
    for name, what in (("first_stage", "a transformer's first stage"), ("cond", "its condition's first stage")):
        text = f"Config of {what}, in place of its run; its fields are set by --{name}.NAME=VALUE."
        config_flags.DEFINE_config_file(name, None, text, lock_config=True)


def stages() -> dict[str, ConfigDict]:
    """The configs of the first stages that the flags name."""
    return {name: flags.FLAGS[name].value for name in ("first_stage", "cond") if flags.FLAGS[name].value is not None}
