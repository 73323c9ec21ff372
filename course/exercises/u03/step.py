"""03.1: one AdamW step over named parameters (Loshchilov and Hutter 2019, algorithm 2; eps and decay as PyTorch does)."""

import torch

from course.checking.compare import same
from course.checking.exercise import Exercise, Misconception

EDGES = [  # updates so far of each parameter, which has no gradient, bfloat16 gradients, eps
    ([0, 0], None, False, 1e-8),
    ([3, 0, 7], 2, False, 1e-8),
    ([0, 1, 2], None, True, 1e-8),
    ([0, 1, 4], None, False, 0.05),
]
NAMES = ("embedding", "up_norm", "query", "up", "down")


def inputs(rng, number):
    if number < len(EDGES):
        counts, missing, narrow, eps = EDGES[number]
    else:
        counts = [int(rng.choice([0, 1, 2, 5, 30])) for _ in range(int(rng.integers(2, 6)))]
        missing = int(rng.integers(len(counts))) if rng.uniform() < 0.5 else None
        narrow, eps = bool(rng.integers(2)), float(rng.choice([1e-8, 1e-3, 0.05]))
    params, grads, state = {}, {}, {}
    for place, (name, count) in enumerate(zip(NAMES, counts, strict=False)):
        shape = (int(rng.integers(2, 7)), int(rng.integers(2, 7)))[: 1 if name == "up_norm" else 2]

        def draw(size=1.0, shape=shape):
            return torch.tensor(size * rng.normal(size=shape), dtype=torch.float32)

        params[name] = draw()
        gradient = draw(10.0 ** int(rng.integers(-1, 2)))
        grads[name] = None if place == missing else gradient.bfloat16() if narrow else gradient
        old = draw(0.5) if count else torch.zeros(shape)
        state[name] = {"step": count, "m": old, "v": (old.square() + draw(0.3).square()) if count else old.clone()}
    return {
        "params": params,
        "grads": grads,
        "state": state,
        "decayed": [name for name in params if params[name].ndim > 1 and name != "embedding"],
        "lr": float(rng.choice([0.1, 0.05])),
        "beta1": 0.9,
        "beta2": float(rng.choice([0.95, 0.99])),
        "eps": eps,
        "weight_decay": 0.5,
    }


def reference(params, grads, state, decayed, lr, beta1, beta2, eps, weight_decay):
    new_params, new_state = {}, {}
    for name, p in params.items():
        g, old = grads[name], state[name]
        if g is None:
            new_params[name], new_state[name] = p, old
            continue
        g, step = g.float(), old["step"] + 1
        m = beta1 * old["m"] + (1 - beta1) * g
        v = beta2 * old["v"] + (1 - beta2) * g.square()
        kept = p * (1 - lr * weight_decay) if name in decayed else p
        m_hat, v_hat = m / (1 - beta1**step), v / (1 - beta2**step)
        new_params[name] = kept - lr * m_hat / (v_hat.sqrt() + eps)
        new_state[name] = {"step": step, "m": m, "v": v}
    return new_params, new_state


def as_pytorch_writes_it(params, grads, state, decayed, lr, beta1, beta2, eps, weight_decay):
    new_params = {name: p.clone() for name, p in params.items()}
    new_state = {name: {"step": s["step"], "m": s["m"].clone(), "v": s["v"].clone()} for name, s in state.items()}
    for name, s in new_state.items():
        if grads[name] is not None:
            g = grads[name].to(torch.float32)
            s["step"] += 1
            s["m"].lerp_(g, 1 - beta1)
            s["v"].mul_(beta2).addcmul_(g, g, value=1 - beta2)
            root = (1 - beta2 ** s["step"]) ** 0.5
            if name in decayed:
                new_params[name].mul_(1 - lr * weight_decay)
            size = lr / (1 - beta1 ** s["step"])
            new_params[name].addcdiv_(s["m"], s["v"].sqrt() / root + eps, value=-size)
    return new_params, new_state


