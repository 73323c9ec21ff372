"""02.1: RMSNorm in both conventions that checkpoints have (Zhang and Sennrich 2019, equation 4; Llama and Gemma)."""

import torch

from course.checking.compare import same
from course.checking.exercise import Exercise, Misconception

EDGES = [  # shape, dtype, size of x, eps, zero_centred
    ((3, 8), torch.float32, 1.0, 1e-6, False),
    ((2, 3, 7), torch.float32, 1e-3, 1e-5, True),
    ((12, 64), torch.bfloat16, 1.0, 1e-6, False),
    ((2, 5, 96), torch.bfloat16, 30.0, 1e-5, True),
    ((9, 72), torch.float16, 900.0, 1e-5, False),  # squares beyond 65,504, the largest float16
]


def inputs(rng, number):
    """The second row of the case is zero: what eps is for."""
    if number < len(EDGES):
        shape, dtype, size, eps, zero_centred = EDGES[number]
    else:
        dtype = [torch.float32, torch.bfloat16][int(rng.integers(2))]
        shape = (int(rng.integers(8, 14)), int(rng.integers(65, 120)))
        size, eps = float(rng.choice([1e-3, 0.1, 1.0, 20.0])), float(rng.choice([1e-5, 1e-6]))
        zero_centred = bool(rng.integers(2))
    x = torch.tensor(rng.normal(size=shape) * size)
    x.view(-1, shape[-1])[1] = 0
    around_one = 1 + 0.4 * rng.normal(size=shape[-1])
    weight_D = torch.tensor(0.02 * rng.normal(size=shape[-1]) if zero_centred else around_one)
    return {"x": x.to(dtype), "weight_D": weight_D.to(dtype), "eps": eps, "zero_centred": zero_centred}


def reference(x, weight_D, eps, zero_centred):
    wide = x.float()
    normed = wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + eps)
    if zero_centred:
        return (normed * (1 + weight_D.float())).to(x.dtype)
    return normed.to(x.dtype) * weight_D


def from_the_length(x, weight_D, eps, zero_centred):
    wide = x.double()
    length = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
    normed = wide / torch.sqrt(length**2 / x.shape[-1] + eps)
    gain_D = 1.0 + weight_D.double() if zero_centred else weight_D.double()
    rounded = normed if zero_centred else normed.to(x.dtype).double()
    return (rounded * gain_D).to(x.dtype)


def minus_the_mean(x, weight_D, eps, zero_centred):
    wide = x.float()
    wide = wide - wide.mean(dim=-1, keepdim=True)
    normed = wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + eps)
    if zero_centred:
        return (normed * (1 + weight_D.float())).to(x.dtype)
    return normed.to(x.dtype) * weight_D


def length_for_rms(x, weight_D, eps, zero_centred):
    wide = x.float()
    normed = wide * torch.rsqrt(wide.square().sum(dim=-1, keepdim=True) + eps)
    if zero_centred:
        return (normed * (1 + weight_D.float())).to(x.dtype)
    return normed.to(x.dtype) * weight_D


def eps_outside(x, weight_D, eps, zero_centred):
    wide = x.float()
    normed = wide / (wide.square().mean(dim=-1, keepdim=True).sqrt() + eps)
    if zero_centred:
        return (normed * (1 + weight_D.float())).to(x.dtype)
    return normed.to(x.dtype) * weight_D


def without_eps(x, weight_D, eps, zero_centred):
    wide = x.float()
    normed = wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True))
    if zero_centred:
        return (normed * (1 + weight_D.float())).to(x.dtype)
    return normed.to(x.dtype) * weight_D


def divided_by_rsqrt(x, weight_D, eps, zero_centred):
    wide = x.float()
    normed = wide / torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + eps)
    if zero_centred:
        return (normed * (1 + weight_D.float())).to(x.dtype)
    return normed.to(x.dtype) * weight_D


def in_its_own_precision(x, weight_D, eps, zero_centred):
    normed = x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + eps)
    return normed * (1 + weight_D) if zero_centred else normed * weight_D


def weight_before_rounding(x, weight_D, eps, zero_centred):
    wide = x.float()
    normed = wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + eps)
    gain_D = 1 + weight_D.float() if zero_centred else weight_D.float()
    return (normed * gain_D).to(x.dtype)


def rounding_before_weight(x, weight_D, eps, zero_centred):
    wide = x.float()
    normed = (wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + eps)).to(x.dtype)
    return normed * (1 + weight_D) if zero_centred else normed * weight_D


def one_plus_weight_rounded(x, weight_D, eps, zero_centred):
    wide = x.float()
    normed = wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + eps)
    if zero_centred:
        return (normed * (1 + weight_D).float()).to(x.dtype)
    return normed.to(x.dtype) * weight_D


def never_one_plus(x, weight_D, eps, zero_centred):
    wide = x.float()
    normed = wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + eps)
    return (normed * weight_D.float()).to(x.dtype) if zero_centred else normed.to(x.dtype) * weight_D


