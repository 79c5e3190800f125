"""A decoder-only transformer of about 0.1M parameters, and batched sampling from it with a key-value cache.

Every prompt takes the same number of columns P: its tokens, padding, and `BOS` in the last column. A response starts at
column P, so that positions need no bookkeeping; padding inside the prompt is masked.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import nn

from recipe.exgrpo.lab.vocabulary import BOS, EOS, PAD


@dataclass(frozen=True)
class ModelShape:
    """Sizes: `vocabulary` ids, `prompt` and `response` columns (prompt includes BOS), width, layers and heads."""

    vocabulary: int
    prompt: int
    response: int
    width: int = 64
    layers: int = 2
    heads: int = 4

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"ModelShape.width ({self.width}) must be a multiple of ModelShape.heads ({self.heads}).")


class Block(nn.Module):
    """Pre-norm attention and feed-forward."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.heads = shape.heads
        self.norm_a, self.norm_f = nn.LayerNorm(shape.width), nn.LayerNorm(shape.width)
        self.qkv = nn.Linear(shape.width, 3 * shape.width, bias=False)
        self.out = nn.Linear(shape.width, shape.width, bias=False)
        self.up, self.down = nn.Linear(shape.width, 4 * shape.width), nn.Linear(4 * shape.width, shape.width)

    def forward(self, x: torch.Tensor, allowed: torch.Tensor, cache: torch.Tensor | None, start: int) -> torch.Tensor:
        """x [n, T, width]; allowed float [n, 1, T, S], 0 or -inf; cache [2, n, heads, columns, size], written from `start`."""
        q, k, v = self.qkv(self.norm_a(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        if cache is not None:
            stop = start + x.shape[1]
            cache[0, :, :, start:stop], cache[1, :, :, start:stop] = k, v
            k, v = cache[0, :, :, :stop], cache[1, :, :, :stop]
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, attn_mask=allowed).transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm_f(x))))


