"""What the command lines share."""

import os
import re
import sys
import threading
from collections.abc import Callable

import jax
from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags
from ml_collections.config_flags.config_flags import ConfigFileFlagParser, is_config_flag

from taming_jax import config_files
from taming_jax.errors import ArgumentError, UserError, fail, nearest


class ConfigParser(ConfigFileFlagParser):
    """Parses a flag for a config, which may be a name or a file."""

    def parse(self, path: str) -> ConfigDict:
        return config_files.load(path).lock()


def run(main: Callable[[], None]) -> None:
    """Parses the flags and calls `main`. A user's mistake prints one line and exits with 2, without a stack trace."""

    for name in flags.FLAGS:
        if is_config_flag(flags.FLAGS[name]):
            flags.FLAGS[name].parser = ConfigParser(name)

    def parse(argv: list[str]) -> list[str]:
        try:
            rest = flags.FLAGS(argv)
        except flags.UnrecognizedFlagError as e:
            fail(f"unknown flag --{e.flagname}{nearest(e.flagname, [n for n in flags.FLAGS if len(n) > 1])}")
        except UserError as e:  # of a config that reads a run
            fail(str(e))
        except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError, ImportError, SyntaxError) as e:
            fail(re.sub(r"\s+", " ", str(e.args[0] if isinstance(e, KeyError) else e)))
        if len(rest) > 1:
            fail(f"{rest[1]!r} is no flag; flags are written --name=value")
        return rest

    def guarded(_: list[str]) -> None:
        sys.stdout.reconfigure(errors="replace")  # names of files and classes may hold what a terminal cannot show
        logging.set_verbosity(logging.ERROR)  # the user need not see library warnings
        try:
            main()
        except ArgumentError as e:
            fail(f"--{e}")
        except UserError as e:
            fail(str(e))
        except KeyboardInterrupt:
            print("interrupted; run the same command again to go on where it can", file=sys.stderr)
            sys.exit(130)

    app.run(guarded, flags_parser=parse)


def define_processes() -> None:
    """The flags of `join_processes`."""
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
        jax.distributed.initialize(**({} if missing else given), initialization_timeout=seconds + 60)
    except (RuntimeError, ValueError) as e:
        raise UserError(f"the job's processes did not come together: {' '.join(str(e).split())[:300]}") from e
    finally:
        give_up.cancel()


def required(name: str) -> str:
    """A flag's value; raises UserError where it was not given."""
    value = flags.FLAGS[name].value
    if value is None:
        raise UserError(f"--{name} is missing")
    return value


def required_config() -> ConfigDict:
    """The config of --config, locked; raises UserError where it was not given."""
    config = flags.FLAGS["config"].value
    if config is None:
        raise UserError("--config is missing: a name such as openmoji_vq, or a file")
    return config


def define_stages() -> None:
    """The flags of `stages`."""
    for name, what in (("first_stage", "a transformer's first stage"), ("cond", "its condition's first stage")):
        config_flags.DEFINE_config_file(name, None, f"Config file of {what}, in place of its run.", lock_config=True)


def stages() -> dict[str, ConfigDict]:
    """The configs of the first stages that the flags name."""
    return {name: flags.FLAGS[name].value for name in ("first_stage", "cond") if flags.FLAGS[name].value is not None}
