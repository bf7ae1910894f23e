#!/usr/bin/env bash
# venv.sh DIR REQUIREMENTS: makes DIR a Python environment with just these packages, anew when they are others than before.
set -euo pipefail
venv=$1 requirements=$2
if ! cmp -s "$requirements" "$venv/requirements.txt"; then
    python3 -m venv --clear "$venv"
    "$venv/bin/pip" install -q --disable-pip-version-check -r "$requirements"
    cp "$requirements" "$venv/"
fi
