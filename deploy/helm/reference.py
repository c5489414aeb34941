"""What the chart takes from the proxy, the schema of its `config`, and what the docs take from it, a table of values.

`python deploy/helm/reference.py` writes both anew, as `make reference` does; with `--check` it only tells what is not
up to date, and ends with 1 then.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any, Final

import yaml

from proxy.config.reference import schema


_CHART: Final = Path(__file__).parent / "c8y-realtime-proxy"
SCHEMA: Final = _CHART / "values.schema.json"
VALUES: Final = _CHART / "values.yaml"
PAGE: Final = Path(__file__).parents[2] / "docs/howto-helm.md"

_BEGIN: Final = "<!-- The table is made from values.yaml by `make reference`. -->\n"
_END: Final = "<!-- Its end. -->\n"
_KEY: Final = re.compile(r"( *)([A-Za-z_]+):( .*)?")
_LONGEST_DEFAULT: Final = 60


def values_schema(own: str) -> str:
    """The chart's own schema, with the proxy's for what is in `config`."""
    tree = json.loads(schema())
    definitions = tree.pop("$defs") | {"Config": tree}
    return json.dumps(json.loads(own) | {"$defs": definitions}, indent=2) + "\n"


def values_table(values: str) -> str:
    """A row for each commented value: its name, its default, and the comment above it."""
    told = comments(values)
    tree = yaml.safe_load(values)
    rows = [
        f"| `{path}` | {'' if _is_section(path, told) else _default(_at(path, tree))} | {_in_a_cell(comment)} |"
        for path, comment in told.items()
    ]
    return "\n".join(["| value | default | |", "|---|---|---|", *rows, ""])


def page_with(table: str, page: str) -> str:
    """The page of the docs with this table in it."""
    before, _, rest = page.partition(_BEGIN)
    return before + _BEGIN + "\n" + table + "\n" + _END + rest.partition(_END)[2]


def comments(values: str) -> dict[str, str]:
    """The comment above each key that has one, as one line, by the key's dotted path."""
    found: dict[str, str] = {}
    parents: list[tuple[int, str]] = []
    comment: list[str] = []
    for line in values.splitlines():
        if line.lstrip().startswith("# "):
            comment.append(line.strip()[2:])
            continue
        if key := _KEY.fullmatch(line):
            indent = len(key[1])
            parents = [*(parent for parent in parents if parent[0] < indent), (indent, key[2])]
            if comment:
                found[".".join(name for _, name in parents)] = " ".join(comment)
        comment = []
    return found


def _is_section(path: str, told: dict[str, str]) -> bool:
    return any(other.startswith(f"{path}.") for other in told)


def _at(path: str, tree: dict[str, Any]) -> object:
    value: Any = tree
    for name in path.split("."):
        value = value[name]
    return value


def _default(value: object) -> str:
    if value in ("", None, [], {}):
        return ""
    written = json.dumps(value)
    return f"`{written.strip(chr(34))}`" if len(written) <= _LONGEST_DEFAULT else "see values.yaml"


def _in_a_cell(text: str) -> str:
    return text.replace("|", "\\|")


def _main(arguments: list[str]) -> int:
    schema_text, values, page = (path.read_text(encoding="utf-8") for path in (SCHEMA, VALUES, PAGE))
    made = {SCHEMA: values_schema(schema_text), PAGE: page_with(values_table(values), page)}
    stale = [path for path, text in made.items() if path.read_text(encoding="utf-8") != text]
    for path in stale:
        if "--check" in arguments:
            print(f"{path.name} is not up to date: run `make reference`", file=sys.stderr)
        else:
            path.write_text(made[path], encoding="utf-8")
    return bool(stale) if "--check" in arguments else 0


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
