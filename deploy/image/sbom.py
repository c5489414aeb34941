"""Writes the bill of materials of the image, in CycloneDX.

    sbom.py ENVIRONMENT DIRECTORY REPORT...

`cyclonedx-py` tells what is in ENVIRONMENT. Added are what pip reported of the wheels that it installed, their digests
(and not where they came from, which is the affair of who builds); Debian's packages of which there is something in
DIRECTORY; and the interpreter, where it is not one of those. Two builds of the same make the same bill.
"""

import json
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packageurl import PackageURL


NAME: Final = "c8y-realtime-proxy"
WHERE: Final = f"usr/share/sbom/{NAME}.cdx.json"


def digests_of(reports: list[Path]) -> dict[tuple[str, str], str]:
    """The SHA-256 of each wheel that pip installed, by name and version."""
    installed = [each for report in reports for each in json.loads(report.read_bytes())["install"]]
    return {
        (each["metadata"]["name"], each["metadata"]["version"]): each["download_info"]["archive_info"]["hashes"][
            "sha256"
        ]
        for each in installed
    }


def of_python(environment: Path, digests: dict[tuple[str, str], str]) -> dict[str, Any]:
    """The bill of the environment alone. A distribution that pip did not report is a KeyError."""
    tool = Path(sys.executable).with_name("cyclonedx-py")
    command = [tool, "environment", "--output-reproducible", "--spec-version", "1.6", environment / "bin/python3"]
    bill: dict[str, Any] = json.loads(
        subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout  # noqa: S603 - our own words
    )
    for component in bill["components"]:
        digest = digests[component["name"], component["version"]]
        component["hashes"] = [{"alg": "SHA-256", "content": digest}]
        references = component.get("externalReferences", [])
        component["externalReferences"] = [each for each in references if not each["url"].startswith("file:")]
    return bill


def of_debian(directory: Path) -> Iterator[dict[str, Any]]:
    """Debian's packages, as dpkg describes them. Their licences are beside their names in usr/share/doc."""
    release = platform.freedesktop_os_release()
    for stanza in (directory / "var/lib/dpkg/status").read_text(encoding="utf-8").strip().split("\n\n"):
        fields = dict(line.partition(": ")[::2] for line in stanza.splitlines() if not line.startswith(" "))
        name, version, arch = (fields[field] for field in ("Package", "Version", "Architecture"))
        where = {"arch": arch, "distro": f"{release['ID']}-{release['VERSION_ID']}"}
        url = PackageURL("deb", release["ID"], name, version, where).to_string()
        yield {"bom-ref": url, "type": "library", "name": name, "version": version, "purl": url}


def of_the_interpreter(debian: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """CPython, unless it is Debian's own."""
    if any(each["name"].startswith("libpython3") for each in debian):
        return []
    version = platform.python_version()
    url = PackageURL("generic", None, "python", version).to_string()
    licences = [{"license": {"id": "PSF-2.0"}}]
    return [
        {"bom-ref": url, "type": "library", "name": "python", "version": version, "purl": url, "licenses": licences}
    ]


def main(environment: Path, directory: Path, *reports: Path) -> None:
    digests = digests_of(list(reports))
    bill = of_python(environment, digests)
    debian = list(of_debian(directory))
    bill["components"] += [*debian, *of_the_interpreter(debian)]
    bill["components"].sort(key=lambda component: str(component["bom-ref"]))
    [version] = [version for name, version in digests if name == NAME]
    bill["metadata"]["component"] = {"bom-ref": "image", "type": "container", "name": NAME, "version": version}
    text = json.dumps(bill, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    if error := JsonStrictValidator(SchemaVersion.V1_6).validate_str(text):
        sys.exit(f"sbom.py: the bill is not CycloneDX 1.6: {error}")
    (directory / WHERE).parent.mkdir(parents=True)
    (directory / WHERE).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
