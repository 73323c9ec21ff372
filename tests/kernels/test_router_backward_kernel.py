"""The router backward, the kernel: autograd of float64, the same bits every time, and no spills on sm_90."""

from itertools import product

import pytest
import torch

from course.kernels import router_backward as file
from course.kernels.checked import checked
from course.kernels.machine import compile_all
from course.kernels.planned import launches_of
from course.kernels.router import router_torch
from course.kernels.router_backward import router_backward, router_backward_torch

from kernel_measures import bytes_each, drawn  # isort: skip

SHAPES = [(5, 256, 8), (7, 9, 3), (1, 1, 1), (0, 8, 2), (3, 12, 12), (40, 33, 1), (2, 4, 2)]
RULES = list(product(("softmax", "sigmoid"), (True, False)))


def inputs(T, E, K, seed=0):
    logits = 2 * drawn((T, E), seed=seed)
    return drawn((T, K), seed=seed + 1), logits, router_torch(logits, drawn((E,), seed=seed + 2), K)[0]


def exact(dweights, logits, ids, gate, normalised, scale):
    """By autograd in float64, through scores, gather and quotient."""
    logits = logits.double().requires_grad_()
    scores = logits.softmax(1) if gate == "softmax" else logits.sigmoid()
    chosen = scores.gather(1, ids)
    weights = scale * (chosen / chosen.sum(1, keepdim=True) if normalised else chosen)
    return torch.autograd.grad(weights, logits, dweights.double())[0]


def uncancelled(dweights, logits, ids, gate, normalised, scale):
    """What the chosen's gradients would be if nothing were taken off: float32 is exact relative to it."""
    scores = logits.double().softmax(1) if gate == "softmax" else logits.double().sigmoid()
    chosen = scores.gather(1, ids)
    return scale * dweights.double() * (chosen / chosen.sum(1, keepdim=True) if normalised else chosen)


@pytest.mark.parametrize(("gate", "normalised"), RULES)
def test_it_equals_autograd_in_float64_for_every_shape(gate, normalised):
    for shape in SHAPES:
        its = inputs(*shape)
        with checked():
            got = router_backward(*its, gate, normalised, 2.5)
        wanted = exact(*its, gate, normalised, 2.5)
        assert (got.shape, got.dtype) == (wanted.shape, torch.float32)
        allowed = 3e-7 * (wanted.norm() + uncancelled(*its, gate, normalised, 2.5).norm())
        assert (got.double() - wanted).norm() <= allowed, shape
        torch.testing.assert_close(
            router_backward_torch(its[0].double(), its[1].double(), its[2], gate, normalised, 2.5), wanted
        )


@pytest.mark.parametrize(("gate", "normalised"), RULES)
def test_the_formulas_pass_gradcheck_in_float64(gate, normalised):
    class Weights(torch.autograd.Function):
        @staticmethod
        def forward(ctx, logits, ids):
            ctx.save_for_backward(logits, ids)
            scores = logits.softmax(1) if gate == "softmax" else logits.sigmoid()
            chosen = scores.gather(1, ids)
            return 2.5 * (chosen / chosen.sum(1, keepdim=True) if normalised else chosen)

        @staticmethod
        def backward(ctx, dweights):
            return router_backward_torch(dweights, *ctx.saved_tensors, gate, normalised, 2.5), None

    _, logits, ids = inputs(3, 7, 3)
    assert torch.autograd.gradcheck(Weights.apply, (logits.double().requires_grad_(), ids))


def test_only_the_chosen_of_a_sigmoid_learn_and_a_softmax_moves_nothing_on_the_whole():
    dweights, logits, ids = inputs(6, 20, 4)
    with checked():
        sigmoid = router_backward(dweights, logits, ids, "sigmoid")
        softmax = router_backward(dweights, logits, ids, "softmax", normalised=False)
    closed = torch.ones(6, 20, dtype=torch.bool).scatter_(1, ids, False)
    assert (sigmoid[closed] == 0).all()
    assert (sigmoid[~closed] != 0).all()
    assert (softmax != 0).all()
    assert softmax.sum(1).abs().max() < 1e-6


def test_a_saturated_sigmoid_keeps_its_small_gradient():
    logits = torch.tensor([[30.0, -30.0, 0.0, 5.0]])
    its = torch.tensor([[1.0, 2.0]]), logits, torch.tensor([[0, 1]])
    with checked():
        got = router_backward(*its, "sigmoid", normalised=False)
    wide = logits[0, :2].double()
    wanted = its[0].double() * (wide.sigmoid() * (-wide).sigmoid())  # 1 - sigmoid(30) has three digits, in float64
    torch.testing.assert_close(got[:, :2].double(), wanted, rtol=1e-6, atol=0)
    assert (got[:, 2:] == 0).all()


def test_inputs_are_read_where_they_lie_and_two_runs_give_the_same_bits():
    dweights, logits, ids = inputs(8, 40, 4)
    its = dweights.T.contiguous().T, logits.T.contiguous().T, ids.T.contiguous().T
    with checked() as log:
        first, second = router_backward(*its), router_backward(dweights, logits, ids)
        part = router_backward(dweights[::2], logits[::2], ids[::2])
    assert torch.equal(first, second)
    assert torch.equal(part, first[::2])
    assert {access.kind for launch in log.launches for access in launch.accesses} == {"load", "store"}


def test_it_reads_the_logits_once_and_writes_their_gradient_once():
    dweights, logits, ids = inputs(10, 256, 8)
    with checked() as log:
        router_backward(dweights, logits, ids, "sigmoid")
    (launch,) = log.launches
    assert launch.load_bytes == logits.nbytes + dweights.nbytes + ids.nbytes
    assert launch.store_bytes == logits.nbytes


def test_the_docstring_counts_the_bytes_of_eager_pytorch_right():
    its = inputs(2048, 256, 8)
    each = bytes_each(router_backward_torch, *its, "sigmoid", elements=its[1].numel())
    assert each == pytest.approx(15.4, rel=0.02)


def test_wrong_inputs_get_a_sentence():
    dweights, logits, ids = inputs(3, 8, 2)
    for call, said in (
        (lambda: router_backward(dweights, logits, ids.int()), r"ids of int64, not torch\.float32, torch\.float32 and"),
        (lambda: router_backward(dweights.double(), logits, ids), r"not torch\.float64, torch\.float32 and"),
        (lambda: router_backward(dweights[:2], logits, ids), r"of \[2, 2\] and \[3, 2\] do not fit logits of \[3, 8\]"),
        (lambda: router_backward(dweights, logits[:2], ids), r"do not fit logits of \[2, 8\]"),
        (lambda: router_backward(dweights, logits, ids, "relu"), "gate 'relu' is none of softmax, sigmoid"),
        (lambda: router_backward(dweights, logits[:, :1], ids), "1 to all of them a token, not 1 and 2"),
    ):
        with pytest.raises(ValueError, match=said):
            call()


def test_it_compiles_for_sm_90_without_spills():
    def empty(T, E, K):
        return (
            *(torch.empty(T, n, device="meta") for n in (K, E)),
            torch.empty(T, K, dtype=torch.int64, device="meta"),
        )

    def calls():
        router_backward(*empty(8192, 256, 8), "sigmoid")
        router_backward(*empty(8192, 160, 6), "softmax", False)
        router_backward(*empty(64, 4096, 16))
        router_backward(*empty(1, 1, 1))  # ones are constants to the compiler

    found = compile_all(file.__file__, launches_of(calls))
    assert all((compiled.error, compiled.spills) == (None, 0) for compiled in found)
    assert found[0].registers <= 64
