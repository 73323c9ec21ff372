"""03.3: clip the norm of all gradients together, and refuse a step that is not finite (Pascanu et al. 2013, section 3.2)."""

import torch

from course.checking.compare import same
from course.checking.exercise import Exercise, Misconception

EDGES = [  # what is special, bfloat16, largest norm over the norm
    ("plain", False, 0.4),
    ("below", False, 3.0),
    ("plain", True, 0.6),
    ("none", False, 0.5),
    ("nan", False, 0.5),
    ("inf", True, 0.5),
    ("zero", False, 1.0),
    ("all none", False, 1.0),
    ("tiny", False, 0.2),
    ("overflow", False, 0.5),
    ("wide", True, 0.3),
]


def inputs(rng, number):
    if number < len(EDGES):
        special, narrow, ratio = EDGES[number]
    else:
        special = str(rng.choice(["plain", "plain", "below", "none", "nan", "inf", "tiny", "overflow"]))
        narrow, ratio = bool(rng.integers(2)), float(rng.uniform(0.2, 0.9) * (4 if special == "below" else 1))
    grads: list = []
    unit = {"tiny": 1e-5, "overflow": 1e25}.get(special, 1.0)
    for _ in range(int(rng.integers(2, 6))):
        shape = (int(rng.integers(2, 9)), int(rng.integers(2, 9)))[: int(rng.integers(1, 3))]
        shape = (40, 50) if special == "wide" else shape
        gradient = torch.tensor(unit * 10.0 ** rng.uniform(-1, 1) * rng.normal(size=shape), dtype=torch.float32)
        grads.append(gradient.bfloat16() if narrow else gradient)
    norm = float(torch.cat([g.double().flatten() for g in grads]).norm())
    if special == "zero":
        grads = [torch.zeros_like(g) for g in grads]
    if special in ("nan", "inf"):
        grads[-1].view(-1)[0] = float(special)
    if special in ("none", "nan"):
        grads.insert(1, None)
    if special == "all none":
        grads = [None] * len(grads)
    return {"grads": grads, "max_norm": ratio * norm}


def compare(inputs, wanted, got):
    """The norm to 1e-5; gradients too, but to 1e-3 where they are bfloat16: a product that is rounded twice is farther off."""
    if not isinstance(got, list) or len(got) != 2 or not isinstance(got[0], list) or len(got[0]) != len(wanted[0]):
        return same("clipped", "norm")(inputs, wanted, got)
    for place, (w, g) in enumerate(zip(wanted[0], got[0], strict=True)):
        if (w is None) != (g is None):
            norm = f"the norm is {wanted[1].item():g}"
            return f"clipped[{place}] ({norm}): wanted {'None' if w is None else 'a tensor'}, got {'None' if g is None else 'a value'}"
        rough = isinstance(w, torch.Tensor) and w.dtype == torch.bfloat16
        if difference := same(f"clipped[{place}]", rtol=1e-3 if rough else 1e-5)(inputs, w, g):
            return difference
    return same("norm")(inputs, wanted[1], got[1])


def reference(grads, max_norm):
    squares = [g.float().square().sum() for g in grads if g is not None]
    norm = torch.stack([torch.zeros(()), *squares]).sum().sqrt()
    if not norm.isfinite():
        return [None] * len(grads), norm
    if norm <= max_norm:
        return grads, norm
    scale = max_norm / norm.item()
    return [None if g is None else (g.float() * scale).to(g.dtype) for g in grads], norm


def one_long_vector(grads, max_norm):
    there = [g.to(torch.float32).reshape(-1) for g in grads if g is not None]
    norm = torch.linalg.vector_norm(torch.cat(there)) if there else torch.zeros(())
    clipped = []
    for g in grads:
        skip = g is None or bool(norm.isnan() | norm.isinf())
        clipped.append(None if skip else (g.double() * min(1.0, max_norm / max(norm.item(), 1e-30))).to(g.dtype))
    return clipped, norm


