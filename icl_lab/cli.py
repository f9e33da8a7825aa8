"""`icl-lab`: the command line. Exit status 0, 1 (a claim failed, a run failed or did not converge, results that could not be
written), 2 (misuse), 128 + the number of the signal that ended it.

Every verb imports what it needs when it is called, so that `icl-lab --help` answers without loading JAX. A mistake of
the user (an `IclLabError`, or a configuration that Hydra refuses) is one sentence on stderr, not a traceback.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import icl_lab
from icl_lab.core import interruption, streams
from icl_lab.core.errors import IclLabError, InvalidValueError, mistake_in
from icl_lab.core.progress import display
from icl_lab.runs import environment

MISUSE = 2

_RUN_HELP = "one training run, compared with theory; `run -m key=a,b,c` is a sweep (arguments: key=value, see `run --help`)"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
      argv: arguments after the program's name; None takes those of the process, which the command then is: signals end it,
        and its standard streams may lose their readers.

    Returns:
      The exit status.
    """
    if argv is not None:
        return _command(list(argv))
    streams.outlive_readers()
    with interruption.guard():
        try:
            status = _command(sys.argv[1:])
        except SystemExit as stop:  # --help, --version, or arguments that are none
            status = stop.code if isinstance(stop.code, int) else 0
        if (lost := streams.failure()) is not None and status == 0:
            print(f"icl-lab: standard output could not be written: {lost.strerror}.", file=sys.stderr)
            status = 1
        return status


def _command(arguments: list[str]) -> int:
    try:
        if arguments[:1] == ["run"]:
            return _run(arguments[1:])
        options = _parser().parse_args(arguments)
        environment.settle()
        return options.command(options)
    except Exception as error:
        mistake = mistake_in(error)
        if not isinstance(mistake, IclLabError):
            raise
        return _misuse(str(mistake))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="icl-lab", description="The theory lab for in-context learning.")
    parser.add_argument("--version", action="version", version=f"icl-lab {icl_lab.__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    verbs.add_parser("run", help=_RUN_HELP, add_help=False)

    claims = verbs.add_parser("claims", help="list the executable theorems: id, paper, statement, parameters")
    claims.add_argument("--status", help="only those that are this to their source: stated, corrected, refuted or extended")
    claims.add_argument("--json", action="store_true", help="as JSON on stdout")
    claims.set_defaults(command=_claims)

    verify = verbs.add_parser("verify", help="run claims and print every check, measured beside expected")
    verify.add_argument("patterns", nargs="*", metavar="ID", help="claim ids or globs (default: all)")
    verify.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="override a parameter; YAML syntax, may be repeated",
    )
    verify.add_argument("--json", metavar="PATH", help="write the results as JSON; - is stdout")
    verify.add_argument("--jobs", type=int, default=1, metavar="N", help="processes (default: 1)")
    verify.set_defaults(command=_verify)

    table = verbs.add_parser("table", help="many run folders as one table")
    table.add_argument("root", type=Path, metavar="RUN_ROOT")
    table.add_argument("-o", "--output", type=Path, metavar="FILE", help="FILE.csv or FILE.parquet (default: a summary here)")
    table.set_defaults(command=_table)

    identify = verbs.add_parser("identify", help="which in-context algorithm a trained model runs")
    identify.add_argument("folder", type=Path, metavar="RUN_FOLDER")
    identify.add_argument("--prompts", type=int, default=4096, metavar="N", help="fresh ones to judge on (default: 4096)")
    identify.add_argument("--seed", type=int, default=0, metavar="S", help="of the prompts (default: 0)")
    identify.add_argument("--json", metavar="PATH", help="write the result as JSON; - is stdout")
    identify.set_defaults(command=_identify)

    report = verbs.add_parser("report", help="claims and runs as one HTML page")
    report.add_argument("inputs", nargs="+", type=Path, metavar="INPUT", help="a file of `verify --json`, or a folder of runs")
    report.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="folder for index.html")
    report.set_defaults(command=_report)

    doctor = verbs.add_parser("doctor", help="versions, devices and precision that a run would use")
    doctor.set_defaults(command=_doctor)
    return parser


