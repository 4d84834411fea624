"""The kernels ``store`` and ``attend``: write keys and values into their pages, and attend over them.

`pages` describes the layout of a page. Queries, keys and values are in float32 or in the dtype of the pages; the heads of a
token are contiguous.
"""

from __future__ import annotations

import numpy as np
from numba import carray

from .abi import HEADS, MOST_HEADS, PAGE, TILE
from .intrinsics import FAST, compiled, exp, float32_at, greatest_of, int32_at, int64_at, narrowed, store_narrow, take, widen
from .pages import mix, mix_rows, mix_tile, per_word_of, score, score_rows, score_tile

_FEWEST = 3
"""For fewer tokens than this, reading the pages once per token takes less time than reading them for a whole tile."""


@compiled()
def _copy_head(k, k_at, v, v_at, keys, k_to, values, v_to, head_size):
    """Write the keys and values of one head of a token to its position in their page."""
    per_word = per_word_of(keys)
    for d in range(head_size):
        store_narrow(keys, k_to + d // per_word * per_word * PAGE + d % per_word, widen(k[k_at + d]))
        store_narrow(values, v_to + d * per_word, widen(v[v_at + d]))


@compiled()
def _store_head(task, k, v, keys, values, token, head):
    """Write the keys and values of one head of a token into their page."""
    page, offset = int64_at(task.pages)[token], int64_at(task.offsets)[token]
    lanes, head_size, per_word = task.head_lanes, task.head_size, per_word_of(keys)
    begin = (page * task.n_kv_heads + head) * PAGE * lanes
    k_to = begin + offset * per_word
    v_to = begin + offset // per_word * per_word * lanes + offset % per_word
    k_at, v_at = token * task.k_stride + head * head_size, token * task.v_stride + head * head_size
    if task.wide:
        _copy_head(float32_at(task.k), k_at, float32_at(task.v), v_at, keys, k_to, values, v_to, head_size)
    else:
        _copy_head(k, k_at, v, v_at, keys, k_to, values, v_to, head_size)


@compiled()
def _store(task, k, v, keys, values):
    """Write the keys and values of every token into their page."""
    while True:
        begin = take(task.next_unit, task.chunk)
        if begin >= task.n_tokens:
            return
        for token in range(begin, min(begin + task.chunk, task.n_tokens)):
            for head in range(task.n_kv_heads):
                _store_head(task, k, v, keys, values, token, head)


@compiled()
def _read_queries(task, q, at, keys, scale, to, begin):
    """Set ``to[begin:] = scale * q[at:]`` for one head of a token's queries, rounded to the dtype of ``keys``."""
    if task.wide:
        wide = float32_at(task.q)
        for d in range(task.head_size):
            to[begin + d] = scale * widen(narrowed(wide[at + d], keys))
    else:
        for d in range(task.head_size):
            to[begin + d] = scale * widen(q[at + d])


@compiled()
def _write(task, out, to, mixed, begin, total):
    """Set ``out[to:] = mixed[begin:] / total`` for one head of a token, rounded to the dtype of ``out``."""
    if task.wide:
        wide = float32_at(task.out)
        for d in range(task.head_size):
            wide[to + d] = widen(narrowed(mixed[begin + d] / total, out))
    else:
        for d in range(task.head_size):
            store_narrow(out, to + d, mixed[begin + d] / total)


@compiled()
def _begin(task, token):
    """Return the first position that a kept token sees; the token itself is the last position of its window."""
    return max(0, int64_at(task.lengths)[token] - task.window)


@compiled()
def _end_place(task, token):
    """Return the place in a kept token's block table at which its pages end."""
    return (int64_at(task.lengths)[token] + PAGE - 1) // PAGE


@compiled()
def _page(task, token, place):
    """Return the page at ``place`` of a kept token's block table, or -1 where its pages end before that."""
    if int64_at(task.lengths)[token] <= place * PAGE:
        return -1
    return np.int64(int32_at(task.block_tables)[int64_at(task.table_rows)[token] * task.max_pages + place])


@compiled()
def _end_of_shared(task, tile, count, place):
    """Return the first place, from ``place`` on, whose page the ``count`` tokens of a tile do not all share.

    Sequences that differ in one page share no later page.
    """
    while True:
        page = _page(task, tile, place)
        for t in range(1, count):
            if _page(task, tile + t, place) != page:
                page = -1
        if page < 0:
            return place
        place += 1


@compiled(fastmath=FAST)
def _softmax(scores, at, begin, end):
    """Turn ``scores[at + begin : at + end]`` into softmax weights that are not yet divided by their sum, and return the sum.

    The other scores of their pages become 0.
    """
    greatest = greatest_of(scores, at + begin, end - begin)
    total = np.float32(0)
    for i in range(at + begin, at + end):
        weight = exp(scores[i] - greatest)
        scores[i] = weight
        total += weight
    for i in range(at + begin // PAGE * PAGE, at + begin):
        scores[i] = np.float32(0)
    for i in range(at + end, at + (end + PAGE - 1) // PAGE * PAGE):
        scores[i] = np.float32(0)
    return total


@compiled()
def _score_places(task, token, begin, end, first_kv, n_pages, group, queries, q_at, keys, scores, at):
    """Compute the scores of one token's pages from place ``begin`` to ``end``; those of ``begin`` go to ``scores[at]``."""
    size = task.head_lanes
    for place in range(begin, end):
        page = (_page(task, token, place) * task.n_kv_heads + first_kv) * PAGE * size
        to = at + (place - begin) * PAGE
        score(queries, q_at, keys, page, scores, to, task.most_scores, size, n_pages, group)


@compiled()
def _mix_places(task, token, begin, end, first_kv, n_pages, group, weights, at, values, mixed, to):
    """Add one token's weighted values from place ``begin`` to ``end`` to ``mixed``; the weights begin at ``weights[at]``."""
    size = task.head_lanes
    for place in range(begin, end):
        page = (_page(task, token, place) * task.n_kv_heads + first_kv) * PAGE * size
        mix(weights, at + (place - begin) * PAGE, task.most_scores, values, page, mixed, to, size, n_pages, group)


@compiled()
def _heads_together(task, count, group):
    """Return how many of the ``group`` heads that share a page read it together, in a tile of ``count`` tokens.

    Their rows have to be consecutive, which those of several heads are in a full tile only.
    """
    return 1 if task.wide_tiles or count < TILE else group


@compiled()
def _score_shared(task, count, n_pages, group, queries, keys, page, scores, at):
    """Compute the scores of the contiguous pages from ``keys[page]`` on for all heads of a tile of ``count`` tokens."""
    size, stride, together = task.head_lanes, task.most_scores, _heads_together(task, count, group)
    rows = (together - 1) * TILE + count
    for h in range(0, n_pages * group, together):
        begin, q_at, to = page + h // group * PAGE * size, h * TILE * size, h * TILE * stride + at
        if task.wide_tiles:
            score_tile(queries, q_at, keys, begin, scores, to, stride, size)
        else:
            score_rows(rows, queries, q_at, keys, begin, scores, to, stride, size)


@compiled()
def _mix_shared(task, count, n_pages, group, weights, at, values, page, mixed):
    """Add the weighted values of the contiguous pages from ``values[page]`` on for all heads of a tile of ``count`` tokens."""
    size, stride, together = task.head_lanes, task.most_scores, _heads_together(task, count, group)
    rows = (together - 1) * TILE + count
    for h in range(0, n_pages * group, together):
        begin, row_at, to = page + h // group * PAGE * size, h * TILE * stride + at, h * TILE * size
        if task.wide_tiles:
            mix_tile(weights, row_at, stride, values, begin, mixed, to, size)
        else:
            mix_rows(rows, weights, row_at, stride, values, begin, mixed, to, size)


@compiled()
def _attend(task, q, k, v, keys, values, out):
    """Compute softmax attention of every kept token over its own past, a few heads of a tile of tokens at a time.

    The heads of a page are contiguous. They are read in one go, each once for all query heads that share it. Tokens of a tile
    that see the same page read it together; the result of each has the same bits as if it were computed alone.
    """
    n_kv_heads, head_size, size = task.n_kv_heads, task.head_size, task.head_lanes
    kept, lengths = int64_at(task.kept), int64_at(task.lengths)
    scale = np.float32(1 / np.sqrt(head_size))
    page_size, stride = PAGE * size, task.most_scores
    # A unit covers ``together`` heads of keys and, for each, up to ``most`` of the ``sharing`` query heads that read it.
    sharing = task.n_head // n_kv_heads
    together, most, parts = max(1, HEADS // sharing), min(sharing, MOST_HEADS), (sharing + MOST_HEADS - 1) // MOST_HEADS
    tiles, groups = (task.n_kept + TILE - 1) // TILE, (n_kv_heads + together - 1) // together * parts
    rows = together * most * TILE
    scratch = take(task.next_scratch, task.scratch)
    scaled, mixed = float32_at(scratch), float32_at(scratch + 4 * rows * size)
    scores, totals = float32_at(scratch + 8 * rows * size), float32_at(scratch + 8 * rows * size + 4 * rows * stride)
    for i in range(rows * size):
        scaled[i] = np.float32(0)
    while True:
        begin = take(task.next_unit, task.chunk)
        if begin >= tiles * groups:
            return
        for unit in range(begin, min(begin + task.chunk, tiles * groups)):
            tile, first_kv, part = unit // groups * TILE, unit % groups // parts * together, unit % parts
            count, n_pages = min(TILE, task.n_kept - tile), min(together, n_kv_heads - first_kv)
            first, group = first_kv * sharing + part * most, min(most, sharing - part * most)
            heads = n_pages * group
            lowest = highest = _begin(task, tile) // PAGE
            for t in range(count):
                for h in range(heads):
                    at = kept[tile + t] * task.q_stride + (first + h) * head_size
                    _read_queries(task, q, at, keys, scale, scaled, (h * TILE + t) * size)
                if task.stores:
                    for i in range(n_pages):
                        _store_head(task, k, v, keys, values, kept[tile + t], first_kv + i)
                place = _begin(task, tile + t) // PAGE
                lowest, highest = min(lowest, place), max(highest, place)
            # Tokens whose windows begin in the same page, or in two consecutive pages, share the pages from ``shared`` to
            # ``end``, and their rows of scores all begin with the same page. Otherwise each token's row of scores begins with
            # its own first page.
            alike = count >= _FEWEST and highest <= lowest + 1
            shared = highest if alike else 0
            end = _end_of_shared(task, tile, count, shared) if alike else 0
            for place in range(shared, end):
                page, at = (_page(task, tile, place) * n_kv_heads + first_kv) * page_size, (place - lowest) * PAGE
                _score_shared(task, count, n_pages, group, scaled, keys, page, scores, at)
            for t in range(count):
                token, at = tile + t, t * stride
                opening, ends = _begin(task, token) // PAGE, _end_place(task, token)
                origin, after = lowest if alike else opening, max(opening, end)
                for a, b in ((opening, min(shared, ends)), (after, ends)):
                    to = at + (a - origin) * PAGE
                    _score_places(task, token, a, b, first_kv, n_pages, group, scaled, t * size, keys, scores, to)
                for h in range(heads):
                    row, skipped = h * TILE + t, origin * PAGE
                    totals[row] = _softmax(scores, row * stride, _begin(task, token) - skipped, lengths[token] - skipped)
            for i in range(rows * size):
                mixed[i] = np.float32(0)
            for t in range(count):
                token, opening = tile + t, _begin(task, tile + t) // PAGE
                at = t * stride + (opening - lowest) * PAGE
                ends = min(shared, _end_place(task, token))
                _mix_places(task, token, opening, ends, first_kv, n_pages, group, scores, at, values, mixed, t * size)
            for place in range(shared, end):
                page, at = (_page(task, tile, place) * n_kv_heads + first_kv) * page_size, (place - lowest) * PAGE
                _mix_shared(task, count, n_pages, group, scores, at, values, page, mixed)
            for t in range(count):
                token, opening = tile + t, _begin(task, tile + t) // PAGE
                origin, after = lowest if alike else opening, max(opening, end)
                at = t * stride + (after - origin) * PAGE
                ends = _end_place(task, token)
                _mix_places(task, token, after, ends, first_kv, n_pages, group, scores, at, values, mixed, t * size)
            for t in range(count):
                for h in range(heads):
                    row, to = h * TILE + t, ((tile + t) * task.n_head + first + h) * head_size
                    _write(task, out, to, mixed, row * size, totals[row])


def store_by(at):
    """Return the kernel ``store`` for pages of the dtype of ``at``'s pointers."""

    def store(tasks):
        task = carray(tasks, 1)[0]
        _store(task, at(task.k), at(task.v), at(task.keys), at(task.values))

    return store


def attend_by(at):
    """Return the kernel ``attend`` for pages of the dtype of ``at``'s pointers."""

    def attend(tasks):
        task = carray(tasks, 1)[0]
        _attend(task, at(task.q), at(task.k), at(task.v), at(task.keys), at(task.values), at(task.out))

    return attend