def decay_in_the_gradient(params, grads, state, decayed, lr, beta1, beta2, eps, weight_decay):
    new_params, new_state = {}, {}
    for name, p in params.items():
        g, old = grads[name], state[name]
        if g is None:
            new_params[name], new_state[name] = p, old
            continue
        g, step = g.float() + (weight_decay * p if name in decayed else 0), old["step"] + 1
        m = beta1 * old["m"] + (1 - beta1) * g
        v = beta2 * old["v"] + (1 - beta2) * g.square()
        m_hat, v_hat = m / (1 - beta1**step), v / (1 - beta2**step)
        new_params[name] = p - lr * m_hat / (v_hat.sqrt() + eps)
        new_state[name] = {"step": step, "m": m, "v": v}
    return new_params, new_state


def without_bias_correction(params, grads, state, decayed, lr, beta1, beta2, eps, weight_decay):
    new_params, new_state = {}, {}
    for name, p in params.items():
        g, old = grads[name], state[name]
        if g is None:
            new_params[name], new_state[name] = p, old
            continue
        m = beta1 * old["m"] + (1 - beta1) * g.float()
        v = beta2 * old["v"] + (1 - beta2) * g.float().square()
        kept = p * (1 - lr * weight_decay) if name in decayed else p
        new_params[name] = kept - lr * m / (v.sqrt() + eps)
        new_state[name] = {"step": old["step"] + 1, "m": m, "v": v}
    return new_params, new_state


def counting_from_zero(params, grads, state, decayed, lr, beta1, beta2, eps, weight_decay):
    new_params, new_state = {}, {}
    for name, p in params.items():
        g, old = grads[name], state[name]
        if g is None:
            new_params[name], new_state[name] = p, old
            continue
        step = old["step"]
        m = beta1 * old["m"] + (1 - beta1) * g.float()
        v = beta2 * old["v"] + (1 - beta2) * g.float().square()
        kept = p * (1 - lr * weight_decay) if name in decayed else p
        m_hat, v_hat = m / (1 - beta1**step), v / (1 - beta2**step)
        new_params[name] = kept - lr * m_hat / (v_hat.sqrt() + eps)
        new_state[name] = {"step": step + 1, "m": m, "v": v}
    return new_params, new_state


def decay_after_the_step(params, grads, state, decayed, lr, beta1, beta2, eps, weight_decay):
    new_params, new_state = {}, {}
    for name, p in params.items():
        g, old = grads[name], state[name]
        if g is None:
            new_params[name], new_state[name] = p, old
            continue
        g, step = g.float(), old["step"] + 1
        m = beta1 * old["m"] + (1 - beta1) * g
        v = beta2 * old["v"] + (1 - beta2) * g.square()
        m_hat, v_hat = m / (1 - beta1**step), v / (1 - beta2**step)
        moved = p - lr * m_hat / (v_hat.sqrt() + eps)
        new_params[name] = moved * (1 - lr * weight_decay) if name in decayed else moved
        new_state[name] = {"step": step, "m": m, "v": v}
    return new_params, new_state


def old_moments(params, grads, state, decayed, lr, beta1, beta2, eps, weight_decay):
    new_params, new_state = {}, {}
    for name, p in params.items():
        g, old = grads[name], state[name]
        if g is None:
            new_params[name], new_state[name] = p, old
            continue
        g, step = g.float(), old["step"] + 1
        kept = p * (1 - lr * weight_decay) if name in decayed else p
        m_hat, v_hat = old["m"] / (1 - beta1**step), old["v"] / (1 - beta2**step)
        new_params[name] = kept - lr * m_hat / (v_hat.sqrt() + eps)
        m = beta1 * old["m"] + (1 - beta1) * g
        new_state[name] = {"step": step, "m": m, "v": beta2 * old["v"] + (1 - beta2) * g.square()}
    return new_params, new_state


def one_count_for_all(params, grads, state, decayed, lr, beta1, beta2, eps, weight_decay):
    new_params, new_state = {}, {}
    step = max(s["step"] for s in state.values()) + 1
    for name, p in params.items():
        g, old = grads[name], state[name]
        if g is None:
            new_params[name], new_state[name] = p, old
            continue
        m = beta1 * old["m"] + (1 - beta1) * g.float()
        v = beta2 * old["v"] + (1 - beta2) * g.float().square()
        kept = p * (1 - lr * weight_decay) if name in decayed else p
        m_hat, v_hat = m / (1 - beta1**step), v / (1 - beta2**step)
        new_params[name] = kept - lr * m_hat / (v_hat.sqrt() + eps)
        new_state[name] = {"step": old["step"] + 1, "m": m, "v": v}
    return new_params, new_state


