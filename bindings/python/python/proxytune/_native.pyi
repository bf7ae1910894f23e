from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any, Literal, Protocol, final

import numpy as np
import numpy.typing as npt
from typing_extensions import Buffer

__all__ = ["LogitsProcessor", "ProxyPair"]

class _DLPack(Protocol):
    def __dlpack__(self, *args: Any, **kwargs: Any) -> Any: ...

_Path = str | PathLike[str]
_Config = _Path | Mapping[str, Any]
_Tokens = Sequence[int] | _DLPack
_Histories = Sequence[_Tokens] | _DLPack
# In the CPU's memory; float32, float16 or bfloat16.
_Tensor = _DLPack | Buffer
_Weights = float | Sequence[float] | npt.NDArray[np.floating[Any]]

@final
class ProxyPair:
    def __new__(
        cls,
        config: _Config,
        *,
        vocabulary: _Path | None = None,
        vocab_size: int | None = None,
        context: int = 0,
        sequences: int = 0,
        threads: int = 0,
    ) -> ProxyPair: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def context(self) -> int: ...
    @property
    def alpha(self) -> float: ...
    @property
    def on_error(self) -> Literal["host", "stop"]: ...
    @property
    def stats(self) -> dict[str, int]: ...
    def offsets(self, histories: _Histories) -> npt.NDArray[np.float32]: ...
    def shift_(
        self,
        logits: _Tensor,
        histories: _Histories,
        alphas: _Weights | None = None,
    ) -> dict[int, str]: ...
    def prefetch(self, histories: _Histories) -> None: ...

@final
class LogitsProcessor:
    def __new__(
        cls,
        config: _Config,
        *,
        vocabulary: _Path | None = None,
        vocab_size: int | None = None,
        context: int = 0,
        sequences: int = 0,
        threads: int = 0,
    ) -> LogitsProcessor: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def context(self) -> int: ...
    @property
    def alpha(self) -> float: ...
    @property
    def on_error(self) -> Literal["host", "stop"]: ...
    @property
    def background(self) -> bool: ...
    @property
    def sequences(self) -> int: ...
    @property
    def stats(self) -> dict[str, int]: ...
    def add_request(
        self,
        request: int,
        prompt: _Tokens,
        *,
        alpha: float | None = None,
        tuned_prompt: _Tokens | str | None = None,
    ) -> None: ...
    def update(self, request: int, generated: list[int]) -> None: ...
    def remove_request(self, request: int) -> None: ...
    def prefetch(self, requests: Sequence[int | None]) -> None: ...
    def apply(self, logits: _Tensor, requests: Sequence[int | None]) -> dict[int, str]: ...
    def offsets_(self, out: _Tensor, requests: Sequence[int]) -> dict[int, str]: ...
