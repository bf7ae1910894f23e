"""The trios that the peers are measured on."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROMPT = "def read_lines(path):\n    "


@dataclass(frozen=True)
class Trio:
    title: str
    host: Path
    tuned: Path
    untuned: Path
    tokens: int  # generated in one measurement
    accept: float | None = None  # share of drafts that is accepted by force; None: as the models say

    def models(self) -> dict[str, Path]:
        return {"host": self.host, "tuned": self.tuned, "untuned": self.untuned}


def shipped(_: Path) -> Trio:
    host, tuned, untuned = (ROOT / "models" / f"tiny-{role}.gguf" for role in ("host", "tuned", "untuned"))
    return Trio("shipped trio, 6 M and 0.6 M, Q8_0", host, tuned, untuned, 96)


# Random proxies agree with nobody: their drafts are accepted by force.
FORCED = 0.9


def smollm2(models: Path) -> Trio:
    script = ROOT / "scripts" / "smollm2.sh"
    host = Path(subprocess.run([script], check=True, capture_output=True, text=True).stdout.strip())
    folder = models / "smollm2-proxies"
    random_models(folder, "--tokenizer-of", host, "--proxy", "20m")
    title = "SmolLM2-135M-Instruct and random proxies of 29 M, Q4_0"
    return Trio(title, host, folder / "tuned.gguf", folder / "untuned.gguf", 48, FORCED)


def random(models: Path) -> Trio:
    folder = models / "random"
    random_models(folder)
    files = (folder / f"{role}.gguf" for role in ("host", "tuned", "untuned"))
    return Trio("random weights, 1.1 B and 92 M, Q4_0", *files, 24, FORCED)


def random_models(folder: Path, *options: object) -> None:
    script = ROOT / "benches" / "models" / "random_trio.py"
    subprocess.run([sys.executable, script, folder, *options], check=True, stdout=sys.stderr)


TRIOS = {"shipped": shipped, "smollm2": smollm2, "random": random}
