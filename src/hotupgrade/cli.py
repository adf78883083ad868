"""The command ``hotupgrade``.

Exit codes: 0 done (or nothing to do), 1 a bug in hotupgrade, 2 wrong use, 3 refused, 4 not possible now and the target
unchanged.  With ``--json`` exactly one document goes to standard output; words and progress go to standard error.
"""

from __future__ import annotations

import gc
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import msgspec

from hotupgrade import __version__
from hotupgrade.errors import HotUpgradeError, UsageError
from hotupgrade.report import words
from hotupgrade.upgrade import documents

Document = dict[str, Any]

_JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON document on standard output.")
_PID = click.argument("pid", type=click.IntRange(min=1))
_FILES = click.argument("new", nargs=-1, type=click.Path(path_type=Path))
_MODULE = click.option(
    "--module",
    "modules",
    multiple=True,
    metavar="NAME=FILE",
    help="Replace the module NAME by FILE, whatever that calls itself.",
)
_TIMEOUT = click.option(
    "--timeout", type=click.FloatRange(min=0.1, max=3600), default=10.0, show_default=True, help="Seconds to try for."
)
_WHOLE = click.option("--whole", is_flag=True, help="Redirect every function, not only those that changed.")
_TRUST = click.option(
    "--trust-layout", is_flag=True, help="Without debug information, believe that types are the same in both builds."
)
_PROFILES = click.option(
    "--profile",
    "profiles",
    multiple=True,
    type=click.Path(path_type=Path),
    help="A file that says how threads leave loops that never return (docs/loops.md).",
)
_DEBUG_DIRS = click.option(
    "--debug-dir",
    "debug_dirs",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="DIR|FILE.deb",
    help="Where the debug information of stripped builds is: a folder, or a -dbgsym package.",
)
_DEBUGINFOD = click.option(
    "--debuginfod",
    multiple=True,
    metavar="URL",
    help="A server to ask for debug information, in place of those in DEBUGINFOD_URLS.",
)
_SKIP = click.option("--skip-refused", is_flag=True, help="Leave out the modules that are refused, upgrade the others.")
_IMPORTS = click.option("--imports", is_flag=True, help="Also rewrite the import slots of the other modules.")


class _Group(click.Group):
    """Answers wrong use with a document too, where one was asked for."""

    def main(self, args: Sequence[str] | None = None, *rest: Any, **more: Any) -> Any:
        words = list(sys.argv[1:] if args is None else args)
        if "--json" not in words:
            return super().main(words, *rest, **more)
        try:
            return super().main(words, *rest, **{**more, "standalone_mode": False})
        except click.ClickException as error:
            command = next((word for word in words if word in self.commands), "")
            problem = UsageError(error.format_message())
            sys.stdout.write(msgspec.json.encode(documents.failure(command, problem)).decode() + "\n")
            error.show()
            sys.exit(problem.exit_code)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def main() -> None:
    """Upgrade a running process to a newer build of its code, without restarting it."""


def _run(command: str, as_json: bool, work: Callable[[], Document]) -> None:
    """The one place where errors become words and exit codes."""
    gc.disable()  # a short life and hundreds of thousands of small objects: collecting would only cost time
    try:
        document = work()
    except HotUpgradeError as error:
        document = documents.failure(command, error)
    except KeyboardInterrupt:
        raise
    except Exception as error:
        traceback.print_exc()
        document = documents.failure(command, HotUpgradeError(f"this is a bug in hotupgrade: {error!r}"))
    if as_json:
        sys.stdout.write(msgspec.json.encode(document).decode() + "\n")
        for reason in document.get("reasons", []):
            click.echo(f"hotupgrade: {reason['text']}", err=True)
    else:
        words.show(document)
    sys.exit(document["exit_code"])


def _named(pairs: tuple[str, ...]) -> dict[str, Path]:
    named = {}
    for pair in pairs:
        name, separator, path = pair.partition("=")
        if not (name and separator and path):
            raise UsageError(f"--module wants NAME=FILE, not {pair!r}")
        named[name] = Path(path)
    return named


@main.command()
@_PID
@_JSON
def inspect(pid: int, as_json: bool) -> None:
    """Show the modules and threads of a process, and what could be upgraded."""

    def work() -> Document:
        from hotupgrade.upgrade.look import inspect as look

        return look(pid)

    _run("inspect", as_json, work)


