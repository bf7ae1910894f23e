"""`shift_` in place: every format and layout, against plain arithmetic."""

import array

import numpy as np
import pytest
from conftest import CASES, HOST, golden, settings

from proxytune import ProxyPair

CASE = next(case for case in CASES if case["name"] == "prose-64")
# Two passes over the same tokens differ in rounding.
CLOSE = 1e-4
HISTORIES = [CASE["prompt_tokens"] + CASE["tokens"][:position] for position in CASE["positions"]]


@pytest.fixture
def host():
    return golden("prose-64.host").copy()


@pytest.fixture(scope="module")
def offsets(pair):
    return pair.offsets(HISTORIES)


class TestNumpy:
    def test_float32(self, pair, host, offsets):
        expected = host + offsets
        assert pair.shift_(host, HISTORIES) == {}
        np.testing.assert_allclose(host, expected, atol=CLOSE)

    def test_float16(self, pair, host, offsets):
        half = host.astype(np.float16)
        expected = (half.astype(np.float32) + 0.5 * offsets).astype(np.float16)
        pair.shift_(half, HISTORIES, 0.5)
        np.testing.assert_allclose(half, expected, rtol=2**-9, atol=CLOSE)

    def test_a_weight_for_each_row(self, pair, host, offsets):
        alphas = [1.0, 0.0, -0.5, 2.0]
        expected = host + np.array(alphas, np.float32)[:, None] * offsets
        untouched = host[1].tobytes()
        pair.shift_(host, HISTORIES, alphas)
        np.testing.assert_allclose(host, expected, atol=CLOSE)
        assert host[1].tobytes() == untouched

    def test_weight_0_runs_no_model(self, pair, host):
        before, bits = pair.stats["rounds"], host.tobytes()
        assert pair.shift_(host, [[7, 8, 9, at] for at in range(4)], 0.0) == {}
        assert pair.stats["rounds"] == before and host.tobytes() == bits

    def test_minus_infinity_stays(self, pair, host):
        host[:, ::2] = -np.inf
        pair.shift_(host, HISTORIES)
        assert np.isneginf(host[:, ::2]).all() and np.isfinite(host[:, 1::2]).all()

    def test_a_single_row(self, pair, host, offsets):
        row = host[2]
        expected = row + offsets[2]
        pair.shift_(row, HISTORIES[2:3])
        np.testing.assert_allclose(row, expected, atol=CLOSE)

    def test_rows_apart_and_rows_that_are_padded(self, pair, host, offsets):
        wide = np.full((8, 5000), 3.0, np.float32)
        rows = wide[::2]
        rows[:, :4096] = host
        pair.shift_(rows, HISTORIES)
        np.testing.assert_allclose(wide[::2, :4096], host + offsets, atol=CLOSE)
        assert (wide[::2, 4096:] == 3).all() and (wide[1::2] == 3).all()

    def test_a_buffer_that_is_no_array(self, pair, host, offsets):
        row = array.array("f", host[0].tolist())
        pair.shift_(row, HISTORIES[:1])
        np.testing.assert_allclose(np.array(row, np.float32), host[0] + offsets[0], atol=CLOSE)

    def test_a_buffer_of_float16(self, pair, host, offsets):
        half = host[0].astype(np.float16)
        expected = (half.astype(np.float32) + offsets[0]).astype(np.float16)
        pair.shift_(memoryview(half), HISTORIES[:1])
        np.testing.assert_allclose(half, expected, rtol=2**-9, atol=CLOSE)

    def test_bfloat16(self, pair, host, offsets):
        bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
        logits = host.astype(bfloat16)
        expected = (logits.astype(np.float32) + offsets).astype(bfloat16).astype(np.float32)
        pair.shift_(logits, HISTORIES)
        np.testing.assert_allclose(logits.astype(np.float32), expected, rtol=2**-6, atol=CLOSE)

    def test_no_rows(self, pair):
        assert pair.shift_(np.zeros((0, 4096), np.float32), []) == {}


class TestTorch:
    @pytest.mark.parametrize("name", ["float32", "float16", "bfloat16"])
    def test_in_place(self, pair, host, offsets, name):
        torch = pytest.importorskip("torch")
        kind = getattr(torch, name)
        logits = torch.from_numpy(host).to(kind)
        expected = (logits.float() + torch.from_numpy(offsets)).to(kind)
        pair.shift_(logits, torch_histories(torch))
        precision = {"float32": 0, "float16": 2**-9, "bfloat16": 2**-6}[name]
        torch.testing.assert_close(logits, expected, rtol=precision, atol=CLOSE)

    def test_what_cannot_be_changed_in_place(self, pair, host):
        torch = pytest.importorskip("torch")
        with pytest.raises(ValueError, match="detach"):
            pair.shift_(torch.from_numpy(host).requires_grad_(), HISTORIES)
        with pytest.raises(ValueError, match="logits: .*DLPack.*CPU"):
            pair.shift_(torch.empty(4, 4096, device="meta"), HISTORIES)


def torch_histories(torch):
    return [torch.tensor(history) for history in HISTORIES]


class TestRefused:
    @pytest.mark.parametrize(
        ("make", "error", "message"),
        [
            (lambda host: host[:3], ValueError, r"got shape \(3, 4096\), expected \(4, 4096\)"),
            (lambda host: host[:, :4000].copy(), ValueError, r"got shape \(4, 4000\)"),
            (lambda host: host.astype(np.float64), ValueError, "expected float32, float16 or bfloat16"),
            (lambda host: np.asfortranarray(host), ValueError, "contiguous"),
            (lambda host: np.broadcast_to(host[:1], host.shape), (ValueError, BufferError), "."),
            (lambda host: host[None], ValueError, "got 3 dimensions"),
            (lambda host: host.tolist(), TypeError, "got list, expected a CPU tensor"),
            (lambda host: 3, TypeError, "got int, expected a CPU tensor"),
        ],
    )
    def test_before_a_value_is_changed(self, pair, host, make, error, message):
        logits = make(host)
        with pytest.raises(error, match=message):
            pair.shift_(logits, HISTORIES)

    def test_weights(self, pair, host):
        bits = host.tobytes()
        for alphas, error in [([1.0], ValueError), (float("nan"), ValueError), (["a"] * 4, TypeError), ("a", TypeError)]:
            with pytest.raises(error):
                pair.shift_(host, HISTORIES, alphas)
        assert host.tobytes() == bits

    def test_read_only(self, pair, host):
        host.flags.writeable = False
        with pytest.raises((ValueError, BufferError)):
            pair.shift_(host, HISTORIES)


class TestRowsThatFail:
    LONG = [5] * 2000

    def test_stay_as_they_are_and_are_named(self, pair, host, offsets):
        expected = host + offsets
        expected[1] = host[1]
        failures = pair.shift_(host, [HISTORIES[0], self.LONG, *HISTORIES[2:]])
        assert list(failures) == [1] and "2000 tokens do not fit" in failures[1]
        np.testing.assert_allclose(host, expected, atol=CLOSE)

    def test_end_the_call_where_the_configuration_says_so(self, host):
        strict = ProxyPair(settings(on_error="stop"), vocabulary=HOST)
        bits = host.tobytes()
        with pytest.raises(RuntimeError, match="row 1: .*2000 tokens do not fit"):
            strict.shift_(host, [HISTORIES[0], self.LONG, *HISTORIES[2:]])
        assert host.tobytes() == bits