def eps_under_the_root(params, grads, state, decayed, lr, beta1, beta2, eps, weight_decay):
    new_params, new_state = {}, {}
    for name, p in params.items():
        g, old = grads[name], state[name]
        if g is None:
            new_params[name], new_state[name] = p, old
            continue
        g, step = g.float(), old["step"] + 1
        m = beta1 * old["m"] + (1 - beta1) * g
        v = beta2 * old["v"] + (1 - beta2) * g.square()
        kept = p * (1 - lr * weight_decay) if name in decayed else p
        m_hat, v_hat = m / (1 - beta1**step), v / (1 - beta2**step)
        new_params[name] = kept - lr * m_hat / (v_hat + eps).sqrt()
        new_state[name] = {"step": step, "m": m, "v": v}
    return new_params, new_state


def eps_before_the_correction(params, grads, state, decayed, lr, beta1, beta2, eps, weight_decay):
    new_params, new_state = {}, {}
    for name, p in params.items():
        g, old = grads[name], state[name]
        if g is None:
            new_params[name], new_state[name] = p, old
            continue
        g, step = g.float(), old["step"] + 1
        m = beta1 * old["m"] + (1 - beta1) * g
        v = beta2 * old["v"] + (1 - beta2) * g.square()
        kept = p * (1 - lr * weight_decay) if name in decayed else p
        size = lr * (1 - beta2**step) ** 0.5 / (1 - beta1**step)
        new_params[name] = kept - size * m / (v.sqrt() + eps)
        new_state[name] = {"step": step, "m": m, "v": v}
    return new_params, new_state


def decay_without_the_rate(params, grads, state, decayed, lr, beta1, beta2, eps, weight_decay):
    new_params, new_state = {}, {}
    for name, p in params.items():
        g, old = grads[name], state[name]
        if g is None:
            new_params[name], new_state[name] = p, old
            continue
        g, step = g.float(), old["step"] + 1
        m = beta1 * old["m"] + (1 - beta1) * g
        v = beta2 * old["v"] + (1 - beta2) * g.square()
        kept = p * (1 - weight_decay) if name in decayed else p
        m_hat, v_hat = m / (1 - beta1**step), v / (1 - beta2**step)
        new_params[name] = kept - lr * m_hat / (v_hat.sqrt() + eps)
        new_state[name] = {"step": step, "m": m, "v": v}
    return new_params, new_state


def decay_of_everything(params, grads, state, decayed, lr, beta1, beta2, eps, weight_decay):
    new_params, new_state = {}, {}
    for name, p in params.items():
        g, old = grads[name], state[name]
        if g is None:
            new_params[name], new_state[name] = p, old
            continue
        g, step = g.float(), old["step"] + 1
        m = beta1 * old["m"] + (1 - beta1) * g
        v = beta2 * old["v"] + (1 - beta2) * g.square()
        m_hat, v_hat = m / (1 - beta1**step), v / (1 - beta2**step)
        new_params[name] = p * (1 - lr * weight_decay) - lr * m_hat / (v_hat.sqrt() + eps)
        new_state[name] = {"step": step, "m": m, "v": v}
    return new_params, new_state


def none_as_zero(params, grads, state, decayed, lr, beta1, beta2, eps, weight_decay):
    new_params, new_state = {}, {}
    for name, p in params.items():
        old = state[name]
        g = torch.zeros_like(p) if grads[name] is None else grads[name].float()
        step = old["step"] + 1
        m = beta1 * old["m"] + (1 - beta1) * g
        v = beta2 * old["v"] + (1 - beta2) * g.square()
        kept = p * (1 - lr * weight_decay) if name in decayed else p
        m_hat, v_hat = m / (1 - beta1**step), v / (1 - beta2**step)
        new_params[name] = kept - lr * m_hat / (v_hat.sqrt() + eps)
        new_state[name] = {"step": step, "m": m, "v": v}
    return new_params, new_state


def squared_in_low_precision(params, grads, state, decayed, lr, beta1, beta2, eps, weight_decay):
    new_params, new_state = {}, {}
    for name, p in params.items():
        g, old = grads[name], state[name]
        if g is None:
            new_params[name], new_state[name] = p, old
            continue
        step = old["step"] + 1
        m = beta1 * old["m"] + (1 - beta1) * g
        v = beta2 * old["v"] + (1 - beta2) * g.square()
        kept = p * (1 - lr * weight_decay) if name in decayed else p
        m_hat, v_hat = m / (1 - beta1**step), v / (1 - beta2**step)
        new_params[name] = kept - lr * m_hat / (v_hat.sqrt() + eps)
        new_state[name] = {"step": step, "m": m, "v": v}
    return new_params, new_state


