"""The type stubs say what the compiled half has: names, parameters, defaults."""

import subprocess
import sys

import pytest

pytest.importorskip("mypy")


def test_they_agree_with_the_module():
    check = subprocess.run([sys.executable, "-m", "mypy.stubtest", "proxytune._native"], capture_output=True, text=True)
    assert check.returncode == 0, check.stdout + check.stderr


def test_a_program_is_checked_by_them(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        "import array\n"
        "import numpy as np\n"
        "from proxytune import ProxyPair\n"
        "pair = ProxyPair('proxytune.toml', vocabulary='host.gguf')\n"
        "pair.shift_(np.zeros((1, 4), np.float32), [[1, 2]], alphas=0.5)\n"
        "pair.shift_(array.array('f', [0, 0]), [np.array([1, 2])], [0.5])\n"
        "reveal_type(pair.offsets(np.array([[1, 2]])))\n"
        "pair.offsets(3)\n"
        "pair.shift_([0.0], [[1, 2]])\n"
    )
    check = subprocess.run([sys.executable, "-m", "mypy", program], capture_output=True, text=True, cwd=tmp_path)
    assert 'Revealed type is "numpy.ndarray[' in check.stdout, check.stdout + check.stderr
    errors = [line for line in check.stdout.splitlines() if "error:" in line]
    assert ["program.py:8:" in errors[0], "program.py:9:" in errors[1]] == [True, True] and len(errors) == 2, check.stdout