@main.command()
@_PID
@_FILES
@_MODULE
@_WHOLE
@_TRUST
@_PROFILES
@_DEBUG_DIRS
@_DEBUGINFOD
@_SKIP
@click.option("--explain", is_flag=True, help="Also say what the verdict rests on, and what it cannot tell.")
@_JSON
def check(
    pid: int,
    new: tuple[Path, ...],
    modules: tuple[str, ...],
    whole: bool,
    trust_layout: bool,
    profiles: tuple[Path, ...],
    debug_dirs: tuple[Path, ...],
    debuginfod: tuple[str, ...],
    skip_refused: bool,
    explain: bool,
    as_json: bool,
) -> None:
    """Say whether a process can be upgraded to these builds, and why not.  Touches nothing.

    Without NEW: to whatever has taken the place of its files on disk.
    """

    def work() -> Document:
        from hotupgrade.binary.cache import default_cache
        from hotupgrade.plan.options import PlanOptions
        from hotupgrade.upgrade.perform import Settings
        from hotupgrade.upgrade.perform import check as judge

        plan = PlanOptions(whole=whole, trust_layout=trust_layout)
        settings = Settings(
            plan=plan,
            explain=explain,
            profiles=profiles,
            debug_dirs=debug_dirs,
            debuginfod=debuginfod,
            skip_refused=skip_refused,
        )
        return judge(pid, new, _named(modules), settings, default_cache())

    _run("check", as_json, work)


@main.command()
@_PID
@_FILES
@_MODULE
@click.option("--dry-run", is_flag=True, help="Make the whole plan, but change nothing.")
@_WHOLE
@_IMPORTS
@_TRUST
@_PROFILES
@_DEBUG_DIRS
@_DEBUGINFOD
@_SKIP
@_TIMEOUT
@click.option("--measure-empty", is_flag=True, help="Make a stop without edits first, to compare with.")
@_JSON
def upgrade(
    pid: int,
    new: tuple[Path, ...],
    modules: tuple[str, ...],
    dry_run: bool,
    whole: bool,
    imports: bool,
    trust_layout: bool,
    profiles: tuple[Path, ...],
    debug_dirs: tuple[Path, ...],
    debuginfod: tuple[str, ...],
    skip_refused: bool,
    timeout: float,
    measure_empty: bool,
    as_json: bool,
) -> None:
    """Upgrade a running process to these builds, all of them in one stop.

    Without NEW: to whatever has taken the place of its files on disk.
    """

    def work() -> Document:
        from hotupgrade.binary.cache import default_cache
        from hotupgrade.plan.options import PlanOptions
        from hotupgrade.upgrade.perform import Settings
        from hotupgrade.upgrade.perform import upgrade as perform

        plan = PlanOptions(whole=whole, imports=imports, trust_layout=trust_layout)
        settings = Settings(
            plan,
            timeout,
            dry_run,
            measure_empty,
            profiles=profiles,
            debug_dirs=debug_dirs,
            debuginfod=debuginfod,
            skip_refused=skip_refused,
        )
        return perform(pid, new, _named(modules), settings, default_cache())

    _run("upgrade", as_json, work)


@main.command()
@_PID
@_TIMEOUT
@_JSON
def rollback(pid: int, timeout: float, as_json: bool) -> None:
    """Return a process to the code that it ran before the last upgrade."""

    def work() -> Document:
        from hotupgrade.upgrade.rollback import rollback as undo

        return undo(pid, timeout)

    _run("rollback", as_json, work)


@main.command()
@_PID
@_JSON
def status(pid: int, as_json: bool) -> None:
    """Show the generations of a process: what is in force, and how long each break was."""

    def work() -> Document:
        from hotupgrade.upgrade.look import status as look

        return look(pid)

    _run("status", as_json, work)


@main.command()
@_PID
@_JSON
def symbols(pid: int, as_json: bool) -> None:
    """Say how gdb and perf find the names of the code that upgrades brought in."""

    def work() -> Document:
        from hotupgrade.upgrade.look import symbols as look

        return look(pid)

    _run("symbols", as_json, work)


@main.command()
@_JSON
def history(as_json: bool) -> None:
    """Show what was upgraded and rolled back on this machine."""

    def work() -> Document:
        from hotupgrade.upgrade.look import history as look

        return look()

    _run("history", as_json, work)


@main.command()
def include() -> None:
    """Print the folder of hotupgrade.h, for -I: what a build needs that migrates its own state."""
    click.echo(Path(__file__).parent / "include")


@main.command(add_help_option=False, context_settings={"ignore_unknown_options": True, "allow_extra_args": True})
@click.pass_context
def compare(context: click.Context) -> None:
    """Upgrade an Open vSwitch in several ways on the same traffic, and compare."""
    from hotupgrade.vswitch.compare.__main__ import main as run

    run.main(args=context.args, prog_name="hotupgrade compare")


if __name__ == "__main__":
    main()
