#!/usr/bin/env bash
# gotool.sh NAME MODULE@VERSION: leaves the tool in build/tools/NAME. One on PATH of that version, or a newer one with the
# same major, serves; otherwise it is built from its Go module, unless it was before.
set -euo pipefail
cd "$(dirname "$0")/../.."

name=$1 module=$2
version=${module##*@}
tool=build/tools/$name

# Prints the version that a tool tells of itself, as in v5.8.2.
version_of() { "$1" version 2>/dev/null | grep -oE -m1 'v[0-9]+\.[0-9]+(\.[0-9]+)?' | head -n1; }

serves() { # a tool whose version is VERSION or newer, with the same major
    local found
    found=$(version_of "$1") || return 1
    [ "${found%%.*}" = "${version%%.*}" ] && [ "$(printf '%s\n' "$found" "$version" | sort -V | head -n1)" = "$version" ]
}

if [ "$(cat "$tool.built" 2>/dev/null)" = "$module" ] && [ -x "$tool" ]; then
    exit
fi
mkdir -p build/tools
if installed=$(command -v "$name") && serves "$installed"; then
    ln -sfn "$installed" "$tool"
else
    if ! command -v go >/dev/null; then
        if ! command -v apt-get >/dev/null; then
            echo "tests/e2e/gotool.sh: there is no $name ${version} on PATH, and no Go to build it with: install either" >&2
            exit 1
        fi
        as_root=()
        [ "$(id -u)" -eq 0 ] || as_root=(sudo)
        echo "tests/e2e/gotool.sh: installing golang-go"
        "${as_root[@]}" apt-get update -qq
        "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends golang-go >/dev/null
    fi
    echo "tests/e2e/gotool.sh: building $module"
    into=$(mktemp -d "build/tools/.$name.XXXXXX")
    trap 'rm -rf "$into"' EXIT
    # No toolchain is fetched: what this machine has must do. Without cgo no C compiler is needed.
    if ! GOBIN=$PWD/$into GOTOOLCHAIN=local CGO_ENABLED=0 go install -trimpath -ldflags='-s -w' "$module"; then
        echo "tests/e2e/gotool.sh: $(go version) did not build $module (its own words are above). Where those say that" \
            "Go is too old, install a newer one, or $name $version itself; a connection that broke may do another time." >&2
        exit 1
    fi
    mv -f "$into"/* "$tool"
fi
echo "$module" >"$tool.built"