EXERCISE = Exercise(
    id="03.1",
    unit="03",
    title="AdamW step",
    entry="adamw_step",
    points=15,
    minutes=25,
    difficulty=3,
    spine=False,
    inputs=inputs,
    cases=6,
    reference=reference,
    compare=same("params", "state"),
    misconceptions=(
        Misconception(
            "decay-in-the-gradient",
            decay_in_the_gradient,
            "It looks like weight decay added to the gradient, which is L2: Adam then divides it by the gradient's size. "
            "AdamW shrinks the weight itself, p * (1 - lr * weight_decay), and leaves the gradient alone.",
            "PyTorch's Adam(weight_decay=...) is L2; pytorch/pytorch pull request 41679 says so in its documentation",
        ),
        Misconception(
            "no-bias-correction",
            without_bias_correction,
            "It looks like moments used as they are. They start at zero: divide m by 1 - beta1**step and v by 1 - beta2**step.",
            "BERT's AdamWeightDecayOptimizer left it out: google-research/bert issue 153",
        ),
        Misconception(
            "counting-from-zero",
            counting_from_zero,
            "It looks like a step counted after the update. The first update is step 1: at step 0 the correction divides by zero.",
        ),
        Misconception(
            "decay-after-the-step",
            decay_after_the_step,
            "It looks like decay of the weight that has already moved. The factor acts on the old weight, and the move is then taken off.",
        ),
        Misconception(
            "old-moments",
            old_moments,
            "It looks like a step from the moments as they were. Update m and v with the gradient first, then use them.",
        ),
        Misconception(
            "one-count-for-all",
            one_count_for_all,
            "It looks like one step count for all parameters. Each has its own in its state, and one that was skipped lags behind.",
        ),
        Misconception(
            "eps-under-the-root",
            eps_under_the_root,
            "It looks like eps under the square root. It is added to the root: sqrt(v_hat) + eps.",
            "an equation of Dive into Deep Learning had it so: d2l-ai/d2l-zh pull request 502",
        ),
        Misconception(
            "eps-before-the-correction",
            eps_before_the_correction,
            "It looks like eps added to the root of v before v is corrected, which makes it grow in the first steps. Correct v "
            "first, then take the root, then add eps.",
            "PyTorch's own Adam and AdamW until 2019: pytorch/pytorch pull request 22628",
        ),
        Misconception(
            "decay-without-the-rate",
            decay_without_the_rate,
            "It looks like decay that ignores the learning rate. As in PyTorch, a step keeps the share 1 - lr * weight_decay of a weight.",
            "found in the review of pytorch/pytorch pull request 4429",
        ),
        Misconception(
            "decays-everything",
            decay_of_everything,
            "It looks like decay of every parameter. Only those that `decayed` names shrink; norms keep their size.",
            "Lightning-AI/lit-llama issue 254",
        ),
        Misconception(
            "none-as-zero",
            none_as_zero,
            "It looks like None read as a gradient of zero. A parameter without a gradient is left alone, with its moments and its "
            "count; with a gradient of zero it would still move and decay.",
            "the documentation of Optimizer.zero_grad(set_to_none=True) warns of the difference",
        ),
        Misconception(
            "squared-in-low-precision",
            squared_in_low_precision,
            "It looks like a bfloat16 gradient multiplied and squared in bfloat16. Widen it to float32 first: 8 bits are too few.",
        ),
    ),
    alternatives=(as_pytorch_writes_it,),
    hints=(
        "What happens to a single parameter? Write that down in six lines; then loop over the names.",
        "Order: skip None; widen the gradient; count up; new m and v; decay the weight if it is listed; then the corrected update.",
        "The move is lr * (m / (1 - beta1**step)) / ((v / (1 - beta2**step)).sqrt() + eps), taken off p * (1 - lr * weight_decay).",
    ),
    forbids=("torch.optim.AdamW", "torch.optim.Adam", "torch.optim.NAdam", "torch.optim.RAdam"),
)
