"""The page of the docs on the command line, made of what reads it: `python -m proxy.cli.reference` prints it."""

import argparse
from collections.abc import Iterator

from proxy.cli.commands import command_line


_INTRODUCTION = """\
# Commands

`c8y-realtime-proxy --help` lists the commands, and each of them has a `--help` of its own;
`c8y-realtime-proxy --version` prints the version. Options are taken by their whole names only. No secret is ever given
as an argument, and nothing that was typed in a wrong place is repeated. This page is generated from the code by
`make reference`.

| exit code | means |
|---|---|
| 0 | done; `run` and `demo` were told to stop by SIGTERM or SIGINT, and did |
| 1 | it could not be done, or what was looked at is not well; the reason is on standard error |
| 2 | the configuration has a problem, or `clients` cannot open or replace its file; what was asked for cannot be, \
as with a name that is taken or not there; or the command line is not understood |

`run` reads its configuration again on SIGHUP ([rotation](rotation.md#sighup)). What stands in a configuration, and how
the environment takes the place of a file, is told in [configuration](configuration.md).
"""


def reference() -> str:
    """The reference page in Markdown: a section for each command."""
    return _INTRODUCTION + "".join(_sections(command_line()))


def _sections(parser: argparse.ArgumentParser) -> Iterator[str]:
    for command, summary in _commands(parser):
        if any(_commands(command)):
            yield from _sections(command)
        else:
            yield "".join(_section(command, summary))


def _section(command: argparse.ArgumentParser, summary: str) -> Iterator[str]:
    yield f"\n## {command.prog.partition(' ')[2]}\n\n"
    yield f"```\n{_usage(command)}\n```\n\n{summary[0].upper()}{summary[1:]}.\n"
    told = [action for action in command._actions if action.dest != "help"]  # noqa: SLF001 - it has no other way to ask
    if told:
        yield "\n| argument | |\n|---|---|\n"
    for action in told:
        is_required = action.required and bool(action.option_strings)
        said = "; ".join(filter(None, ["required" if is_required else "", action.help]))
        yield f"| `{_names(action)}` | {said} |\n"


def _commands(parser: argparse.ArgumentParser) -> Iterator[tuple[argparse.ArgumentParser, str]]:
    """The commands below one, each with what is said of it."""
    for action in parser._actions:  # noqa: SLF001 - see above
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001 - see above
            for pseudo in action._choices_actions:  # noqa: SLF001 - see above
                yield action.choices[pseudo.dest], pseudo.help or ""


def _usage(command: argparse.ArgumentParser) -> str:
    """The usage in one line, without what every command has."""
    words = command.format_usage().removeprefix("usage: ").replace(" [-h]", "")
    return " ".join(words.split())


def _names(action: argparse.Action) -> str:
    value = "" if action.nargs == 0 else str(action.metavar)
    return " ".join(filter(None, [*action.option_strings[-1:], value]))


if __name__ == "__main__":
    print(reference(), end="")