def each_tensor_alone(grads, max_norm):
    squares = [g.float().square().sum() for g in grads if g is not None]
    norm = torch.stack([torch.zeros(()), *squares]).sum().sqrt()
    if not norm.isfinite():
        return [None] * len(grads), norm
    return [None if g is None else g * min(1.0, max_norm / max(1e-9, g.float().norm().item())) for g in grads], norm


def number_by_number(grads, max_norm):
    squares = [g.float().square().sum() for g in grads if g is not None]
    norm = torch.stack([torch.zeros(()), *squares]).sum().sqrt()
    if not norm.isfinite():
        return [None] * len(grads), norm
    return [None if g is None else g.clamp(-max_norm, max_norm) for g in grads], norm


def always_scaled(grads, max_norm):
    squares = [g.float().square().sum() for g in grads if g is not None]
    norm = torch.stack([torch.zeros(()), *squares]).sum().sqrt()
    if not norm.isfinite():
        return [None] * len(grads), norm
    scale = max_norm / max(norm.item(), 1e-30)
    return [None if g is None else g * scale for g in grads], norm


def something_added(grads, max_norm):
    squares = [g.float().square().sum() for g in grads if g is not None]
    norm = torch.stack([torch.zeros(()), *squares]).sum().sqrt()
    if not norm.isfinite():
        return [None] * len(grads), norm
    scale = min(1.0, max_norm / (norm.item() + 1e-6))
    return [None if g is None else g * scale for g in grads], norm


def factor_rounded(grads, max_norm):
    squares = [g.float().square().sum() for g in grads if g is not None]
    norm = torch.stack([torch.zeros(()), *squares]).sum().sqrt()
    if not norm.isfinite():
        return [None] * len(grads), norm
    scale = (max_norm / norm.clamp(min=1e-30)).clamp(max=1.0)
    return [None if g is None else g * scale.to(g.dtype) for g in grads], norm


def looks_at_numbers(grads, max_norm):
    there = [g.float() for g in grads if g is not None]
    norm = torch.stack([torch.zeros(()), *[g.square().sum() for g in there]]).sum().sqrt()
    if not all(g.isfinite().all() for g in there):
        return [None] * len(grads), norm
    scale = min(1.0, max_norm / max(norm.item(), 1e-30))
    return [None if g is None else g * scale for g in grads], norm


def norm_in_low_precision(grads, max_norm):
    squares = [g.square().sum() for g in grads if g is not None]
    norm = torch.stack([torch.zeros((), dtype=s.dtype) for s in squares[:1]] + squares).sum().sqrt() if squares else 0
    norm = torch.as_tensor(norm).float()
    if not norm.isfinite():
        return [None] * len(grads), norm
    scale = min(1.0, max_norm / max(norm.item(), 1e-30))
    return [None if g is None else g * scale for g in grads], norm


def norm_afterwards(grads, max_norm):
    squares = [g.float().square().sum() for g in grads if g is not None]
    norm = torch.stack([torch.zeros(()), *squares]).sum().sqrt()
    if not norm.isfinite():
        return [None] * len(grads), norm
    scale = min(1.0, max_norm / max(norm.item(), 1e-30))
    return [None if g is None else g * scale for g in grads], norm * scale


def sum_of_norms(grads, max_norm):
    norm = torch.stack([torch.zeros(()), *[g.float().norm() for g in grads if g is not None]]).sum()
    if not norm.isfinite():
        return [None] * len(grads), norm
    scale = min(1.0, max_norm / max(norm.item(), 1e-30))
    return [None if g is None else g * scale for g in grads], norm


def without_the_root(grads, max_norm):
    squares = [g.float().square().sum() for g in grads if g is not None]
    norm = torch.stack([torch.zeros(()), *squares]).sum()
    if not norm.isfinite():
        return [None] * len(grads), norm
    scale = min(1.0, max_norm / max(norm.item(), 1e-30))
    return [None if g is None else g * scale for g in grads], norm


def lets_nan_through(grads, max_norm):
    squares = [g.float().square().sum() for g in grads if g is not None]
    norm = torch.stack([torch.zeros(()), *squares]).sum().sqrt()
    scale = (max_norm / norm.clamp(min=1e-30)).clamp(max=1.0)
    return [None if g is None else (g.float() * scale).to(g.dtype) for g in grads], norm


