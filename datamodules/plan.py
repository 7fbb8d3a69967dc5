"""The plan: which samples form batch `p`, computed from `p` alone.

A stream is the images of one dataset in one bucket, visited in an endless chain of seeded permutations. The streams of
a bucket, and then the buckets, are merged by balanced binary trees in exact integer arithmetic, so that every prefix
holds each stream's share and any position is found without replaying the past. See "The plan" in docs/architecture.md.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import NamedTuple

from dreamlit.errors import CombinationError, DataError
from dreamlit.seeds import address

Bucket = tuple[int, int]
_MASK64 = (1 << 64) - 1


class Draw(NamedTuple):
    """One use of one sample: `visit` counts the earlier uses of the same sample."""

    sample: int
    visit: int


@dataclasses.dataclass(frozen=True)
class Stream:
    """The images of one dataset in one bucket.

    Args:
        dataset_id: The dataset that they come from.
        bucket: Their target size (height, width) in pixels.
        members: Positions of the images in the manifest, in an order that does not depend on the file system.
        rate: Draws of the whole stream in one pass over the data: images x (repeats + 1) x probability.
    """

    dataset_id: str
    bucket: Bucket
    members: tuple[int, ...]
    rate: Fraction


class Merge:
    """Interleaves streams of integer shares: a balanced binary tree, deterministic and free of state.

    Args:
        shares: A positive integer for each stream; only their proportions matter.

    With two streams each prefix holds each share to within one half of a draw, with up to four to within one draw.
    """

    def __init__(self, shares: Sequence[int]) -> None:
        if not shares or min(shares) <= 0:
            raise ValueError(f"shares must be positive integers, got {list(shares)}")
        order = sorted(range(len(shares)), key=lambda i: (-shares[i], i))
        self._root = self._build(order, shares)
        self.size = len(shares)

    def _build(self, order: Sequence[int], shares: Sequence[int]) -> tuple:
        if len(order) == 1:
            return (shares[order[0]], order[0])
        half = (len(order) + 1) // 2
        left, right = self._build(order[:half], shares), self._build(order[half:], shares)
        return (left[0] + right[0], left, right)

    @staticmethod
    def _left_count(node: tuple, m: int) -> int:
        return (2 * m * node[1][0] + node[0]) // (2 * node[0])  # round half up of m * left / total

    def locate(self, m: int) -> tuple[int, int]:
        """Element `m` of the merged sequence as (stream, how many of that stream came before)."""
        node = self._root
        while len(node) == 3:
            before = self._left_count(node, m)
            if self._left_count(node, m + 1) > before:
                node, m = node[1], before
            else:
                node, m = node[2], m - before
        return node[1], m

    def counts(self, m: int) -> list[int]:
        """How many of the first `m` elements belong to each stream."""
        result = [0] * self.size
        pending = [(self._root, m)]
        while pending:
            node, count = pending.pop()
            if len(node) == 2:
                result[node[1]] = count
                continue
            left = self._left_count(node, count)
            pending += [(node[1], left), (node[2], count - left)]
        return result


def _mix(x: int) -> int:
    """SplitMix64's finaliser: a fast hash of 64 bits."""
    x = (x + 0x9E3779B97F4A7C15) & _MASK64
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK64
    return x ^ (x >> 31)


