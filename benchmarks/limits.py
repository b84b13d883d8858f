"""What the machine itself can do: bytes a second of a matrix-vector product, and GEMM's rate.

`python -m benchmarks.limits`; `decode.py` measures them again in its own run. The matrices have the
reference model's shapes and are too many for the processor's caches, as a model's weights are.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from statistics import median
from time import perf_counter

import torch
from torch import Tensor, nn

from benchmarks.program import finish, parser, table, undisturbed
from litevl.models.linear import PackedLinear

OUT, IN = 4864, 896
NUM_WEIGHTS = 30  # 523 MB
GEMM_ROWS = 1024
REPEATS = 9


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Rates of plain torch and of the weights that litevl packs."""

    read_gb_s: float  # a sum over the weights: no arithmetic to speak of
    plain_matvec_gb_s: float
    packed_matvec_gb_s: float
    plain_gemm_gflop_s: float
    packed_gemm_gflop_s: float

    @property
    def matvec_gb_s(self) -> float:
        """The better of the two: what a decode step of one row is held against."""
        return max(self.plain_matvec_gb_s, self.packed_matvec_gb_s)

    @property
    def gemm_gflop_s(self) -> float:
        return max(self.plain_gemm_gflop_s, self.packed_gemm_gflop_s)


@torch.inference_mode()
def measure(*, num_weights: int = NUM_WEIGHTS, repeats: int = REPEATS) -> Limits:
    """Medians over passes through all weights."""
    linears = [nn.Linear(IN, OUT, bias=False) for _ in range(num_weights)]
    weights = [linear.weight for linear in linears]
    packed = [PackedLinear(linear) for linear in linears]
    row, rows = torch.rand(1, IN), torch.rand(GEMM_ROWS, IN)
    few = max(1, num_weights // 10)
    num_bytes = sum(weight.nbytes for weight in weights)
    flops = 2.0 * GEMM_ROWS * OUT * IN * few

    def rate(work: Callable[[], object], amount: float) -> float:
        return amount / 1e9 / _seconds(work, repeats)

    return Limits(
        read_gb_s=rate(lambda: [weight.sum() for weight in weights], num_bytes),
        plain_matvec_gb_s=rate(lambda: [_plain(row, weight) for weight in weights], num_bytes),
        packed_matvec_gb_s=rate(lambda: [linear(row) for linear in packed], num_bytes),
        plain_gemm_gflop_s=rate(lambda: [_plain(rows, weight) for weight in weights[:few]], flops),
        packed_gemm_gflop_s=rate(lambda: [linear(rows) for linear in packed[:few]], flops),
    )


def _plain(rows: Tensor, weight: Tensor) -> Tensor:
    return nn.functional.linear(rows, weight)


def _seconds(work: Callable[[], object], repeats: int) -> float:
    """The median of `repeats` runs, after one that does not count."""
    times = []
    for _ in range(repeats + 1):
        began = perf_counter()
        work()
        times.append(perf_counter() - began)
    return median(times[1:])


def main(argv: list[str] | None = None) -> None:
    args = parser(__doc__).parse_args(argv)
    torch.set_num_threads(args.threads)
    size = {"num_weights": 4, "repeats": 2} if args.quick else {}
    limits, _ = undisturbed(lambda: measure(**size))
    table(("rate", "value"), asdict(limits).items())
    finish("limits", asdict(limits), args.threads)


if __name__ == "__main__":
    main()
