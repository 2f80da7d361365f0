"""What the ``msfl data`` commands share: how they show progress, print, and say what is not installed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from msfl.imaging.record import NotADataset

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
T = TypeVar("T")


@contextmanager
def extra() -> Iterator[None]:
    """What a site without the extra `data` is told. Raises CannotProceed."""
    from msfl.policies.refusals import CannotProceed

    try:
        yield
    except ModuleNotFoundError as error:
        raise CannotProceed(f"This needs the package {error.name}. Run: pip install 'msfl[data]'") from error


def with_progress(work: Callable[[Callable[[str, int, int], None]], T]) -> T:
    """One bar for each thing that takes long, as they come."""
    with progress() as bar:
        steps: dict[str, TaskID] = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in steps:
                steps[what] = bar.add_task(what, total=total)
            bar.update(steps[what], completed=done, total=total)

        return work(show)


def print_problems(error: NotADataset) -> None:
    for problem in error.report.problems:
        errors().print(problem.line(), style="red", markup=False, highlight=False)


def errors() -> Console:
    return Console(stderr=True, soft_wrap=True)


def progress() -> AbstractContextManager[Progress]:
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}"), TimeRemainingColumn())
    return Progress(*columns, console=errors(), transient=True)


def show(bar: Progress, step: TaskID, done: int, total: int) -> None:
    bar.update(step, completed=done, total=total)
