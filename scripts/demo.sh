#!/usr/bin/env bash
# demo.sh PROXYTUNE ARGS...: continues a prompt with the host alone and with the proxy-tuned host.
# PROMPT=..., ALPHA=... and MAX_TOKENS=... in the environment replace the defaults.
set -euo pipefail
proxytune=$1
shift

prompts=models/demo-prompts.txt
if [ -z "${PROMPT:-}" ] && [ -s "$prompts" ]; then
    PROMPT=$(head -n 1 "$prompts")
fi
: "${PROMPT:=import json\\n\\n\\ndef read_config(path):\\n    }"

# \n stands for a line break; the dot keeps those at the end from being cut off.
text=$(printf '%b.' "$PROMPT")
text=${text%.}

# Models this small repeat themselves without a penalty. Alpha is near what held-out code prefers (models/README.md).
set -- generate --compare "$@" --alpha "${ALPHA:-0.6}" --repeat-penalty 1.15 \
    --max-tokens "${MAX_TOKENS:-64}" --prompt "$text"
printf '$ proxytune'
printf ' %q' "$@"
printf '\n\n'
exec "$proxytune" "$@"
