#!/usr/bin/env python3
"""The example program in bindings/llama.cpp: built by CMake against an installed llama.cpp, shared and static, it writes the oracle's tokens.

`scripts/test-plugin.sh` sets PROXYTUNE_PLUGIN and PROXYTUNE_PLUGIN_STATIC, the two libraries, and LLAMA_SHARED and
LLAMA_STATIC, the prefixes.
"""

import os
import subprocess
import unittest

import harness
from harness import HOST, ROOT, Server, write_config
from test_plugin import Plugin, of_alpha, until_end

TOKENS = 64


class Example(Plugin):
    def built(self, llama, library):
        """The program, from an empty folder, as bindings/llama.cpp/example/CMakeLists.txt says."""
        build = self.folder / "build"
        command = ["cmake", "-S", ROOT / "bindings/llama.cpp/example", "-B", build, "-DCMAKE_BUILD_TYPE=Release"]
        command += [f"-DCMAKE_PREFIX_PATH={llama}", f"-DPROXYTUNE_LIBRARY={library}"]
        for step in (command, ["cmake", "--build", build]):
            done = subprocess.run(step, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            self.assertEqual(done.returncode, 0, done.stdout[-4000:])
        return build / "proxytuned"

    def run_program(self, program, config, prompt):
        command = [program, HOST, config, prompt, str(TOKENS)]
        # An installed libllama.so finds its neighbours so, outside the system's folders.
        env = dict(os.environ, LD_LIBRARY_PATH=os.path.join(os.environ["LLAMA_SHARED"], "lib"))
        return subprocess.run(command, capture_output=True, timeout=300, env=env)

    def text(self, tokens):
        return self.words.post("/detokenize", {"tokens": tokens})["content"]

    def writes_the_oracles_tokens(self, llama, library):
        program = self.built(llama, library)
        with Server(None) as self.words:
            self.addCleanup(self.words.log.close)
            for alpha in (0.5, 1.0):
                config = write_config(self.folder, alpha=alpha)
                for case in of_alpha(alpha):
                    with self.subTest(case["name"]):
                        done = self.run_program(program, config, case["prompt"])
                        self.assertEqual(done.returncode, 0, done.stderr.decode()[-3000:])
                        expected = self.text(until_end(case["tokens"])[:TOKENS])
                        self.assertEqual(done.stdout.decode(errors="replace"), expected + "\n")
        absent = self.run_program(program, self.folder / "absent.toml", "x")
        self.assertEqual((absent.returncode, absent.stdout), (1, b""))
        self.assertRegex(absent.stderr.decode(), "^[^\n]*absent.toml[^\n]*cannot be read[^\n]*\n$")
        return program

    def needs(self, program):
        done = subprocess.run(["readelf", "-d", program], capture_output=True, text=True, check=True)
        return [line for line in done.stdout.splitlines() if "NEEDED" in line]

    def test_shared(self):
        program = self.writes_the_oracles_tokens(os.environ["LLAMA_SHARED"], harness.PLUGIN)
        self.assertTrue(any("libllama" in line for line in self.needs(program)))

    def test_static(self):
        program = self.writes_the_oracles_tokens(os.environ["LLAMA_STATIC"], os.environ["PROXYTUNE_PLUGIN_STATIC"])
        self.assertFalse(any(name in line for line in self.needs(program) for name in ("llama", "ggml", "proxytune")))


if __name__ == "__main__":
    unittest.main(verbosity=2)
