"""What the site shows beside docs/: pages of the rest of the repository, and the files that pages link to.

Links are written as they are right in the repository, and are led here to where the site has their target. A file that
is linked to becomes a page that shows it; a folder has none, so its link becomes plain text. MkDocs calls the functions
by their names.
"""

import re
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from posixpath import join, normpath, relpath
from typing import Any, Final

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page


ROOT: Final = Path(__file__).parents[2]
DOCS: Final = "docs/"
AS_THEY_ARE: Final = (".svg", ".png")
LANGUAGES: Final = {
    ".toml": "toml",
    ".yaml": "yaml",
    ".json": "json",
    ".service": "ini",
    ".socket": "ini",
    ".py": "python",
}

_LINK: Final = re.compile(r"\[(?P<text>[^\]]*)\]\((?![a-z+]+:|#)(?P<target>[^)#\s]+)(?P<anchor>#[^)\s]*)?\)")
_SHOWN: Final = """\
---
search: {{exclude: true}}
---
# {path}

````{language}
{text}````
"""
_CELL: Final = re.compile(r"<td\b.*?</td>", re.DOTALL)
_CODE: Final = re.compile(r"(?<=<code>)[^<]{30,}")
_JOINT: Final = re.compile(r"(?<=[_./:-])(?=\w{2})")
_HUMP: Final = re.compile(r"(?<=[a-z])[A-Z]")
_FETCHED: Final = re.compile(
    r"""<(?:script|img|iframe|source|link)\b[^>]*\b(?:src|href)=["']?(?:https?:)?//|url\(["']?(?:https?:)?//"""
)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put pages in the place of each entry with a star."""
    named = {entry for entry in _entries(config.nav) if "*" not in entry}
    pages = sorted(file.name for file in (ROOT / DOCS).glob("*.md") if file.name not in named)
    config.nav = _spread(config.nav, pages)
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what is in the navigation or linked to, and not in docs/."""
    unread = [file.src_uri for file in files.documentation_pages()]
    unread += [entry for entry in _entries(config.nav) if files.get_file_from_path(entry) is None]
    while unread:
        uri = unread.pop()
        path = _in_repository(uri)
        if files.get_file_from_path(uri) is None:
            if not (ROOT / path).is_file():
                continue  # MkDocs says so
            files.append(File.generated(config, uri, content=(ROOT / path).read_text(encoding="utf-8")))
        for target in _targets(path):
            if (uri := _in_site(target)) and files.get_file_from_path(uri) is None:
                if uri == target and uri.endswith(".md"):
                    unread.append(uri)
                else:
                    files.append(_shown(config, target, uri))
    return files


def on_page_markdown(markdown: str, page: Page, files: Files, **_: object) -> str:
    """Lead links to where the site has their target."""
    here = _in_repository(page.file.src_uri)

    def led(link: re.Match[str]) -> str:
        path = _resolved(here, link["target"])
        if (ROOT / path).is_dir():
            return link["text"]
        uri = _in_site(path)
        if not uri or files.get_file_from_path(uri) is None:
            return link[0]  # MkDocs says that it is not there
        target = relpath(uri, str(Path(page.file.src_uri).parent))
        return f"[{link['text']}]({target}{link['anchor'] or ''})"

    return _LINK.sub(led, markdown)


def on_page_content(html: str, **_: object) -> str:
    """Let long names break at their joints where they stand in tables, and nowhere else."""
    return _CELL.sub(lambda cell: _CODE.sub(lambda code: _JOINT.sub("<wbr>", code[0]), cell[0]), html)


def on_post_build(config: MkDocsConfig) -> None:
    """Raises PluginError where a page has something fetched from elsewhere."""
    for file in Path(config.site_dir).rglob("*"):
        if file.suffix in {".html", ".css"} and (found := _FETCHED.search(file.read_text(encoding="utf-8"))):
            raise PluginError(f"{file} fetches from elsewhere, and the site has to stand alone: {found[0]}")


def _entries(nav: Any) -> Iterator[str]:
    """The pages that the navigation names."""
    if isinstance(nav, str):
        yield nav
    else:
        for part in nav.values() if isinstance(nav, dict) else nav:
            yield from _entries(part)


def _spread(nav: list[Any], pages: list[str]) -> list[Any]:
    spread: list[Any] = []
    for entry in nav:
        if isinstance(entry, dict):
            section = {name: _spread(of, pages) if isinstance(of, list) else of for name, of in entry.items()}
            spread += [section] if all(section.values()) else []  # nothing may be called so yet
        elif "*" in entry:
            spread += [{_short_title(page): page} for page in pages if fnmatch(page, entry)]
        else:
            spread.append(entry)
    return spread


def _short_title(page: str) -> str:
    """Its title, without what the whole section is called by; the name of an alert in words of its own."""
    title = (ROOT / DOCS / page).read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")
    alert = title.removeprefix("C8yRealtimeProxy")
    title = title.removeprefix("How to ") if alert == title else _HUMP.sub(lambda hump: f" {hump[0].lower()}", alert)
    return title[0].upper() + title[1:]


def _in_repository(uri: str) -> str:
    """The path of a page in the repository."""
    return DOCS + uri if (ROOT / DOCS / uri).is_file() else uri


def _in_site(path: str) -> str | None:
    """Where the site has a file of the repository; None for a folder, and for what is not there."""
    if not (ROOT / path).is_file():
        return None
    if path.startswith(DOCS):
        return path.removeprefix(DOCS)
    return path if path.endswith((".md", *AS_THEY_ARE)) else f"{path}.md"


def _shown(config: MkDocsConfig, path: str, uri: str) -> File:
    """A file of the repository as the site has it: a picture as it is, anything else on a page of its own."""
    if uri == path:
        return File.generated(config, uri, abs_src_path=str(ROOT / path), inclusion=InclusionLevel.NOT_IN_NAV)
    text = (ROOT / path).read_text(encoding="utf-8")
    language = LANGUAGES.get(Path(path).suffix, "text")
    content = _SHOWN.format(path=path, language=language, text=text)
    return File.generated(config, uri, content=content, inclusion=InclusionLevel.NOT_IN_NAV)


def _targets(path: str) -> list[str]:
    """What a page links to, by its path in the repository."""
    return [_resolved(path, link["target"]) for link in _LINK.finditer((ROOT / path).read_text(encoding="utf-8"))]


def _resolved(path: str, target: str) -> str:
    return normpath(join(str(Path(path).parent), target))
