"""What is installed: one wheel for all versions of Python, types, and the entry point that vLLM asks for."""

import os
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

import proxytune


def test_the_wheel_is_for_all_versions_of_python():
    assert "cp310-abi3-" in distribution("proxytune").read_text("WHEEL")


def test_it_is_typed():
    assert (Path(proxytune.__file__).parent / "py.typed").exists()


def test_vllm_finds_it():
    (entry,) = (entry for entry in distribution("proxytune").entry_points if entry.group == "vllm.general_plugins")
    assert (entry.name, entry.value) == ("proxytune", "proxytune.vllm.plugin:register")


def test_no_engine_is_needed_nor_loaded():
    """Nor a library of llama.cpp's beside: it is compiled in."""
    code = "import sys, proxytune; print(*{'torch', 'vllm', 'transformers', 'llama_cpp'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=os.sep)
    assert (run.stdout.strip(), run.returncode) == ("", 0), run.stderr
    libraries = Path(proxytune.__file__).parent.rglob("*.so*")
    assert [library.name.split(".")[0] for library in libraries] == ["_native"]