class TinyTransformer(nn.Module):
    """Logits of the next token; embeddings are tied and positions learned."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.shape = shape
        self.tokens = nn.Embedding(shape.vocabulary, shape.width)
        self.positions = nn.Embedding(shape.prompt + shape.response, shape.width)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm = nn.LayerNorm(shape.width)
        # Never sampled, so that `ids != PAD` tells real columns from padding. Finite: 0 * -inf would make entropies NaN.
        never = torch.zeros(shape.vocabulary).index_fill_(0, torch.tensor([PAD, BOS]), -1e9)
        self.register_buffer("never", never, persistent=False)
        for embedding in (self.tokens, self.positions):
            nn.init.normal_(embedding.weight, std=0.1)

    def forward(
        self, ids: torch.Tensor, real: torch.Tensor, cache: torch.Tensor | None = None, start: int = 0
    ) -> torch.Tensor:
        """Final hidden states, float [n, T, width].

        Args:
            ids: int64 [n, T], columns start..start + T - 1.
            real: bool [n, start + T], which columns so far hold a token.
            cache: from `new_cache`, filled for all columns before `start`; written for these.
        """
        length = ids.shape[1]
        seen = real[:, None, :]
        if length > 1:  # a single column sees all before it
            seen = seen & torch.ones(length, start + length, dtype=torch.bool).tril(start)
        # Made once for all layers: attention would make it of a boolean mask in each.
        allowed = self.positions.weight.new_zeros(()).masked_fill(~seen, -torch.inf).unsqueeze(1)
        x = self.tokens(ids) + self.positions.weight[start : start + length]
        for i, block in enumerate(self.blocks):
            x = block(x, allowed, None if cache is None else cache[i], start)
        return self.norm(x)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits over the vocabulary, float [..., vocabulary]."""
        return hidden @ self.tokens.weight.T + self.never

    def new_cache(self, n: int) -> torch.Tensor:
        """An empty cache for `n` sequences, float [layers, 2, n, heads, columns, width / heads]."""
        s = self.shape
        return torch.zeros(s.layers, 2, n, s.heads, s.prompt + s.response, s.width // s.heads)


def prompt_ids(prompts: Sequence[Sequence[int]], columns: int) -> torch.Tensor:
    """int64 [n, columns]: tokens, padding, BOS. ValueError for a prompt of `columns` tokens or more."""
    longest = max(map(len, prompts))
    if longest >= columns:
        raise ValueError(f"a prompt of {longest} tokens does not fit into {columns - 1}")
    return torch.tensor([[*p, *[PAD] * (columns - 1 - len(p)), BOS] for p in prompts])


def response_ids(responses: Sequence[Sequence[int]]) -> torch.Tensor:
    """int64 [n, longest], padded on the right."""
    longest = max(map(len, responses))
    return torch.tensor([[*map(int, r), *[PAD] * (longest - len(r))] for r in responses])


def response_scores(
    model: TinyTransformer, prompts: torch.Tensor, responses: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probs of the response tokens and entropies of the distributions they came from, nats, float [n, L] each.

    prompts int64 [n, P], responses int64 [n, L]; values at padding are meaningless.
    """
    ids = torch.cat([prompts, responses], 1)
    hidden = model(ids[:, :-1], (ids != PAD)[:, :-1])[:, prompts.shape[1] - 1 :]
    log_p = model.logits(hidden).log_softmax(-1)
    return log_p.gather(-1, responses.unsqueeze(-1)).squeeze(-1), -(log_p.exp() * log_p).sum(-1)


class Environment(Protocol):
    """What writes tokens into a response besides the model: behind the token `close`, its answer."""

    close: int

    def answer(self, out: torch.Tensor, place: int) -> None:
        """Write the answer to what the model has closed at `place` of a response, int64 [L], into it, as far as it fits."""


@torch.inference_mode()
def sample(
    model: TinyTransformer,
    prompts: torch.Tensor,
    counts: Sequence[int],
    generator: torch.Generator,
    environment: Environment | None = None,
) -> list[list[int]]:
    """`counts[i]` responses to prompt i at temperature 1, in order; each ends with EOS unless it is truncated.

    A token is the winner of exponential waiting times with rates p, which is a draw from p. Finished rows leave the forward
    pass once they are an eighth of it. What the environment has written is not drawn.
    """
    first, repeats = prompts.shape[1], torch.as_tensor(counts)
    cache = model.new_cache(len(prompts))
    hidden = model(prompts, prompts != PAD, cache)[:, -1:].repeat_interleave(repeats, 0)
    cache = cache.repeat_interleave(repeats, 2)
    real = torch.ones(len(hidden), first + model.shape.response, dtype=torch.bool)
    real[:, :first] = (prompts != PAD).repeat_interleave(repeats, 0)
    out = torch.full((len(real), model.shape.response), PAD)
    rows, done = torch.arange(len(real)), torch.zeros(len(real), dtype=torch.bool)
    for column in range(first, first + model.shape.response):
        p = model.logits(hidden[:, 0]).softmax(-1)
        token = (p / torch.empty_like(p).exponential_(generator=generator)).argmax(-1).masked_fill(done, PAD)
        token = written(out, rows, column - first, token, environment)
        done = done | (token == EOS)
        if 8 * int(done.sum()) > len(done):
            kept = (~done).nonzero().squeeze(1)
            rows, done, token, real = rows[kept], done[kept], token[kept], real[kept]
            cache = compacted(cache, kept, column)
        if not len(rows):
            break
        hidden = model(token.unsqueeze(1), real[:, : column + 1], cache, column)
    return [row[: row.index(EOS) + 1] if EOS in row else row for row in out.tolist()]


def written(
    out: torch.Tensor, rows: torch.Tensor, place: int, drawn: torch.Tensor, environment: Environment | None
) -> torch.Tensor:
    """Write the tokens at `place` of responses `rows`, int64 [m], and return them: those drawn, but where one is there already.

    The environment answers to what the model has closed.
    """
    if environment is None:
        out[rows, place] = drawn
        return drawn
    there = out[rows, place]
    token = torch.where(there == PAD, drawn, there)
    out[rows, place] = token
    for row in rows[(there == PAD) & (token == environment.close)].tolist():
        environment.answer(out[row], place)
    return token


def compacted(cache: torch.Tensor, kept: torch.Tensor, columns: int) -> torch.Tensor:
    """The cache of the rows `kept`, int64 [m]; only its first `columns` are filled, and only they are copied."""
    layers, sides, _, *rest = cache.shape
    smaller = cache.new_empty(layers, sides, len(kept), *rest)
    smaller[..., :columns, :] = cache[..., :columns, :].index_select(2, kept)
    return smaller
