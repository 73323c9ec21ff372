"""The accumulator of Hopper's FP8 tensor cores, emulated in PyTorch: it keeps about 14 bits, and cuts the rest off.

DeepSeek-V3 report, section 3.5.2: 32 products are shifted right until they agree with the largest exponent among them, of
each only the highest 14 bits are added, and the register that results are added to keeps 14 bits too. So (section 3.3) the
sum is promoted after every 128 products: added to a float32 register of the ordinary cores.

Assumed here, one instruction of 32 products after the other:
  14 bits     the leading one and 13 after it: the register has 1 sign, 8 exponent and 13 fraction bits (measured by the
              authors of SageAttention 2, quoted in thu-ml/SageAttention, issue 287; arXiv 2505.09343)
  alignment   a product's exponent is the sum of its factors' (of subnormals -6), and the running sum is aligned with the
              products: once it is large, they lose their low bits to it (MMA-Sim, arXiv 2511.10909, and its code for wgmma)
  cutting     toward zero, of each product, of the running sum, and of the result when it is written back (MMA-Sim)
  promotion   a float32 addition, rounded to nearest
MMA-Sim's authors report that it gives the same bits as the hardware; nothing here was compared with a chip.

What comes of it for K = 4096, E4M3 numbers drawn evenly from 0 to 1: an error of 6.6 % without promotion, 0.52 % at 512 and
0.050 % at 128. It depends on the data: magnitudes of normal numbers give 7.0, 0.61 and 0.062 %. With both signs the loss
hides, 0.12 % without promotion. Most of it comes from the alignment: were products aligned among themselves only, and cut
again when added, 0.26 % would be left of the 6.6.

Shapes: x [M, K], w [N, K], out [M, N].
"""

import torch
from torch import Tensor

FRACTION_BITS = 13
GROUP = 32  # products that one instruction adds
LOWEST = -6  # exponent of E4M3's smallest numbers
NOTHING = -100  # exponent of a zero: below that of every product


def fp8_accumulate(
    x_MK: Tensor, w_NK: Tensor, promote_every: int | None = None, fraction_bits: int = FRACTION_BITS
) -> Tensor:
    """x w^T as the tensor cores sum it, in float32.

    x_MK, w_NK: float8_e4m3fn. promote_every: products after which the sum moves to a float32 register, a multiple of 32;
    None: never. fraction_bits: of the accumulator.
    Raises: ValueError for sizes that do not fit each other, another dtype, or an interval that is no multiple of 32.
    """
    if x_MK.ndim != 2 or w_NK.ndim != 2 or x_MK.shape[1] != w_NK.shape[1]:
        raise ValueError(f"shapes {list(x_MK.shape)} and {list(w_NK.shape)} have no product x w^T")
    if {x_MK.dtype, w_NK.dtype} != {torch.float8_e4m3fn}:
        raise ValueError(f"fp8_accumulate takes float8_e4m3fn, not {x_MK.dtype} and {w_NK.dtype}")
    if promote_every is not None and (promote_every <= 0 or promote_every % GROUP):
        raise ValueError(f"sums are promoted every 32, 64, 96, ... products, and not every {promote_every}")
    promoted_MN = torch.zeros(x_MK.shape[0], w_NK.shape[0])
    sum_MN = promoted_MN.double()
    (x_MK, x_exponent_MK), (w_NK, w_exponent_NK) = _parts(x_MK), _parts(w_NK)
    for start in range(0, x_MK.shape[1], GROUP):
        k = slice(start, start + GROUP)
        products_MNK = x_MK[:, None, k] * w_NK[None, :, k]
        exponents_MNK = x_exponent_MK[:, None, k] + w_exponent_NK[None, :, k]
        largest_MN = torch.maximum(exponents_MNK.amax(-1), _exponent(sum_MN))
        step_MN = _power(largest_MN - fraction_bits)
        units_MN = (products_MNK / step_MN[..., None]).trunc().sum(-1) + (sum_MN / step_MN).trunc()
        sum_MN = units_MN * step_MN
        step_MN = _power(_exponent(sum_MN) - fraction_bits)
        sum_MN = (sum_MN / step_MN).trunc() * step_MN
        if promote_every and (start + GROUP) % promote_every == 0:
            promoted_MN += sum_MN.float()
            sum_MN.zero_()
    return promoted_MN + sum_MN.float()


def _parts(codes: Tensor) -> tuple[Tensor, Tensor]:
    """Values and exponents; the exponent of a zero makes that of every product with it too small to matter."""
    values = codes.double()
    exponents = torch.frexp(values).exponent - 1
    return values, torch.where(values == 0, NOTHING, exponents.clamp(min=LOWEST))


def _exponent(values: Tensor) -> Tensor:
    return torch.where(values == 0, NOTHING, torch.frexp(values).exponent - 1)


def _power(exponents: Tensor) -> Tensor:
    return torch.ldexp(torch.ones_like(exponents, dtype=torch.float64), exponents)
