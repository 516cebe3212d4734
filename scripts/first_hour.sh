#!/bin/sh
# The commands of README.md and of the tutorials, as a newcomer types them: in a fresh clone and a fresh environment.
#
#   sh scripts/first_hour.sh          # installs everything anew: some gigabytes
#   sh scripts/first_hour.sh .venv    # installs the package anew, and takes what it depends on from this environment
set -eu

here=$(cd "$(dirname "$0")/.." && pwd)
given=${1:+$(cd "$1" && pwd)}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

if ! git clone -q "$here" "$work/clone"; then  # a folder that is no clone, or somebody else's
    mkdir -p "$work/clone"
    tar -C "$here" --exclude=./.venv --exclude=./out --exclude=./.git -cf - . | tar -C "$work/clone" -xf -
fi
cd "$work/clone"
if [ -n "$given" ]; then
    "$given/bin/python" -m venv "$work/venv"
    site=$("$work/venv/bin/python" -c 'import site; print(site.getsitepackages()[0])')
    "$given/bin/python" -c 'import site; print(site.getsitepackages()[0])' > "$site/dependencies.pth"
    "$work/venv/bin/python" -m pip install -q --no-deps --no-index --no-build-isolation .
else
    "${PYTHON:-python3}" -m venv "$work/venv"
    "$work/venv/bin/python" -m pip install -q -c constraints.txt torch
    "$work/venv/bin/python" -m pip install -q -c constraints.txt .
fi
"$work/venv/bin/python" scripts/first_hour.py
