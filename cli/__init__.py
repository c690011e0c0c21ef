"""The command line: one file a command, imported when invoked. `refengine --help` imports neither NumPy nor Numba."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import click

from refengine import __version__
from refengine.errors import InputWarning, RefengineError, nearest

COMMANDS = {
    "solve": "The exact outputs of a file's problem, with a bound on how wrong they can be.",
    "verify": "Whether a kernel's error is what honest rounding explains.",
    "diagnose": "Where a kernel goes wrong, and which known mistake it is.",
    "golden": "Certified cases as files, made, checked, listed and handed on.",
    "study": "Why linear attention needs a short convolution on K: the argument, measured.",
    "mutate": "What verify kills and what it alarms at, on its own bug zoo.",
    "ops": "The ops that can be solved, or all about one.",
    "bench": "How fast it is here, against the machine's ceilings and other implementations.",
    "doctor": "What this installation runs on, and whether it computes rightly.",
}
INTERRUPTED = 130


class Refusal(click.ClickException):
    """What a person can mend: one sentence on stderr, exit 2."""

    exit_code = 2

    def __init__(self, message: str) -> None:
        line = " ".join(message.split())
        super().__init__(line if line.endswith((".", "?", "!")) else line + ".")


@contextlib.contextmanager
def sentences() -> Iterator[None]:
    """Whatever is the caller's to mend leaves as one sentence; a bug keeps its traceback."""
    try:
        yield
    except click.exceptions.NoArgsIsHelpError:
        raise
    except click.UsageError as error:
        raise Refusal(error.format_message()) from None
    except RefengineError as error:
        raise Refusal(str(error)) from error
    except MemoryError as error:
        raise Refusal(f"There is not enough memory ({str(error) or 'the system gave no number'}).") from error
    except BrokenPipeError:  # the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise click.exceptions.Exit(0) from None
    except KeyboardInterrupt:
        click.echo("Interrupted.", err=True)
        raise click.exceptions.Exit(INTERRUPTED) from None


@contextlib.contextmanager
def spoken_warnings() -> Iterator[None]:
    """Our own warnings as one line each on stderr."""
    with warnings.catch_warnings():
        usual = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
            if issubclass(category, InputWarning):
                click.echo(f"Warning: {message}", err=True)
            else:
                usual(message, category, *where, **more)

        warnings.showwarning = show
        warnings.simplefilter("always", InputWarning)
        yield


class Compiling(logging.Handler):
    """One line on a terminal when the first kernel is compiled."""

    def emit(self, record: logging.LogRecord) -> None:
        logging.getLogger(record.name).removeHandler(self)
        if sys.stderr.isatty():
            click.echo("Compiling kernels, once on this machine for such an input: a minute or so.", err=True)


@contextlib.contextmanager
def spoken_compiling() -> Iterator[None]:
    """A sign of life where a first run has to compile."""
    logger, handler = logging.getLogger("refengine.kernels"), Compiling()
    before = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.setLevel(before)
        logger.removeHandler(handler)


class Commands(click.Group):
    """A group whose commands live in modules of the same name."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        command: click.Command = import_module(f".{name}", __name__).command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and args[0] not in COMMANDS:
            raise click.UsageError(f"There is no command {args[0]!r}{nearest(args[0], COMMANDS)}.", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        with sentences():
            ctx = super().make_context(info_name, args, parent, **extra)
        if os.environ.get("NO_COLOR"):
            ctx.color = False
        return ctx

    def invoke(self, ctx: click.Context) -> Any:
        with sentences(), spoken_warnings(), spoken_compiling():
            return super().invoke(ctx)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="refengine")
def group() -> None:
    """The right answer of a linear-attention recurrence, with a bound on how wrong it can be.

    \b
    Example:
      refengine solve --sample
    """


def main() -> None:
    """The `refengine` command. It collects no cycles: a process is one command, and of a short one that is a third."""
    gc.disable()
    try:
        group(prog_name="refengine")
    finally:
        gc.freeze()


__all__ = ["Refusal", "group", "main"]
