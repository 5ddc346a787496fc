"""What do all commands share? Failures of one line, whatever was raised, and numbers that make sense."""

import math
import os
from typing import Any

import click


class Failure(click.ClickException):
    """One line on standard error, exit code 1."""

    def show(self, file: Any = None) -> None:
        """Tell it, without click's usage."""
        click.echo(f"dcodec: {self.message}", err=True)


class Shell(click.Group):
    """Turns what a command raises into a `Failure`, here and not in `main`, so that tests see the same."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise  # click's own; a reader that has seen enough (`| head`) is no error to tell
        except (Exception, KeyboardInterrupt) as error:
            if os.environ.get("DCODEC_TRACEBACK") == "1":
                raise
            raise Failure(_describe(error)) from error


def _describe(error: BaseException) -> str:
    text = " ".join(str(error).split())
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    if isinstance(error, MemoryError):
        return f"not enough memory ({text})" if text else "not enough memory"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
    if isinstance(error, (ValueError, OSError)) and text:
        return text
    return f"unexpected {type(error).__name__}: {text} (DCODEC_TRACEBACK=1 shows where)"


class Finite(click.FloatRange):
    """A finite number, zero or more."""

    def __init__(self, *, min_open: bool = False) -> None:
        super().__init__(min=0, min_open=min_open)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number that was typed."""
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


class Positive(Finite):
    """A finite number above zero."""

    def __init__(self) -> None:
        super().__init__(min_open=True)