def zeros_for_nan(grads, max_norm):
    squares = [g.float().square().sum() for g in grads if g is not None]
    norm = torch.stack([torch.zeros(()), *squares]).sum().sqrt()
    if not norm.isfinite():
        return [None if g is None else torch.zeros_like(g) for g in grads], norm
    scale = min(1.0, max_norm / max(norm.item(), 1e-30))
    return [None if g is None else g * scale for g in grads], norm


EXERCISE = Exercise(
    id="03.3",
    unit="03",
    title="gradient clipping",
    entry="clip_gradients",
    points=10,
    minutes=15,
    difficulty=2,
    spine=False,
    inputs=inputs,
    cases=13,
    reference=reference,
    compare=compare,
    misconceptions=(
        Misconception(
            "each-tensor-alone",
            each_tensor_alone,
            "It looks like every tensor clipped by its own norm, which turns the step into another direction. There is one norm, of all "
            "gradients together, and one factor.",
            "BertAdam in huggingface/transformers, issue 581; Keras' clipnorm, keras-team/keras issue 13575",
        ),
        Misconception(
            "number-by-number",
            number_by_number,
            "It looks like every number cut off at max_norm. Multiply all of them by one factor, so that the direction stays.",
            "Happy-Algorithms-League/hal-cgp pull request 210",
        ),
        Misconception(
            "always-scaled",
            always_scaled,
            "It looks like gradients brought to max_norm whatever their norm. Those at or below it stay as they are.",
        ),
        Misconception(
            "something-added",
            something_added,
            "It looks like a small number added to the norm. Against a norm of 1e-4 it is no longer small; where the norm is above "
            "max_norm it cannot be zero, and nothing needs to be added.",
            "clip_grad_norm_ of PyTorch adds 1e-6",
        ),
        Misconception(
            "factor-rounded",
            factor_rounded,
            "It looks like a factor rounded to bfloat16 before the product. Multiply in float32, and round the product.",
        ),
        Misconception(
            "looks-at-numbers",
            looks_at_numbers,
            "It looks like a test of the gradients' numbers. They can all be finite and their norm infinite, when the squares overflow: "
            "the factor is then zero. Test the norm.",
        ),
        Misconception(
            "low-precision",
            norm_in_low_precision,
            "It looks like squares summed in the gradients' own precision. In bfloat16 small terms vanish beside the sum: widen to float32 "
            "first.",
            "pytorch/torchtitan pull request 4135, facebookresearch/fairscale issue 1092",
        ),
        Misconception(
            "norm-afterwards",
            norm_afterwards,
            "It looks like the norm after clipping, which says nothing that max_norm did not. Return the norm that was found.",
            "a question often asked: verl-project/verl issue 2282",
        ),
        Misconception(
            "sum-of-norms",
            sum_of_norms,
            "It looks like the norms of the tensors added up. Their squares add up; the root comes last.",
        ),
        Misconception(
            "without-the-root",
            without_the_root,
            "It looks like the sum of squares in place of its root.",
        ),
        Misconception(
            "lets-nan-through",
            lets_nan_through,
            "It looks like a norm that is not finite multiplied into every gradient, which spoils every weight. Return None for all of "
            "them: no step is taken.",
            "what clip_grad_norm_ does by default: pytorch/pytorch issue 46849, facebookresearch/habitat-lab issue 2226",
        ),
        Misconception(
            "zeros-for-nan",
            zeros_for_nan,
            "It looks like zeros where the norm is not finite. With zeros AdamW would still move by its momentum: return None.",
        ),
    ),
    alternatives=(one_long_vector,),
    hints=(
        "Imagine all gradients laid end to end as one vector. What is its length?",
        "Three ways out: the norm is not finite; the norm is small enough; the norm is too large. Widen with .float() before you square.",
        "Sum the squares of all tensors in float32, take the root; if it is finite and above max_norm, multiply each by max_norm / norm.",
    ),
    forbids=("torch.nn.utils.clip_grad_norm_", "torch.nn.utils.get_total_norm", "torch.nn.utils.clip_grads_with_norm_"),
)