def permuted(position: int, n: int, key: int) -> int:
    """Where a seeded permutation of range(n) sends `position`: a Feistel network with cycle walking, O(1) memory.

    Black and Rogaway, "Ciphers with Arbitrary Finite Domains" (2002). Eight rounds on the smallest grid a x b >= n.
    """
    a = math.isqrt(n - 1) + 1
    b = -(-n // a)
    while True:
        left, right = divmod(position, b)
        for turn in range(0, 8, 2):
            left = (left + _mix(key ^ _mix(turn << 48 | right))) % a
            right = (right + _mix(key ^ _mix((turn + 1) << 48 | left))) % b
        position = left * b + right
        if position < n:
            return position


class Plan:
    """What is seen when: batch `p` is a pure function of the streams, the global batch size, the seed and `p`.

    Args:
        streams: See `Stream`; empty ones are refused.
        batch_size: Samples in one batch over all ranks.
        seed: The run's seed.
    """

    def __init__(self, streams: Iterable[Stream], batch_size: int, seed: int) -> None:
        self.streams = sorted(streams, key=lambda s: (s.bucket, s.dataset_id))
        self.batch_size = batch_size
        self.seed = seed
        if batch_size < 1:
            raise CombinationError(f"data.batch_size is {batch_size}; it must be at least 1")
        if not self.streams or any(not s.members or s.rate <= 0 for s in self.streams):
            raise DataError("there is nothing to train on: no dataset has a usable image")
        scale = math.lcm(*(s.rate.denominator for s in self.streams))
        rates = [int(s.rate * scale) for s in self.streams]
        self.buckets = sorted({s.bucket for s in self.streams})
        self._of_bucket = [[i for i, s in enumerate(self.streams) if s.bucket == b] for b in self.buckets]
        self._within = [Merge([rates[i] for i in members]) for members in self._of_bucket]
        self._between = Merge([sum(rates[i] for i in members) for members in self._of_bucket])
        self.draws_per_pass = sum((s.rate for s in self.streams), Fraction(0))

    def batches_per_epoch(self, accumulate: int = 1) -> int:
        """Batches of an epoch: a pass over the data, rounded to whole optimizer steps of `accumulate` batches."""
        return accumulate * max(1, round(self.draws_per_pass / (self.batch_size * accumulate)))

    def batch(self, p: int) -> list[Draw]:
        """The global batch `p`: `batch_size` draws of one bucket."""
        bucket, index = self._between.locate(p)
        first = index * self.batch_size
        return [self._draw(bucket, first + offset) for offset in range(self.batch_size)]

    def bucket_of(self, p: int) -> Bucket:
        return self.buckets[self._between.locate(p)[0]]

    def slice_for(self, p: int, rank: int, world_size: int) -> list[Draw]:
        """The part of batch `p` that one rank computes; the slices of all ranks make up the batch."""
        each = slice_size(self.batch_size, world_size)
        return self.batch(p)[rank * each : (rank + 1) * each]

    def _draw(self, bucket: int, element: int) -> Draw:
        which, k = self._within[bucket].locate(element)
        stream = self.streams[self._of_bucket[bucket][which]]
        visit, position = divmod(k, len(stream.members))
        key = address(self.seed, "permutation", stream.dataset_id, *stream.bucket, visit)
        return Draw(stream.members[permuted(position, len(stream.members), key)], visit)

    def draws_of_streams(self, batches: int) -> list[int]:
        """How many draws each of `streams` has had after `batches` batches."""
        result = [0] * len(self.streams)
        for members, merge, count in zip(self._of_bucket, self._within, self._between.counts(batches), strict=True):
            for i, draws in zip(members, merge.counts(count * self.batch_size), strict=True):
                result[i] = draws
        return result

    def batches_of_buckets(self, batches: int) -> dict[Bucket, int]:
        """How many of the first `batches` batches belong to each bucket."""
        return dict(zip(self.buckets, self._between.counts(batches), strict=True))


def slice_size(batch_size: int, world_size: int) -> int:
    """Samples of a global batch on each rank.

    Raises:
        CombinationError: when the ranks cannot have equal slices, which gradient averaging needs.
    """
    if batch_size % world_size:
        allowed = ", ".join(str(world_size * k) for k in (1, 2, 3))
        raise CombinationError(
            f"data.batch_size is {batch_size}, the global batch over all {world_size} processes, and cannot be cut "
            f"into {world_size} equal slices. Use a multiple of {world_size} ({allowed}, ...) or fewer devices"
        )
    return batch_size // world_size
