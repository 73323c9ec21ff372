"""Multi-token prediction against transformers' modules, its loss by the equations, and what speculation may not change."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM
from transformers.modeling_layers import MtpModel

from course.model import ModelConfig, Transformer, from_pretrained, generate, save_pretrained, speculate
from course.model.hf_names import places

TINY = replace(ModelConfig.preset("tiny-deepseek-v3"), vocab=60, context=40, width=32, layers=2, mtp_layers=2)


def model(seed=0, **settings):
    torch.manual_seed(seed)
    net = Transformer(replace(TINY, **settings)).eval()
    for parameter in net.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    for mixture in net.mixtures():
        torch.nn.init.normal_(mixture.bias_E, std=0.3)
    return net


def transformers_modules(ours, theirs):
    """Their modules with our numbers. Their own loader finds modules behind layer 61 alone."""
    modules = MtpModel(theirs, 2).eval()
    state = modules.state_dict()
    for name, place in places(ours.config, fused=True).items():
        number, _, rest = name.removeprefix("model.layers.").partition(".")
        if not number.isdigit() or int(number) < ours.config.layers:
            continue
        rest = {"shared_head.norm.weight": "post_norm.weight"}.get(rest, rest)
        own = rest.startswith(("enorm", "hnorm", "eh_proj", "post_norm"))
        target = f"layers.{int(number) - ours.config.layers}.{'' if own else 'mtp_block.'}{rest}"
        state[target] = ours.state_dict()[place.tensor][place.part]
    modules.load_state_dict(state)
    return modules


def test_the_modules_equal_those_of_transformers(tmp_path):
    ours = model(dense_layers=0, mlp_width=0)  # theirs are built as first layers, so that they would be dense
    save_pretrained(ours, tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, experts_implementation="eager")
    modules = transformers_modules(ours, theirs)
    tokens_BS = torch.randint(0, 60, (1, 9))
    hidden_BSD = ours.features(tokens_BS).hidden_BSD
    want_BSD = theirs.model(tokens_BS).last_hidden_state
    for k, module in enumerate(ours.mtp, start=1):
        hidden_BSD, want_BSD, positions_S = hidden_BSD[:, :-1], want_BSD[:, :-1], torch.arange(9 - k)
        cos, sin = ours.rope(positions_S)
        hidden_BSD = module(ours.embedding(tokens_BS[:, k:]), hidden_BSD, cos, sin).hidden_BSD
        want_BSD = modules.forward_layer(k - 1, want_BSD, positions_S[None], None, input_ids=tokens_BS[:, k:])
        assert (hidden_BSD - want_BSD).norm() < 1e-5 * want_BSD.norm()


def test_modules_are_read_back_and_left_out_where_they_are_not_stored(tmp_path):
    ours = model()
    save_pretrained(ours, tmp_path)
    again = from_pretrained(tmp_path)
    assert len(again.mtp) == 2
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in ours.state_dict().items())
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    theirs.save_pretrained(tmp_path / "theirs")  # the config still names them, the weights are gone
    assert len(from_pretrained(tmp_path / "theirs").mtp) == 0


def test_the_loss_is_the_mean_over_modules_of_the_cross_entropy_one_token_further_each():
    net = model()
    row_BS = torch.randint(0, 60, (3, 11))
    loss = net.loss(row_BS[:, :-1], row_BS[:, 1:])
    hidden_BSD, wanted = net.features(row_BS[:, :-1]).hidden_BSD, []
    for k, module in enumerate(net.mtp, start=1):
        last = 10 - k  # positions 0 ... last - 1 have a token k + 1 further on
        cos, sin = net.rope(torch.arange(last))
        hidden_BSD = module(net.embedding(row_BS[:, k : k + last]), hidden_BSD[:, :last], cos, sin).hidden_BSD
        wanted.append(F.cross_entropy(net.head(hidden_BSD).flatten(0, 1), row_BS[:, k + 1 :].flatten()))
    torch.testing.assert_close(loss.further, torch.stack(wanted).mean())
    bare = replace(TINY, mtp_weight=0.0, sequence_balance_weight=0.0)
    net.config = bare
    torch.testing.assert_close(net.loss(row_BS[:, :-1], row_BS[:, 1:]).total, loss.cross_entropy)
    net.config = replace(bare, mtp_weight=0.5)
    total = net.loss(row_BS[:, :-1], row_BS[:, 1:]).total
    torch.testing.assert_close(total, loss.cross_entropy + 0.5 * loss.further)


def test_no_module_sees_the_token_that_it_predicts():
    net = model().double()
    row_BS = torch.randint(0, 60, (1, 12))

    def guesses(row_BS):
        hidden_BSD, guesses = net.features(row_BS).hidden_BSD, []
        for k, module in enumerate(net.mtp, start=1):
            cos, sin = net.rope(torch.arange(12 - k))
            hidden_BSD = module(net.embedding(row_BS[:, k:]), hidden_BSD[:, : 12 - k], cos, sin).hidden_BSD
            guesses.append(hidden_BSD)
        return guesses

    before, changed_BS = guesses(row_BS), row_BS.clone()
    changed_BS[0, 8] = (changed_BS[0, 8] + 1) % 60
    for k, (old, new) in enumerate(zip(before, guesses(changed_BS), strict=True), start=1):
        differs = (old - new).abs().amax(-1)[0] > 1e-12
        assert not differs[: 8 - k].any()  # module k at position i has read up to token i + k
        assert differs[8 - k :].all()


@pytest.mark.parametrize("modules", [1, 2, 3])
@pytest.mark.parametrize("length", [1, 2, 7])
def test_speculation_gives_the_tokens_that_come_without_it(modules, length):
    net = model(modules, mtp_layers=modules).double()
    prompt_S = torch.randint(0, 60, (length,))
    plain = list(generate(net, prompt_S, 30, temperature=0.0))
    rounds = list(speculate(net, prompt_S, 30))
    assert [token for one in rounds for token in one.tokens] == plain
    assert all(one.right + 1 == len(one.tokens) for one in rounds[:-1])
    assert {one.guessed for one in rounds} <= {0, modules}


@pytest.mark.parametrize("modules", [1, 2])
def test_right_guesses_are_kept_so_that_there_are_fewer_rounds(modules):
    """A model that says the same token for ever, with modules that have learned to as well."""
    net = model(mtp_layers=modules).double()
    with torch.no_grad():
        net.head.weight.zero_()
        net.head.weight[7] = 1.0
        for norm in (net.norm, *(module.norm for module in net.mtp)):
            norm.weight.fill_(1.0)
        for block in (*net.blocks, *(module.block for module in net.mtp)):
            block.attention.output.weight.zero_()
        net.embedding.weight.fill_(1.0)
        for module in net.mtp:
            module.projection.weight.copy_(torch.eye(32).repeat(1, 2))
        for mixture in net.mixtures():
            mixture.down_EDI.zero_()
            mixture.shared.down_DI.zero_()
        net.blocks[0].feed_forward.down_DI.zero_()
    rounds = list(speculate(net, torch.tensor([1, 2, 3]), 20))
    assert rounds[0] == ([7], 0, 0)
    assert all(one == ([7] * (modules + 1), modules, modules) for one in rounds[1:-1])
    assert sum(len(one.tokens) for one in rounds) == 20


def test_speculation_stops_at_an_end_and_goes_on_where_the_context_is_full():
    net = model(3).double()
    plain = list(generate(net, torch.tensor([5]), 60, temperature=0.0))
    assert [t for one in speculate(net, torch.tensor([5]), 60) for t in one.tokens] == plain
    end = plain[11]
    until = plain[: plain.index(end) + 1]
    assert [t for one in speculate(net, torch.tensor([5]), 60, ends=[end]) for t in one.tokens] == until


def test_speculation_without_modules_or_prompt_is_refused():
    with pytest.raises(ValueError, match="nothing can guess"):
        next(speculate(model(mtp_layers=0), torch.tensor([1]), 3))
    with pytest.raises(ValueError, match="at least one token"):
        next(speculate(model(), torch.zeros(0, dtype=torch.int64), 3))


def test_the_projection_reads_the_embedding_first():
    """Where report and checkpoints differ: equation 21 of the V3 report writes the hidden state first."""
    net = model(mtp_layers=1).double()
    module, (embedded_BSD, hidden_BSD) = net.mtp[0], torch.randn(2, 1, 5, 32, dtype=torch.float64)
    cos, sin = net.rope(torch.arange(5))
    want_BSD = module(embedded_BSD, hidden_BSD, cos, sin).hidden_BSD
    with torch.no_grad():
        module.projection.weight.copy_(module.projection.weight.roll(32, dims=1))
        module.embedding_norm.weight, module.hidden_norm.weight = (
            module.hidden_norm.weight,
            module.embedding_norm.weight,
        )
    assert (module(embedded_BSD, hidden_BSD, cos, sin).hidden_BSD - want_BSD).norm() > 0.1 * want_BSD.norm()
    torch.testing.assert_close(module(hidden_BSD, embedded_BSD, cos, sin).hidden_BSD, want_BSD)
