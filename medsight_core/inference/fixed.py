"""Decode steps of fixed shape, so that they can be compiled and recorded: a GPU then waits for nobody between kernels.

A `Board` has room for a number of texts of a length, both rounded up to few sizes. Each row of it goes on by itself, at
its own length, so that a text takes a free row and leaves it without moving the others. The step reads all rows, used
or not, and all of the length behind a mask; on CUDA it is compiled once for each size of board and recorded as a CUDA
graph, which any thread may replay. Boards are kept and used again, since recording takes time, and compiling far more.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, Final

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from medsight_core.errors import InputError
from medsight_core.inference.rows import KeyValues
from medsight_core.model import MedSightForConditionalGeneration

ROWS: Final = (1, 4, 16)
"""Texts that boards have room for; above the last, multiples of it."""

LENGTH: Final = 1024
"""Tokens of the shortest board; longer ones are twice as long as the one before."""

MOST_IDLE: Final = 4
"""Boards without texts that are kept for later."""

SIZES: Final = 64
"""Sizes of boards that the compiler may meet before it gives up."""

WARM_UP: Final = 3
"""Steps that are not recorded before one is, as CUDA graphs need it."""

Step = Callable[[], Tensor]


class Boards:
    """Boards of one model. Safe to share between threads.

    Args:
        model: In evaluation mode, on one device.
        compiler: Makes a step faster, such as `torch.compile`; None leaves it as it is.

    Raises:
        InputError: cannot_compile.
    """

    def __init__(
        self, model: MedSightForConditionalGeneration, *, compiler: Callable[[Step], Step] | None = None
    ) -> None:
        kinds = set(getattr(model.config.text_config, "layer_types", None) or ["full_attention"])
        if kinds != {"full_attention"}:
            raise InputError(
                "cannot_compile",
                f"The decode loop cannot be compiled for a language model with {', '.join(sorted(kinds))}.",
                "Leave out --compile.",
            )
        self._model = model
        self._compiler = compiler
        self._idle: list[Board] = []
        self._lock = threading.Lock()

    def take(self, rows: int, length: int, like: KeyValues) -> Board:
        """A board for that many texts of that length; give it back."""
        size = (fitting_rows(rows), fitting_length(length))
        with self._lock:
            for board in self._idle:
                if board.size == size:
                    self._idle.remove(board)
                    return board
        return Board(self._model, size=size, like=like, compiler=self._compiler)

    def give_back(self, board: Board) -> None:
        """Keeps a board for another time; the one that was not used for longest goes."""
        with self._lock:
            self._idle.append(board)
            del self._idle[:-MOST_IDLE]

    def clear(self) -> None:
        """Lets go of all idle boards."""
        with self._lock:
            self._idle.clear()


def fitting_rows(rows: int) -> int:
    """Rows of the smallest board with so many."""
    return next((size for size in ROWS if size >= rows), -(-rows // ROWS[-1]) * ROWS[-1])


def fitting_length(length: int) -> int:
    """Length of the shortest board that is so long."""
    size = LENGTH
    while size < length:
        size *= 2
    return size


class Board:
    """Key/values of fixed shape, and the step over them.

    Args:
        model: In evaluation mode, on one device.
        size: Rows and length.
        like: Key/values of a text, for their types and widths.
        compiler: See `Boards`.
    """

    def __init__(
        self,
        model: MedSightForConditionalGeneration,
        *,
        size: tuple[int, int],
        like: KeyValues,
        compiler: Callable[[Step], Step] | None,
    ) -> None:
        self.size = size
        rows, length = size
        self._model = model
        device = like[0][0].device
        self.tokens = torch.zeros(rows, 1, dtype=torch.long, device=device)
        self.positions = torch.zeros(rows, 1, dtype=torch.long, device=device)
        """Where each row writes its next token."""
        self._columns = torch.arange(length, device=device)
        self.layers = [FixedLayer(keys, values, size=size, positions=self.positions) for keys, values in like]
        self._cache = Cache(layers=self.layers)
        self._run: Step | None = None
        self._compiler = compiler

    def step(self) -> Tensor:
        """Hidden states `(rows, hidden)` of `tokens` at `positions`."""
        if self._run is None:
            self._run = self._made_ready()
        return self._run().clone()  # a recorded step writes into the same place each time

    def _step(self) -> Tensor:
        out = self._model.model.language_model(
            input_ids=self.tokens,
            attention_mask=(self._columns <= self.positions)[:, None, None],
            position_ids=self.positions,
            past_key_values=self._cache,
            use_cache=True,
        )
        hidden: Tensor = out.last_hidden_state[:, -1]
        return hidden

    def _made_ready(self) -> Step:
        step: Step = self._step if self._compiler is None else self._compiler(self._step)
        # Compiling happens at the first call, and every size of board is a further variant of the same code.
        with torch._dynamo.config.patch(recompile_limit=SIZES) if self._compiler is not None else nullcontext():
            if self.tokens.device.type != "cuda":
                step()
                return step
            return self._recorded(step)

    def _recorded(self, step: Step) -> Step:
        """The step as a CUDA graph. Rows write the same values to the same places however often it runs."""
        device = self.tokens.device
        side, here = torch.cuda.Stream(device), torch.cuda.current_stream(device)
        side.wait_stream(here)
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                step()
        here.wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # Other threads may go on meanwhile: only what this one does is recorded, and only it is held to the rules.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            hidden = step()

        def replay() -> Tensor:
            graph.replay()
            return hidden

        return replay


class FixedLayer(CacheLayerMixin):
    """Key/values of one layer; every row takes its next token at a place of its own.

    Args:
        keys, values: Of a text, for types and widths `(1, heads, length, width)`.
        size: Rows and length.
        positions: `(rows, 1)`, where each row writes next; whoever owns it changes it in place.
    """

    is_sliding = False
    is_compileable = True

    def __init__(self, keys: Tensor, values: Tensor, *, size: tuple[int, int], positions: Tensor) -> None:
        super().__init__()
        rows, length = size
        self.keys, self.values = (
            like.new_zeros(rows, like.shape[1], length, like.shape[-1]) for like in (keys, values)
        )
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True
        self._rows = torch.arange(rows, device=keys.device)
        self._positions = positions

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing is left to do."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Takes one token of every row `(rows, heads, 1, width)`; gives the whole store."""
        places = (self._rows, slice(None), self._positions[:, 0])
        self.keys[places] = key_states[:, :, 0]
        self.values[places] = value_states[:, :, 0]
        return self.keys, self.values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """The whole store, from its beginning."""
        return self.keys.shape[-2], 0

    def get_seq_length(self) -> int:
        """The rows have lengths of their own; the store's is told."""
        return int(self.keys.shape[-2])

    def get_max_length(self) -> int:
        """Of the store."""
        return int(self.keys.shape[-2])