def _run(arguments: list[str]) -> int:
    with display("run"):
        from icl_lab.runs.hydra.launch import launch

        return launch(arguments)


def _claims(options: argparse.Namespace) -> int:
    import json

    from rich.markup import escape
    from rich.table import Table

    with display("claims"):
        from icl_lab.claims import registry
        from icl_lab.claims.claim import check_status
        from icl_lab.report.console import wide_console

        if options.status is not None:
            check_status(options.status)

        claims = [claim for claim in registry.listing() if options.status in (None, claim["status"])]
    if options.json:
        print(json.dumps(claims, indent=2))
        return 0
    table = Table(title=f"{len(claims)} claims", show_lines=True)
    for name in ("id", "paper", "source", "statement", "parameters"):
        table.add_column(name, overflow="fold")
    for claim in claims:
        parameters = ", ".join(f"{name}={entry['default']}" for name, entry in claim["parameters"].items())
        source = f"{claim['source']} ({claim['status']})"
        table.add_row(*map(escape, (claim["id"], claim["paper"], source, claim["statement"], parameters)))
    wide_console().print(table)
    return 0


def _verify(options: argparse.Namespace) -> int:
    settings = _settings(options.set)
    _try_json(options.json)
    from icl_lab.runs import cache

    cache.enable()
    so_far: list[dict[str, Any]] = []
    in_all = 0

    def take(_: int, total: int, entry: dict[str, Any]) -> None:
        nonlocal in_all
        in_all = total
        so_far.append(entry)

    def keep() -> str:
        entries = list(so_far)
        if not entries:
            return "no claim had ended"
        status = _give(entries, options.json, lambda: _print_checks(entries))
        place = f"in {options.json}" if options.json not in (None, "-") and status == 0 else "on standard output"
        return f"the results of {len(entries)} of {in_all} claims are {place}"

    with interruption.at_stop(keep):
        with display("verify"):
            from icl_lab.claims import verify

            entries = verify.run(options.patterns, settings, options.jobs, take)
        so_far[:] = entries
        written = _give(entries, options.json, lambda: _print_checks(entries))
    return max(written, 0 if verify.all_passed(entries) else 1)


def _settings(pairs: Sequence[str]) -> dict[str, Any]:
    """`--set name=value` pairs as a dict; values by the core schema of YAML 1.2."""
    import yaml

    from icl_lab.config import yaml12

    settings = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not (name and equals):
            raise InvalidValueError(f"`--set` takes NAME=VALUE; got {pair!r}.")
        try:
            settings[name] = yaml12.load(value)
        except yaml.YAMLError as error:
            raise InvalidValueError(
                f"`--set {name}` takes a value in YAML syntax; got {value!r}: {yaml12.problem(error)}."
            ) from None
    return settings


def _try_json(path: str | None) -> None:
    """Raise `InvalidValueError`, before anything runs, if `--json` cannot be written there."""
    if path not in (None, "-"):
        from icl_lab.report import outputs

        outputs.try_file(path, "--json")


def _give(content: Any, path: str | None, show: Callable[[], None]) -> int:
    """Show results on standard output and write them to the place of `--json`; if that is standard output, only there.

    Returns:
      1 if the file could not be written after all, which is said on stderr, else 0.
    """
    import json

    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    if path == "-":
        print(text, end="")
        return 0
    show()
    if path is None:
        return 0
    return _written("--json", path, lambda: Path(path).write_text(text, encoding="utf-8"))


def _written(name: str, path: str | Path, write: Callable[[], Any]) -> int:
    """Write results to a place that was tried before: 1, and a sentence on stderr, if it has become impossible."""
    try:
        write()
    except OSError as error:
        print(f"icl-lab: `{name}` {path} could not be written: {error.strerror}.", file=sys.stderr)
        return 1
    return 0


