#!/usr/bin/env bash
# demo.sh PROXYTUNE ARGS...: continues a prompt with the host alone and with the proxy-tuned host.
# PROMPT=... and MAX_TOKENS=... in the environment replace the defaults.
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

set -- generate --compare "$@" --max-tokens "${MAX_TOKENS:-96}" --prompt "$text"
printf '$ proxytune'
printf ' %q' "$@"
printf '\n\n'
exec "$proxytune" "$@"
