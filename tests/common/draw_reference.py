"""How far a drawn id lies from the draw, in float64: two kernels may differ where rounding decides, and
nowhere else."""

from __future__ import annotations

import math

import _core_parts
import torch
from torch import Tensor

# In probability: float32 weights, and exponentials of some 22 bits, move a running sum of them by less.
ROUNDING = 2e-6
# As in the kernels: a nucleus of more tokens is walked by bins of logits, and by ids in all but the last bin.
FIRST_GUESS, NUM_BINS = 128, 2048


def uniform(seed: int, output_idx: int) -> float:
    """The number that a row is drawn with."""
    words = _core_parts.philox4x32(seed % (1 << 64), output_idx)
    return ((words[0] >> 5) * 67108864.0 + (words[1] >> 6)) / 9007199254740992.0


def draw_error(
    logits: Tensor,
    token: int,
    *,
    temperature: float,
    top_k: int,
    top_p: float,
    seed: int,
    output_idx: int,
    min_p: float = 0.0,
) -> float:
    """Between the draw and the token's part of the running sum of probabilities, in which it should fall: 0
    if it does, infinite for a token outside of the set. logits: of one row, edited, float32; temperature: not
    0. A nucleus that ends within ROUNDING of top_p may end on either side."""
    temperature = float(torch.tensor(temperature, dtype=torch.float32))
    logits, highest = logits.float(), float(logits.max())
    if min_p > 0:
        floor = torch.tensor(highest + temperature * math.log(min_p)).float() if min_p < 1 else highest
        logits = logits.masked_fill(logits < floor, -math.inf)
    weights = ((logits.double() - highest) / temperature).exp()
    has_top_k = 0 < top_k < logits.numel()
    if not has_top_k and top_p >= 1:
        return _distance(weights.nonzero().flatten(), weights, token, seed, output_idx)
    order = torch.sort(logits, descending=True, stable=True).indices
    order = order[weights[order] > 0][: top_k if has_top_k else None]
    if top_p >= 1:
        return _distance(order, weights, token, seed, output_idx)
    sums = weights[order].cumsum(0)
    limit = float(torch.tensor(top_p, dtype=torch.float32))
    errors = []
    for share in (limit - ROUNDING, limit + ROUNDING):
        end = min(len(order), 1 + int(torch.searchsorted(sums, share * sums[-1])))
        kept = order[:end]
        if not has_top_k and end > FIRST_GUESS:
            kept = _by_bins(kept, logits, highest, temperature)
        errors.append(_distance(kept, weights, token, seed, output_idx))
    return min(errors)


def _distance(order: Tensor, weights: Tensor, token: int, seed: int, output_idx: int) -> float:
    """As draw_error, of tokens that are walked in this order."""
    place = (order == token).nonzero().flatten()
    if len(place) == 0:
        return math.inf
    sums = weights[order].cumsum(0)
    end = float(sums[place] / sums[-1])
    begin = end - float(weights[token] / sums[-1])
    draw = uniform(seed, output_idx)
    return max(0.0, begin - draw, draw - end)


def _by_bins(ranked: Tensor, logits: Tensor, highest: float, temperature: float) -> Tensor:
    """The bins before the last one by id, the last one by rank; computed in float32, as the kernels do."""
    width = 104.0 / (1.0 / torch.tensor(temperature)) / NUM_BINS
    bins = ((torch.tensor(highest) - logits[ranked]) / width).clamp(max=NUM_BINS - 1).long()
    before = bins < bins[-1]
    return torch.cat([ranked[before].sort().values, ranked[~before]])


def check_draws(actual: Tensor, expected: Tensor, logits: Tensor, arguments: dict[str, Tensor]) -> None:
    """Rows of ids agree but where rounding decides. logits: edited; arguments: of `ops.sample`, on the
    CPU."""
    for row in (actual != expected).nonzero().flatten().tolist():
        names = ("temperature", "top_k", "top_p", "seed", "output_idx", "min_p")
        given = {name: arguments[name][row].item() for name in names if name in arguments}
        ids = f"row {row}: {int(actual[row])}, not {int(expected[row])}"
        assert given["temperature"] > 0, ids
        for token in (int(actual[row]), int(expected[row])):
            error = draw_error(logits[row], token, **given)
            assert error <= ROUNDING, f"{ids}; the draw lies {error} from {token}"