def _print_checks(entries: list[dict[str, Any]]) -> None:
    import collections

    from rich.markup import escape
    from rich.table import Table

    from icl_lab.report.console import wide_console
    from icl_lab.report.results import UNTESTED
    from icl_lab.report.tables import short, verdict_of

    table = Table()
    for name in ("claim", "check", "measured", "expected", "error", "tolerance", "verdict"):
        table.add_column(name, overflow="fold")
    for entry in entries:
        for check in entry["checks"]:
            verdict = "[green]passed[/]" if check["passed"] else "[red]FAILED[/]"
            if entry["verdict"] in UNTESTED:
                verdict = f"[yellow]{verdict_of(entry)}[/]"
            numbers = (short(check[name]) for name in ("measured", "expected", "error", "tolerance"))
            table.add_row(*map(escape, (entry["id"], check["name"], *numbers)), verdict)
        table.add_section()
    console = wide_console()
    console.print(table)
    for entry in entries:
        if "reason" in entry:
            console.print(f"[red]{escape(entry['id'])} {verdict_of(entry)}:[/] {escape(entry['reason'])}", highlight=False)
        if "remark" in entry:
            console.print(f"{escape(entry['id'])} {escape(entry['remark'])}", highlight=False)
    counts = collections.Counter(entry["verdict"] for entry in entries)
    words = {"failed": "failed", "not_converged": "did not converge", "refused": "were refused"}
    others = "".join(f", {counts[verdict]} {said}" for verdict, said in words.items() if counts[verdict])
    seconds = sum(entry["seconds"] for entry in entries)
    console.print(f"{counts['passed']} of {len(entries)} claims passed{others} in {seconds:.1f} s")


def _table(options: argparse.Namespace) -> int:
    with display("table"):
        from icl_lab.report import run_table
        from icl_lab.runs import table

        if options.output is not None:
            run_table.check_file(options.output)
        rows = table.collect(options.root)
    status = 0
    if options.output is not None:
        status = _written("-o", options.output, lambda: run_table.write(rows, options.output))
    if options.output is None or status:
        run_table.show(rows)
    else:
        print(f"{len(rows)} runs written to {options.output}")
    return max(status, _say_damaged(run_table.damaged(rows)))


def _say_damaged(sentences: Sequence[str]) -> int:
    """Name on stderr what could not be read of the runs; the exit status."""
    for sentence in sentences:
        print(f"icl-lab: {sentence}", file=sys.stderr)
    return 1 if sentences else 0


def _identify(options: argparse.Namespace) -> int:
    _try_json(options.json)
    from icl_lab.runs import cache

    cache.enable()
    with display("identify"):
        from icl_lab.runs import identify

        found = identify.find(options.folder, options.prompts, options.seed)
    content = {"run": str(options.folder), "seed": options.seed, **found.plain()}
    return _give(content, options.json, lambda: identify.show(found))


def _report(options: argparse.Namespace) -> int:
    with display("report"):
        from icl_lab.runs import report

        target, damaged = report.write(options.inputs, options.output)
    print(f"{target} written, {target.stat().st_size / 1e6:.1f} MB")
    return _say_damaged(damaged)


def _doctor(_: argparse.Namespace) -> int:
    import json

    from icl_lab.config.paths import config_dir
    from icl_lab.runs import cache

    folder = cache.enable()
    with display("doctor"):
        from icl_lab.core import precision
        from icl_lab.runs import provenance

        with precision.float64():
            report = provenance.describe()
    places = {"configs": str(config_dir()), "compilation_cache": None if folder is None else str(folder)}
    print(json.dumps({**report, **places}, indent=2))
    return 0


def _misuse(sentence: str) -> int:
    print(f"icl-lab: {sentence}", file=sys.stderr)
    return MISUSE


if __name__ == "__main__":
    sys.exit(main())