def always_one_plus(x, weight_D, eps, zero_centred):
    wide = x.float()
    normed = wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + eps)
    return (normed * (1 + weight_D.float())).to(x.dtype)


def one_scale_for_all(x, weight_D, eps, zero_centred):
    wide = x.float()
    normed = wide * torch.rsqrt(wide.square().mean() + eps)
    if zero_centred:
        return (normed * (1 + weight_D.float())).to(x.dtype)
    return normed.to(x.dtype) * weight_D


def left_wide(x, weight_D, eps, zero_centred):
    wide = x.float()
    normed = wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + eps)
    return normed * (1 + weight_D.float()) if zero_centred else normed.to(x.dtype).float() * weight_D.float()


def compare(inputs, wanted, got):
    """In float32 to 1e-5. In 16 bits one number in a thousand may round the other way; another order moves far more."""
    rtol = 1e-5 if inputs["x"].dtype == torch.float32 else 6e-4
    return same("the result", rtol=rtol)(inputs, wanted, got)


EXERCISE = Exercise(
    id="02.1",
    unit="02",
    title="RMSNorm",
    entry="rms_norm",
    points=10,
    minutes=10,
    difficulty=2,
    spine=False,
    inputs=inputs,
    cases=7,
    reference=reference,
    compare=compare,
    misconceptions=(
        Misconception(
            "minus-the-mean",
            minus_the_mean,
            "It looks like LayerNorm, which subtracts the mean first. RMSNorm leaves the mean in: only the size is divided out.",
        ),
        Misconception(
            "length-for-rms",
            length_for_rms,
            "It looks like division by the length of the vector. The root *mean* square divides the sum of squares by D first.",
        ),
        Misconception(
            "eps-outside",
            eps_outside,
            "It looks like eps added after the square root. It belongs under the root: sqrt(mean of squares + eps).",
            "allenai/OLMo, issue 281: x / (rms + eps) where Llama has the eps inside",
        ),
        Misconception(
            "without-eps",
            without_eps,
            "It looks like a norm without eps. A row of zeros then becomes 0 / 0; with eps under the root it stays zero.",
        ),
        Misconception(
            "divided-by-rsqrt",
            divided_by_rsqrt,
            "It looks like a division by rsqrt. torch.rsqrt is already one over the root: multiply by it.",
            "mosaicml/llm-foundry, issue 371: x / torch.rsqrt(...), and the training diverged",
        ),
        Misconception(
            "own-precision",
            in_its_own_precision,
            "It looks like statistics in the input's own 16 bits. Widen x to float32 before you square it: in float16 the "
            "square of 256 is infinite already, and a bfloat16 has 8 bits.",
            "meta-llama/llama, issue 1048, and pytorch/pytorch, pull request 133085: the square overflows in float16",
        ),
        Misconception(
            "weight-before-rounding",
            weight_before_rounding,
            "It looks like the weight multiplied in float32 in both conventions. With zero_centred=False, Llama's way, the normed "
            "x is rounded to its dtype first and multiplied by the weight in that dtype.",
            "huggingface/transformers, pull request 29402: Llama rounds and then multiplies, Gemma the other way round",
        ),
        Misconception(
            "rounding-before-weight",
            rounding_before_weight,
            "It looks like rounding before the weight in both conventions. With zero_centred=True, Gemma's way, everything "
            "stays in float32 to the end, 1 + weight too.",
            "google/gemma_pytorch, pull request 67: the norm was rounded too early",
        ),
        Misconception(
            "one-plus-weight-rounded",
            one_plus_weight_rounded,
            "It looks like 1 + weight computed in 16 bits. Next to 1 a bfloat16 has steps of 1/128, and small weights vanish: "
            "widen the weight first.",
        ),
        Misconception(
            "never-one-plus",
            never_one_plus,
            "It looks like the weight used as it is. With zero_centred=True it is stored as its distance from one: multiply by 1 + weight.",
        ),
        Misconception(
            "always-one-plus",
            always_one_plus,
            "It looks like 1 + weight in both conventions. With zero_centred=False the weight itself is the factor.",
        ),
        Misconception(
            "one-scale-for-all",
            one_scale_for_all,
            "It looks like one mean over the whole tensor. Every vector of the last dimension has its own size: dim=-1, keepdim=True.",
        ),
        Misconception(
            "left-wide",
            left_wide,
            "It looks like a float32 result for a 16-bit input. The result has the dtype of x.",
        ),
    ),
    alternatives=(from_the_length,),
    hints=(
        "Three questions: over which dimension is the mean, where does eps go, and when is the result rounded to 16 bits?",
        "Work on x.float(). Zero-centred: multiply by 1 + weight in float32 and round last. Otherwise: round, then multiply.",
        "normed = wide * torch.rsqrt(mean of wide.square() over dim=-1, kept, + eps); then one line for each convention.",
    ),
    forbids=("torch.nn.functional.rms_norm", "torch.rms_norm", "torch.nn.RMSNorm"),
)
