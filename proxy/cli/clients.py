"""The clients of a configuration file: add, list and remove."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from proxy.cli.options import Commands, add_config
from proxy.cli.table import table
from proxy.config import ClientSettings, Config, GrantSettings, clients_in, credentials_for, editing, variable_of
from proxy.gate import keys
from proxy.gate.endpoints import ENDPOINTS


def add_parser(commands: Commands) -> None:
    """What can be said of clients on the command line."""
    clients = commands.add_parser("clients", help="add, list and remove the clients of a configuration file")
    actions = clients.add_subparsers(dest="action", required=True)
    add = actions.add_parser("add", help="make a key for a client, print it, and write its digest into the file")
    add.add_argument("name", metavar="NAME", help="letters, digits, - and _")
    add_config(add, without="without it, what to write there is printed")
    listing = actions.add_parser("list", help="print the clients, what proves them, and what they may do")
    add_config(listing, without=None)
    remove = actions.add_parser("remove", help="take a client out of the file, with all that it was granted")
    remove.add_argument("name", metavar="NAME")
    add_config(remove, without=None)


def run(options: argparse.Namespace) -> int:
    """Raises CannotEdit and BadConfiguration."""
    if options.action == "list":
        print(_table(clients_in(options.config)))
        return 0
    if not keys.NAME.fullmatch(options.name):
        raise editing.CannotEdit("NAME: expected 1 to 64 letters, digits, - and _")
    if options.action == "add":
        _add(options.name, options.config)
    else:
        editing.remove(options.config, options.name, os.environ)
        print(
            f"{options.name} is removed. Its key is good until the proxy reads its configuration again (SIGHUP)",
            file=sys.stderr,
        )
    if options.config and os.environ.get(variable_of("clients")):
        print(f"{variable_of('clients')} is set, and its clients count in place of those of the file", file=sys.stderr)
    return 0


def _add(name: str, file: Path | None) -> None:
    """Make a key and tell it, alone on standard output; what to do with it goes to standard error."""
    key = keys.generated(name)
    if file is not None:
        editing.add(file, name, keys.stored(key), os.environ)
    print(key, flush=True)
    if file is None:
        print(f"For the configuration file:\n\n{editing.block(name, keys.stored(key))}", file=sys.stderr)
    print(
        f"The key of {name} is what was printed on standard output. It is not kept, and cannot be shown again.\n"
        "It is good once the proxy has read its configuration again (SIGHUP), and sent as either of\n"
        "  Authorization: Bearer KEY          where gate.identity has bearer\n"
        f"  {name} as user, KEY as password    where it has basic",
        file=sys.stderr,
    )


def _table(config: Config) -> str:
    """A table of the clients, without anything that is secret."""
    rows = [("NAME", "PROVED BY", "CREDENTIAL", "MAY")]
    rows += [
        (client.name, _proofs(client), ", ".join(credentials_for(config, client)), _granted(client.grants))
        for client in config.clients
    ]
    return table(rows)


def _proofs(client: ClientSettings) -> str:
    proofs = ["a key"] if client.key else []
    proofs += [f"certificate {name}" for name in client.certificates]
    proofs += [f"subject {name}" for name in client.subjects]
    return ", ".join(proofs) or "nothing"


def _granted(grants: Sequence[GrantSettings] | None) -> str:
    if grants is None:
        return "as gate.grants says"
    told = []
    for grant in grants:
        kinds = {"subscribe": grant.subscribe, "publish": grant.publish, "call": grant.call}
        where = "" if set(grant.endpoints) == set(ENDPOINTS) else f" at {', '.join(grant.endpoints)}"
        told += [f"{kind} {', '.join(patterns)}{where}" for kind, patterns in kinds.items() if patterns]
    return "; ".join(told) or "nothing"
