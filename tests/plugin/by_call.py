"""The sampler by call, from a process that loads libllama and the plugin as Python's bindings do: by_call.py LLAMA PLUGIN CONFIG"""

import ctypes
import json
import os
import pathlib
import resource
import signal
import struct
import sys
import traceback

GOLDEN = pathlib.Path(__file__).resolve().parents[1] / "golden"
VOCAB = 4096


class Candidate(ctypes.Structure):
    _fields_ = [("id", ctypes.c_int32), ("logit", ctypes.c_float), ("p", ctypes.c_float)]


class Candidates(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.POINTER(Candidate)),
        ("size", ctypes.c_size_t),
        ("selected", ctypes.c_int64),
        ("sorted", ctypes.c_bool),
    ]


def golden_rows(name):
    """The rows of a tensor of the golden file."""
    data = (GOLDEN / "golden.safetensors").read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    entry = json.loads(data[8 : 8 + length])[name]
    begin, end = (8 + length + offset for offset in entry["data_offsets"])
    values = struct.unpack(f"<{(end - begin) // 4}f", data[begin:end])
    return [values[i : i + VOCAB] for i in range(0, len(values), VOCAB)]


def applied(llama, sampler):
    rows = (Candidate * VOCAB)(*[(i, 0.0, 0.0) for i in range(VOCAB)])
    llama.llama_sampler_apply(sampler, ctypes.byref(Candidates(rows, VOCAB, -1, False)))
    return [row.logit for row in rows]


def main():
    llama, plugin, config = ctypes.CDLL(sys.argv[1]), ctypes.CDLL(sys.argv[2]), sys.argv[3].encode()
    plugin.proxytune_sampler_init.restype = ctypes.c_void_p
    plugin.proxytune_sampler_init.argtypes = [ctypes.c_char_p]
    plugin.proxytune_last_error.restype = ctypes.c_char_p
    llama.llama_sampler_clone.restype = ctypes.c_void_p
    llama.llama_sampler_name.restype = ctypes.c_char_p
    for name in ("clone", "free", "reset", "name"):
        getattr(llama, f"llama_sampler_{name}").argtypes = [ctypes.c_void_p]
    llama.llama_sampler_accept.argtypes = [ctypes.c_void_p, ctypes.c_int32]
    llama.llama_sampler_copy.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
    llama.llama_sampler_apply.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
    assert plugin.proxytune_abi_version() == 1

    for path, word in ((None, "null"), (b"/no/such.toml", "/no/such.toml")):
        assert plugin.proxytune_sampler_init(path) is None
        assert word in plugin.proxytune_last_error().decode()

    sampler = plugin.proxytune_sampler_init(config)
    assert sampler and plugin.proxytune_last_error() == b"", plugin.proxytune_last_error()
    assert llama.llama_sampler_name(sampler) == b"proxytune"
    case = next(c for c in json.loads((GOLDEN / "golden.json").read_text())["cases"] if c["name"] == "prose-64")
    golden = golden_rows("prose-64.offset")
    for token in case["prompt_tokens"]:
        llama.llama_sampler_accept(sampler, token)
    for position, token in enumerate(case["tokens"]):
        if position in case["positions"]:
            row = golden[case["positions"].index(position)]
            worst = max(abs(a - b) for a, b in zip(applied(llama, sampler), row))
            assert worst <= 2e-3, f"off by {worst} at {position}"
        llama.llama_sampler_accept(sampler, token)

    # Clones, copies and frees in any order; the memory stays what it is after the first round.
    expected = applied(llama, sampler)
    peak = None
    for round in range(30):
        clones = [llama.llama_sampler_clone(sampler) for _ in range(20)]
        for i, clone in enumerate(clones):
            llama.llama_sampler_accept(clone, i)
            if i % 5 == 0:
                applied(llama, clone)
        llama.llama_sampler_copy(sampler, clones[round % 20])
        assert max(abs(a - b) for a, b in zip(applied(llama, clones[round % 20]), expected)) <= 2e-3
        for clone in clones[round % 3 :] + clones[: round % 3]:
            llama.llama_sampler_free(clone)
        if round == 5:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak
    assert grown < 4096, f"{grown} KiB more"
    in_a_fork(lambda: unshifted(llama, sampler))
    assert max(abs(a - b) for a, b in zip(applied(llama, sampler), expected)) <= 2e-3
    llama.llama_sampler_reset(sampler)
    llama.llama_sampler_free(sampler)
    print("fine")


def unshifted(llama, sampler):
    """A fork has none of the threads that the proxies work on: further rows stay as they are, and nothing waits for them."""
    for token in range(3):
        llama.llama_sampler_accept(sampler, token)
        clone = llama.llama_sampler_clone(sampler)
        assert applied(llama, sampler) == applied(llama, clone) == [0.0] * VOCAB
        llama.llama_sampler_free(clone)


def in_a_fork(work):
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        try:
            work()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0


if __name__ == "__main__":
    main()
