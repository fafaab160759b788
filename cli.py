"""The ``restill`` command line: the commands, and how they end."""

from __future__ import annotations

import logging
import os
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from .commands import ask, data, distil, eval_retrieval, improve, jobs, questions, report
from .commands.workers import ARGUMENTS
from .models.errors import RestillError


class _Commands(TyperGroup):
    """Turns failures that a user can mend into one line on stderr, and Ctrl-C into a word on how to go on."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Keep the words of the command line, for commands that hand them on to workers."""
        ctx.meta[ARGUMENTS] = list(args)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run a command; an error becomes one line on stderr and an exit code."""
        try:
            return super().invoke(ctx)
        except RestillError as error:
            self._fail(str(error))
        except KeyboardInterrupt:
            typer.echo("interrupted; resume by running the same command", err=True)
            raise typer.Exit(130) from None
        except BrokenPipeError:  # `restill show RUN | head`: the reader has had enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(0) from None
        except OSError as error:
            if error.strerror is None:
                raise
            self._fail(f"{error.filename}: {error.strerror}" if error.filename else error.strerror)

    @staticmethod
    def _fail(message: str) -> None:
        if os.environ.get("RESTILL_DEBUG"):
            raise
        from .console import printable

        typer.secho(f"error: {printable(message)}", fg="red", err=True)
        raise typer.Exit(1) from None


app = typer.Typer(
    cls=_Commands,
    name="restill",
    help="Search agents on a JAX runtime that log what they do and train themselves on it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(data.pull)
app.command()(data.index)
app.command()(ask.ask)
app.command()(questions.questions)
app.command()(jobs.rollout)
app.command()(improve.improve)
app.command()(report.report)
app.command()(distil.distill)
app.command("eval")(jobs.evaluate)
app.command("eval-retrieval")(eval_retrieval.eval_retrieval)
app.command()(ask.show)
app.command()(data.world)
app.command()(data.task)


def _version(wanted: bool) -> None:
    if wanted:
        from . import __version__

        typer.echo(f"restill {__version__}")
        raise typer.Exit()


@app.callback(
    epilog="Models and compiled programs are kept under $RESTILL_HOME (~/.cache/restill). Every long command "
    "resumes when it is run again."
)
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


class _Warn(logging.Handler):
    """Says what restill logs as the other warnings are said."""

    def emit(self, record: logging.LogRecord) -> None:
        """One line."""
        from .console import warn

        warn(record.getMessage())


def main() -> None:
    """Run the command line; the entry point of the ``restill`` script."""
    log = logging.getLogger("restill")
    log.addHandler(_Warn(logging.WARNING))
    log.propagate = False  # libraries give the root handlers of their own
    app()


if __name__ == "__main__":
    main()