class FixedRows:
    """Rows on a board; see `rows.Rows`.

    Args:
        boards: Of the model.
    """

    def __init__(self, boards: Boards) -> None:
        self._boards = boards
        self._board: Board | None = None
        self._places: list[int] = []  # row of the board that each text has
        self._index: Tensor | None = None  # the same for the device; None where they are the first ones in order

    def arrange(self, rows: Sequence[int | KeyValues], lengths: Sequence[int], most: Sequence[int]) -> None:
        """See `Rows`; texts that stay are moved only where the board becomes too small."""
        need = max(length + more for length, more in zip(lengths, most, strict=True)) + 1
        old, stays = self._board, {row: self._places[row] for row in rows if isinstance(row, int)}
        if old is None or len(rows) > old.size[0] or need > old.size[1]:
            like = next((row for row in rows if not isinstance(row, int)), None) or self.key_values(0, 1)
            board = self._boards.take(len(rows), need, like)
            given = [self._part(row, length) for row, length in zip(rows, lengths, strict=True)]
            places = list(range(len(rows)))
            if old is not None:
                self._boards.give_back(old)
        else:
            board = old
            free = iter(sorted(set(range(old.size[0])) - set(stays.values())))
            places = [stays[row] if isinstance(row, int) else next(free) for row in rows]
            given = [None if isinstance(row, int) else row for row in rows]
        for place, part, length in zip(places, given, lengths, strict=True):
            board.positions[place] = length
            for layer, (keys, values) in zip(board.layers, part or (), strict=part is not None):
                layer.keys[place, :, :length], layer.values[place, :, :length] = keys[0], values[0]
        device = board.tokens.device
        self._board, self._places = board, places
        self._index = None if places == list(range(board.size[0])) else torch.tensor(places, device=device)

    def read(self, tokens: Sequence[int]) -> Tensor:
        """See `Rows`."""
        board = self._used()
        ids = torch.tensor(tokens, device=board.tokens.device)[:, None]
        if self._index is None:
            board.tokens.copy_(ids)
            return board.step()
        board.tokens[self._index] = ids
        return board.step()[self._index]

    def keep(self) -> None:
        """See `Rows`."""
        board = self._used()
        if self._index is None:
            board.positions += 1
        else:
            board.positions[self._index] += 1

    def undo(self) -> None:
        """See `Rows`; what was written lies behind the end of every row and is written over."""

    def key_values(self, row: int, length: int) -> KeyValues:
        """See `Rows`; copies, since the row may be another text's soon."""
        place = slice(self._places[row], self._places[row] + 1)
        return tuple(
            (layer.keys[place, :, :length].clone(), layer.values[place, :, :length].clone())
            for layer in self._used().layers
        )

    def clear(self) -> None:
        """See `Rows`."""
        if self._board is not None:
            self._boards.give_back(self._board)
        self._board, self._places, self._index = None, [], None

    def _part(self, row: int | KeyValues, length: int) -> KeyValues:
        return self.key_values(row, length) if isinstance(row, int) else row

    def _used(self) -> Board:
        if self._board is None:
            raise RuntimeError("no texts were arranged")
        return self._board


def cuda_compiler(step: Step) -> Step:
    """What makes a step faster on CUDA: fused kernels; the graph of them is recorded here and not by the compiler,
    whose own recordings belong to the thread that made them."""
    compiled: Any = torch.compile(step, fullgraph=True, dynamic=False)
    made: Step = compiled
    return made
