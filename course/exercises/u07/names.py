"""07.2: published tensor names as places in a model (the names of deepseek-ai/DeepSeek-V3's checkpoint and of `transformers`)."""

from course.checking.compare import same
from course.checking.exercise import Exercise, Misconception

ATTENTION = ["q_a_proj", "q_a_layernorm", "q_b_proj", "kv_a_proj_with_mqa", "kv_a_layernorm", "kv_b_proj", "o_proj"]
WHOLE = ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"]
STRANGERS = [
    "model.layers.0.self_attn.k_proj.weight",
    "model.layers.1.mlp.experts.0.gate_proj.bias",
    "visual.patch_embed.weight",
    "encoder.layers.1.mlp.gate.weight",
    "model.layers.1.enorm.weight",
    "model.layers.2.mlp.router.weight",
    "model.layers.1.self_attn.rotary_emb.cos",
    "model.embed_tokens.weight_scale",
    # a known name with something before it, behind it or between
    "visual.model.layers.0.input_layernorm.weight",
    "model.model.norm.weight",
    "model.layers.0.self_attn.o_proj.weight_packed",
    "model.layers.1.mlp.gate.e_score_correction_bias.old",
    "model.layers.1.mlp.experts.down_proj.weight",
    "model.layers.1.mlp.experts.gate_up_proj.weight",
    "model.layers.1.mlp.experts.all.up_proj.weight",
    "model.layers.1.mlp.adapter.up_proj.weight",
    "model.layers.1.mlp.experts.0.adapter.up_proj.weight",
    "model.layers.last.input_layernorm.weight",
    # parts of a module in a block, and scales of what nobody knows
    "model.layers.0.embed_tokens.weight",
    "model.layers.1.shared_head.norm.weight",
    "model.layers.1.shared_head.head.weight",
    "model.layers.2.mlp.router.weight_scale_inv",
    "model.layers.1.eh_proj.weight_scale_inv",
]


def layer_names(layer, dense, experts, fused, scaled):
    """What a checkpoint calls the tensors of one layer."""
    start, names = f"model.layers.{layer}", ["input_layernorm.weight", "post_attention_layernorm.weight"]
    names += [f"self_attn.{part}.weight" for part in ATTENTION]
    if dense:
        names += [f"mlp.{part}_proj.weight" for part in ("gate", "up", "down")]
    else:
        names += ["mlp.gate.weight", "mlp.gate.e_score_correction_bias"]
        names += [f"mlp.shared_experts.{part}_proj.weight" for part in ("gate", "up", "down")]
        if fused:
            names += ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
        else:
            names += [f"mlp.experts.{e}.{part}_proj.weight" for e in experts for part in ("gate", "up", "down")]
    if scaled:
        names += [f"{name}_scale_inv" for name in names if "_proj" in name]
    return [f"{start}.{name}" for name in names]


def module_names(layer, experts):
    """And of a multi-token module, which stands behind the last layer."""
    own = ["enorm", "hnorm", "eh_proj", "shared_head.norm", "shared_head.head", "embed_tokens"]
    return [*layer_names(layer, False, experts, False, False), *(f"model.layers.{layer}.{part}.weight" for part in own)]


def inputs(rng, number):
    if number == 0:  # the example of the text
        names = ["lm_head.weight", "model.layers.1.mlp.experts.12.up_proj.weight", "model.layers.3.hnorm.weight"]
        return {"names": [*names, "model.layers.3.shared_head.head.weight", "model.layers.1.mlp.bias"], "layers": 3}
    if number == 1:  # every kind of name once
        names = [*WHOLE, *layer_names(0, True, [], False, False), *layer_names(1, False, [0, 3], False, True)]
        names += [*layer_names(2, False, [], True, False), *module_names(3, [7])]
        return {"names": [*names, "model.layers.0.self_attn.rotary_emb.inv_freq"], "layers": 3}
    if number == 2:  # V3's own size, and numbers of several digits
        names = [*WHOLE, "model.layers.6.input_layernorm.weight", "model.layers.61.input_layernorm.weight"]
        names += [
            "model.layers.60.mlp.experts.255.down_proj.weight",
            "model.layers.61.mlp.experts.255.down_proj.weight",
        ]
        names += ["model.layers.61.eh_proj.weight", "model.layers.60.mlp.gate.weight"]
        return {"names": names, "layers": 61}
    if number == 3:
        return {"names": [], "layers": 2}
    if number == 4:  # names that are none
        scaled = [*layer_names(3, True, [], False, True), "lm_head.weight_scale_inv"]
        return {"names": ["model.norm.weight", *STRANGERS, *scaled], "layers": 4}
    layers, modules = int(rng.integers(2, 14)), int(rng.integers(0, 3))
    names = [*WHOLE, "model.layers.1.self_attn.rotary_emb.inv_freq"]
    for layer in range(layers):
        names += layer_names(layer, layer == 0, range(3), bool(rng.integers(2)), bool(rng.integers(2)))
    for module in range(modules):
        names += module_names(layers + module, range(2))
    names += [name for name in STRANGERS if rng.integers(2)]
    order = rng.permutation(len(names))
    return {"names": [names[int(i)] for i in order[:60]], "layers": layers}


def reference(names, layers):
    import re

    whole = {"model.embed_tokens.weight": "embedding", "model.norm.weight": "norm", "lm_head.weight": "head"}
    inside = {
        "input_layernorm.weight": "attention_norm", "post_attention_layernorm.weight": "feed_forward_norm",
        "self_attn.q_a_proj.weight": "attention.query_down", "self_attn.q_a_layernorm.weight": "attention.query_norm",
        "self_attn.q_b_proj.weight": "attention.query_up", "self_attn.kv_a_proj_with_mqa.weight": "attention.kv_down",
        "self_attn.kv_a_layernorm.weight": "attention.kv_norm", "self_attn.kv_b_proj.weight": "attention.kv_up",
        "self_attn.o_proj.weight": "attention.output", "mlp.gate.e_score_correction_bias": "router.bias",
        "mlp.experts.gate_up_proj": "experts.gate_up", "mlp.experts.down_proj": "experts.down",
        "mlp.gate.weight": "router.gate",
    }  # fmt: skip
    further = {
        "enorm.weight": "embedding_norm", "hnorm.weight": "hidden_norm",
        "eh_proj.weight": "projection", "shared_head.norm.weight": "norm",
    }  # fmt: skip
    copies = ("embed_tokens.weight", "shared_head.head.weight")
    ours, unknown = {}, []
    for name in names:
        bare, scale = (name[: -len("_scale_inv")], ".scale") if name.endswith("_scale_inv") else (name, "")
        place, parts = whole.get(bare), bare.split(".", 3)
        if bare.endswith("rotary_emb.inv_freq"):
            continue
        if bare.startswith("model.layers.") and len(parts) == 4 and parts[2].isdigit():
            layer, rest = int(parts[2]), parts[3]
            start = f"blocks.{layer}" if layer < layers else f"mtp.{layer - layers}"
            if layer >= layers and rest in copies:
                continue
            known = inside | further if layer >= layers else inside
            found = re.fullmatch(r"mlp\.(shared_experts\.|experts\.(\d+)\.)?(gate|up|down)_proj\.weight", rest)
            if rest in known:
                place = f"{start}.{known[rest]}"
            elif found:
                which, expert, part = found.groups()
                place = (
                    f"{start}.{'feed_forward' if which is None else f'experts.{expert}' if expert else 'shared'}.{part}"
                )
        if place is None:
            unknown.append(name)
        else:
            ours[name] = place + scale
    return ours, unknown


def by_patterns(names, layers):
    import re

    part = r"(?P<part>gate|up|down)_proj\.weight"
    rules = [
        (r"model\.embed_tokens\.weight", "embedding"),
        (r"model\.norm\.weight", "norm"),
        (r"lm_head\.weight", "head"),
        (r"LAYER\.input_layernorm\.weight", "{at}.attention_norm"),
        (r"LAYER\.post_attention_layernorm\.weight", "{at}.feed_forward_norm"),
        (r"LAYER\.self_attn\.q_a_proj\.weight", "{at}.attention.query_down"),
        (r"LAYER\.self_attn\.q_b_proj\.weight", "{at}.attention.query_up"),
        (r"LAYER\.self_attn\.kv_a_proj_with_mqa\.weight", "{at}.attention.kv_down"),
        (r"LAYER\.self_attn\.kv_b_proj\.weight", "{at}.attention.kv_up"),
        (r"LAYER\.self_attn\.q_a_layernorm\.weight", "{at}.attention.query_norm"),
        (r"LAYER\.self_attn\.kv_a_layernorm\.weight", "{at}.attention.kv_norm"),
        (r"LAYER\.self_attn\.o_proj\.weight", "{at}.attention.output"),
        (r"LAYER\.mlp\.gate\.weight", "{at}.router.gate"),
        (r"LAYER\.mlp\.gate\.e_score_correction_bias", "{at}.router.bias"),
        (r"LAYER\.mlp\.experts\.(?P<part>gate_up|down)_proj", "{at}.experts.{part}"),
        (r"LAYER\.mlp\.experts\.(?P<e>\d+)\." + part, "{at}.experts.{e}.{part}"),
        (r"LAYER\.mlp\.shared_experts\." + part, "{at}.shared.{part}"),
        (r"LAYER\.mlp\." + part, "{at}.feed_forward.{part}"),
        (r"MODULE\.enorm\.weight", "{at}.embedding_norm"),
        (r"MODULE\.hnorm\.weight", "{at}.hidden_norm"),
        (r"MODULE\.eh_proj\.weight", "{at}.projection"),
        (r"MODULE\.shared_head\.norm\.weight", "{at}.norm"),
        (r"MODULE\.(embed_tokens|shared_head\.head)\.weight", None),
        (r".*rotary_emb\.inv_freq", None),
    ]
    ours, unknown = {}, []
    for name in names:
        scaled = name.endswith("_scale_inv")
        for rule, place in rules:
            number = r"model\.layers\.(?P<layer>\d+)"
            pattern = rule.replace("LAYER", number).replace("MODULE", number)
            found = re.fullmatch(pattern + "(_scale_inv)?", name)
            fields = found.groupdict() if found else {}
            layer = int(fields.get("layer") or 0)
            if not found or (rule.startswith("MODULE") and layer < layers):
                continue
            if place:
                at = f"blocks.{layer}" if layer < layers else f"mtp.{layer - layers}"
                ours[name] = place.format(at=at, **fields) + (".scale" if scaled else "")
            break
        else:
            unknown.append(name)
    return ours, unknown


def modules_as_blocks(names, layers):
    import re

    whole = {"model.embed_tokens.weight": "embedding", "model.norm.weight": "norm", "lm_head.weight": "head"}
    inside = {
        "input_layernorm.weight": "attention_norm", "post_attention_layernorm.weight": "feed_forward_norm",
        "self_attn.q_a_proj.weight": "attention.query_down", "self_attn.q_a_layernorm.weight": "attention.query_norm",
        "self_attn.q_b_proj.weight": "attention.query_up", "self_attn.kv_a_proj_with_mqa.weight": "attention.kv_down",
        "self_attn.kv_a_layernorm.weight": "attention.kv_norm", "self_attn.kv_b_proj.weight": "attention.kv_up",
        "self_attn.o_proj.weight": "attention.output", "mlp.gate.e_score_correction_bias": "router.bias",
        "mlp.experts.gate_up_proj": "experts.gate_up", "mlp.experts.down_proj": "experts.down",
        "mlp.gate.weight": "router.gate",
    }  # fmt: skip
    further = {
        "enorm.weight": "embedding_norm", "hnorm.weight": "hidden_norm",
        "eh_proj.weight": "projection", "shared_head.norm.weight": "norm",
    }  # fmt: skip
    copies = ("embed_tokens.weight", "shared_head.head.weight")
    ours, unknown = {}, []
    for name in names:
        bare, scale = (name[: -len("_scale_inv")], ".scale") if name.endswith("_scale_inv") else (name, "")
        place, parts = whole.get(bare), bare.split(".", 3)
        if bare.endswith("rotary_emb.inv_freq"):
            continue
        if bare.startswith("model.layers.") and len(parts) == 4 and parts[2].isdigit():
            layer, rest = int(parts[2]), parts[3]
            start = f"blocks.{layer}"
            if layer >= layers and rest in copies:
                continue
            known = inside | further if layer >= layers else inside
            found = re.fullmatch(r"mlp\.(shared_experts\.|experts\.(\d+)\.)?(gate|up|down)_proj\.weight", rest)
            if rest in known:
                place = f"{start}.{known[rest]}"
            elif found:
                which, expert, part = found.groups()
                place = (
                    f"{start}.{'feed_forward' if which is None else f'experts.{expert}' if expert else 'shared'}.{part}"
                )
        if place is None:
            unknown.append(name)
        else:
            ours[name] = place + scale
    return ours, unknown


def modules_from_one(names, layers):
    import re

    whole = {"model.embed_tokens.weight": "embedding", "model.norm.weight": "norm", "lm_head.weight": "head"}
    inside = {
        "input_layernorm.weight": "attention_norm", "post_attention_layernorm.weight": "feed_forward_norm",
        "self_attn.q_a_proj.weight": "attention.query_down", "self_attn.q_a_layernorm.weight": "attention.query_norm",
        "self_attn.q_b_proj.weight": "attention.query_up", "self_attn.kv_a_proj_with_mqa.weight": "attention.kv_down",
        "self_attn.kv_a_layernorm.weight": "attention.kv_norm", "self_attn.kv_b_proj.weight": "attention.kv_up",
        "self_attn.o_proj.weight": "attention.output", "mlp.gate.e_score_correction_bias": "router.bias",
        "mlp.experts.gate_up_proj": "experts.gate_up", "mlp.experts.down_proj": "experts.down",
        "mlp.gate.weight": "router.gate",
    }  # fmt: skip
    further = {
        "enorm.weight": "embedding_norm", "hnorm.weight": "hidden_norm",
        "eh_proj.weight": "projection", "shared_head.norm.weight": "norm",
    }  # fmt: skip
    copies = ("embed_tokens.weight", "shared_head.head.weight")
    ours, unknown = {}, []
    for name in names:
        bare, scale = (name[: -len("_scale_inv")], ".scale") if name.endswith("_scale_inv") else (name, "")
        place, parts = whole.get(bare), bare.split(".", 3)
        if bare.endswith("rotary_emb.inv_freq"):
            continue
        if bare.startswith("model.layers.") and len(parts) == 4 and parts[2].isdigit():
            layer, rest = int(parts[2]), parts[3]
            start = f"blocks.{layer}" if layer < layers else f"mtp.{layer - layers + 1}"
            if layer >= layers and rest in copies:
                continue
            known = inside | further if layer >= layers else inside
            found = re.fullmatch(r"mlp\.(shared_experts\.|experts\.(\d+)\.)?(gate|up|down)_proj\.weight", rest)
            if rest in known:
                place = f"{start}.{known[rest]}"
            elif found:
                which, expert, part = found.groups()
                place = (
                    f"{start}.{'feed_forward' if which is None else f'experts.{expert}' if expert else 'shared'}.{part}"
                )
        if place is None:
            unknown.append(name)
        else:
            ours[name] = place + scale
    return ours, unknown


def copies_kept(names, layers):
    import re

    whole = {"model.embed_tokens.weight": "embedding", "model.norm.weight": "norm", "lm_head.weight": "head"}
    inside = {
        "input_layernorm.weight": "attention_norm", "post_attention_layernorm.weight": "feed_forward_norm",
        "self_attn.q_a_proj.weight": "attention.query_down", "self_attn.q_a_layernorm.weight": "attention.query_norm",
        "self_attn.q_b_proj.weight": "attention.query_up", "self_attn.kv_a_proj_with_mqa.weight": "attention.kv_down",
        "self_attn.kv_a_layernorm.weight": "attention.kv_norm", "self_attn.kv_b_proj.weight": "attention.kv_up",
        "self_attn.o_proj.weight": "attention.output", "mlp.gate.e_score_correction_bias": "router.bias",
        "mlp.experts.gate_up_proj": "experts.gate_up", "mlp.experts.down_proj": "experts.down",
        "mlp.gate.weight": "router.gate",
    }  # fmt: skip
    further = {
        "enorm.weight": "embedding_norm", "hnorm.weight": "hidden_norm",
        "eh_proj.weight": "projection", "shared_head.norm.weight": "norm",
        "embed_tokens.weight": "embedding", "shared_head.head.weight": "head",
    }  # fmt: skip
    ours, unknown = {}, []
    for name in names:
        bare, scale = (name[: -len("_scale_inv")], ".scale") if name.endswith("_scale_inv") else (name, "")
        place, parts = whole.get(bare), bare.split(".", 3)
        if bare.endswith("rotary_emb.inv_freq"):
            continue
        if bare.startswith("model.layers.") and len(parts) == 4 and parts[2].isdigit():
            layer, rest = int(parts[2]), parts[3]
            start = f"blocks.{layer}" if layer < layers else f"mtp.{layer - layers}"
            known = inside | further if layer >= layers else inside
            found = re.fullmatch(r"mlp\.(shared_experts\.|experts\.(\d+)\.)?(gate|up|down)_proj\.weight", rest)
            if rest in known:
                place = f"{start}.{known[rest]}"
            elif found:
                which, expert, part = found.groups()
                place = (
                    f"{start}.{'feed_forward' if which is None else f'experts.{expert}' if expert else 'shared'}.{part}"
                )
        if place is None:
            unknown.append(name)
        else:
            ours[name] = place + scale
    return ours, unknown


def copies_unknown(names, layers):
    import re

    whole = {"model.embed_tokens.weight": "embedding", "model.norm.weight": "norm", "lm_head.weight": "head"}
    inside = {
        "input_layernorm.weight": "attention_norm", "post_attention_layernorm.weight": "feed_forward_norm",
        "self_attn.q_a_proj.weight": "attention.query_down", "self_attn.q_a_layernorm.weight": "attention.query_norm",
        "self_attn.q_b_proj.weight": "attention.query_up", "self_attn.kv_a_proj_with_mqa.weight": "attention.kv_down",
        "self_attn.kv_a_layernorm.weight": "attention.kv_norm", "self_attn.kv_b_proj.weight": "attention.kv_up",
        "self_attn.o_proj.weight": "attention.output", "mlp.gate.e_score_correction_bias": "router.bias",
        "mlp.experts.gate_up_proj": "experts.gate_up", "mlp.experts.down_proj": "experts.down",
        "mlp.gate.weight": "router.gate",
    }  # fmt: skip
    further = {
        "enorm.weight": "embedding_norm", "hnorm.weight": "hidden_norm",
        "eh_proj.weight": "projection", "shared_head.norm.weight": "norm",
    }  # fmt: skip
    ours, unknown = {}, []
    for name in names:
        bare, scale = (name[: -len("_scale_inv")], ".scale") if name.endswith("_scale_inv") else (name, "")
        place, parts = whole.get(bare), bare.split(".", 3)
        if bare.endswith("rotary_emb.inv_freq"):
            continue
        if bare.startswith("model.layers.") and len(parts) == 4 and parts[2].isdigit():
            layer, rest = int(parts[2]), parts[3]
            start = f"blocks.{layer}" if layer < layers else f"mtp.{layer - layers}"
            known = inside | further if layer >= layers else inside
            found = re.fullmatch(r"mlp\.(shared_experts\.|experts\.(\d+)\.)?(gate|up|down)_proj\.weight", rest)
            if rest in known:
                place = f"{start}.{known[rest]}"
            elif found:
                which, expert, part = found.groups()
                place = (
                    f"{start}.{'feed_forward' if which is None else f'experts.{expert}' if expert else 'shared'}.{part}"
                )
        if place is None:
            unknown.append(name)
        else:
            ours[name] = place + scale
    return ours, unknown


def frequencies_unknown(names, layers):
    import re

    whole = {"model.embed_tokens.weight": "embedding", "model.norm.weight": "norm", "lm_head.weight": "head"}
    inside = {
        "input_layernorm.weight": "attention_norm", "post_attention_layernorm.weight": "feed_forward_norm",
        "self_attn.q_a_proj.weight": "attention.query_down", "self_attn.q_a_layernorm.weight": "attention.query_norm",
        "self_attn.q_b_proj.weight": "attention.query_up", "self_attn.kv_a_proj_with_mqa.weight": "attention.kv_down",
        "self_attn.kv_a_layernorm.weight": "attention.kv_norm", "self_attn.kv_b_proj.weight": "attention.kv_up",
        "self_attn.o_proj.weight": "attention.output", "mlp.gate.e_score_correction_bias": "router.bias",
        "mlp.experts.gate_up_proj": "experts.gate_up", "mlp.experts.down_proj": "experts.down",
        "mlp.gate.weight": "router.gate",
    }  # fmt: skip
    further = {
        "enorm.weight": "embedding_norm", "hnorm.weight": "hidden_norm",
        "eh_proj.weight": "projection", "shared_head.norm.weight": "norm",
    }  # fmt: skip
    copies = ("embed_tokens.weight", "shared_head.head.weight")
    ours, unknown = {}, []
    for name in names:
        bare, scale = (name[: -len("_scale_inv")], ".scale") if name.endswith("_scale_inv") else (name, "")
        place, parts = whole.get(bare), bare.split(".", 3)
        if bare.startswith("model.layers.") and len(parts) == 4 and parts[2].isdigit():
            layer, rest = int(parts[2]), parts[3]
            start = f"blocks.{layer}" if layer < layers else f"mtp.{layer - layers}"
            if layer >= layers and rest in copies:
                continue
            known = inside | further if layer >= layers else inside
            found = re.fullmatch(r"mlp\.(shared_experts\.|experts\.(\d+)\.)?(gate|up|down)_proj\.weight", rest)
            if rest in known:
                place = f"{start}.{known[rest]}"
            elif found:
                which, expert, part = found.groups()
                place = (
                    f"{start}.{'feed_forward' if which is None else f'experts.{expert}' if expert else 'shared'}.{part}"
                )
        if place is None:
            unknown.append(name)
        else:
            ours[name] = place + scale
    return ours, unknown


def norms_swapped(names, layers):
    import re

    whole = {"model.embed_tokens.weight": "embedding", "model.norm.weight": "norm", "lm_head.weight": "head"}
    inside = {
        "input_layernorm.weight": "feed_forward_norm", "post_attention_layernorm.weight": "attention_norm",
        "self_attn.q_a_proj.weight": "attention.query_down", "self_attn.q_a_layernorm.weight": "attention.query_norm",
        "self_attn.q_b_proj.weight": "attention.query_up", "self_attn.kv_a_proj_with_mqa.weight": "attention.kv_down",
        "self_attn.kv_a_layernorm.weight": "attention.kv_norm", "self_attn.kv_b_proj.weight": "attention.kv_up",
        "self_attn.o_proj.weight": "attention.output", "mlp.gate.e_score_correction_bias": "router.bias",
        "mlp.experts.gate_up_proj": "experts.gate_up", "mlp.experts.down_proj": "experts.down",
        "mlp.gate.weight": "router.gate",
    }  # fmt: skip
    further = {
        "enorm.weight": "embedding_norm", "hnorm.weight": "hidden_norm",
        "eh_proj.weight": "projection", "shared_head.norm.weight": "norm",
    }  # fmt: skip
    copies = ("embed_tokens.weight", "shared_head.head.weight")
    ours, unknown = {}, []
    for name in names:
        bare, scale = (name[: -len("_scale_inv")], ".scale") if name.endswith("_scale_inv") else (name, "")
        place, parts = whole.get(bare), bare.split(".", 3)
        if bare.endswith("rotary_emb.inv_freq"):
            continue
        if bare.startswith("model.layers.") and len(parts) == 4 and parts[2].isdigit():
            layer, rest = int(parts[2]), parts[3]
            start = f"blocks.{layer}" if layer < layers else f"mtp.{layer - layers}"
            if layer >= layers and rest in copies:
                continue
            known = inside | further if layer >= layers else inside
            found = re.fullmatch(r"mlp\.(shared_experts\.|experts\.(\d+)\.)?(gate|up|down)_proj\.weight", rest)
            if rest in known:
                place = f"{start}.{known[rest]}"
            elif found:
                which, expert, part = found.groups()
                place = (
                    f"{start}.{'feed_forward' if which is None else f'experts.{expert}' if expert else 'shared'}.{part}"
                )
        if place is None:
            unknown.append(name)
        else:
            ours[name] = place + scale
    return ours, unknown


def module_norms_swapped(names, layers):
    import re

    whole = {"model.embed_tokens.weight": "embedding", "model.norm.weight": "norm", "lm_head.weight": "head"}
    inside = {
        "input_layernorm.weight": "attention_norm", "post_attention_layernorm.weight": "feed_forward_norm",
        "self_attn.q_a_proj.weight": "attention.query_down", "self_attn.q_a_layernorm.weight": "attention.query_norm",
        "self_attn.q_b_proj.weight": "attention.query_up", "self_attn.kv_a_proj_with_mqa.weight": "attention.kv_down",
        "self_attn.kv_a_layernorm.weight": "attention.kv_norm", "self_attn.kv_b_proj.weight": "attention.kv_up",
        "self_attn.o_proj.weight": "attention.output", "mlp.gate.e_score_correction_bias": "router.bias",
        "mlp.experts.gate_up_proj": "experts.gate_up", "mlp.experts.down_proj": "experts.down",
        "mlp.gate.weight": "router.gate",
    }  # fmt: skip
    further = {
        "enorm.weight": "hidden_norm", "hnorm.weight": "embedding_norm",
        "eh_proj.weight": "projection", "shared_head.norm.weight": "norm",
    }  # fmt: skip
    copies = ("embed_tokens.weight", "shared_head.head.weight")
    ours, unknown = {}, []
    for name in names:
        bare, scale = (name[: -len("_scale_inv")], ".scale") if name.endswith("_scale_inv") else (name, "")
        place, parts = whole.get(bare), bare.split(".", 3)
        if bare.endswith("rotary_emb.inv_freq"):
            continue
        if bare.startswith("model.layers.") and len(parts) == 4 and parts[2].isdigit():
            layer, rest = int(parts[2]), parts[3]
            start = f"blocks.{layer}" if layer < layers else f"mtp.{layer - layers}"
            if layer >= layers and rest in copies:
                continue
            known = inside | further if layer >= layers else inside
            found = re.fullmatch(r"mlp\.(shared_experts\.|experts\.(\d+)\.)?(gate|up|down)_proj\.weight", rest)
            if rest in known:
                place = f"{start}.{known[rest]}"
            elif found:
                which, expert, part = found.groups()
                place = (
                    f"{start}.{'feed_forward' if which is None else f'experts.{expert}' if expert else 'shared'}.{part}"
                )
        if place is None:
            unknown.append(name)
        else:
            ours[name] = place + scale
    return ours, unknown


def gate_for_gate_proj(names, layers):
    import re

    whole = {"model.embed_tokens.weight": "embedding", "model.norm.weight": "norm", "lm_head.weight": "head"}
    inside = {
        "input_layernorm.weight": "attention_norm", "post_attention_layernorm.weight": "feed_forward_norm",
        "self_attn.q_a_proj.weight": "attention.query_down", "self_attn.q_a_layernorm.weight": "attention.query_norm",
        "self_attn.q_b_proj.weight": "attention.query_up", "self_attn.kv_a_proj_with_mqa.weight": "attention.kv_down",
        "self_attn.kv_a_layernorm.weight": "attention.kv_norm", "self_attn.kv_b_proj.weight": "attention.kv_up",
        "self_attn.o_proj.weight": "attention.output", "mlp.gate.e_score_correction_bias": "router.bias",
        "mlp.experts.gate_up_proj": "experts.gate_up", "mlp.experts.down_proj": "experts.down",
        "mlp.gate.weight": "feed_forward.gate",
    }  # fmt: skip
    further = {
        "enorm.weight": "embedding_norm", "hnorm.weight": "hidden_norm",
        "eh_proj.weight": "projection", "shared_head.norm.weight": "norm",
    }  # fmt: skip
    copies = ("embed_tokens.weight", "shared_head.head.weight")
    ours, unknown = {}, []
    for name in names:
        bare, scale = (name[: -len("_scale_inv")], ".scale") if name.endswith("_scale_inv") else (name, "")
        place, parts = whole.get(bare), bare.split(".", 3)
        if bare.endswith("rotary_emb.inv_freq"):
            continue
        if bare.startswith("model.layers.") and len(parts) == 4 and parts[2].isdigit():
            layer, rest = int(parts[2]), parts[3]
            start = f"blocks.{layer}" if layer < layers else f"mtp.{layer - layers}"
            if layer >= layers and rest in copies:
                continue
            known = inside | further if layer >= layers else inside
            found = re.fullmatch(r"mlp\.(shared_experts\.|experts\.(\d+)\.)?(gate|up|down)_proj\.weight", rest)
            if rest in known:
                place = f"{start}.{known[rest]}"
            elif found:
                which, expert, part = found.groups()
                place = (
                    f"{start}.{'feed_forward' if which is None else f'experts.{expert}' if expert else 'shared'}.{part}"
                )
        if place is None:
            unknown.append(name)
        else:
            ours[name] = place + scale
    return ours, unknown


def scales_unknown(names, layers):
    import re

    whole = {"model.embed_tokens.weight": "embedding", "model.norm.weight": "norm", "lm_head.weight": "head"}
    inside = {
        "input_layernorm.weight": "attention_norm", "post_attention_layernorm.weight": "feed_forward_norm",
        "self_attn.q_a_proj.weight": "attention.query_down", "self_attn.q_a_layernorm.weight": "attention.query_norm",
        "self_attn.q_b_proj.weight": "attention.query_up", "self_attn.kv_a_proj_with_mqa.weight": "attention.kv_down",
        "self_attn.kv_a_layernorm.weight": "attention.kv_norm", "self_attn.kv_b_proj.weight": "attention.kv_up",
        "self_attn.o_proj.weight": "attention.output", "mlp.gate.e_score_correction_bias": "router.bias",
        "mlp.experts.gate_up_proj": "experts.gate_up", "mlp.experts.down_proj": "experts.down",
        "mlp.gate.weight": "router.gate",
    }  # fmt: skip
    further = {
        "enorm.weight": "embedding_norm", "hnorm.weight": "hidden_norm",
        "eh_proj.weight": "projection", "shared_head.norm.weight": "norm",
    }  # fmt: skip
    copies = ("embed_tokens.weight", "shared_head.head.weight")
    ours, unknown = {}, []
    for name in names:
        bare, scale = name, ""
        place, parts = whole.get(bare), bare.split(".", 3)
        if bare.endswith("rotary_emb.inv_freq"):
            continue
        if bare.startswith("model.layers.") and len(parts) == 4 and parts[2].isdigit():
            layer, rest = int(parts[2]), parts[3]
            start = f"blocks.{layer}" if layer < layers else f"mtp.{layer - layers}"
            if layer >= layers and rest in copies:
                continue
            known = inside | further if layer >= layers else inside
            found = re.fullmatch(r"mlp\.(shared_experts\.|experts\.(\d+)\.)?(gate|up|down)_proj\.weight", rest)
            if rest in known:
                place = f"{start}.{known[rest]}"
            elif found:
                which, expert, part = found.groups()
                place = (
                    f"{start}.{'feed_forward' if which is None else f'experts.{expert}' if expert else 'shared'}.{part}"
                )
        if place is None:
            unknown.append(name)
        else:
            ours[name] = place + scale
    return ours, unknown


def scales_over_weights(names, layers):
    import re

    whole = {"model.embed_tokens.weight": "embedding", "model.norm.weight": "norm", "lm_head.weight": "head"}
    inside = {
        "input_layernorm.weight": "attention_norm", "post_attention_layernorm.weight": "feed_forward_norm",
        "self_attn.q_a_proj.weight": "attention.query_down", "self_attn.q_a_layernorm.weight": "attention.query_norm",
        "self_attn.q_b_proj.weight": "attention.query_up", "self_attn.kv_a_proj_with_mqa.weight": "attention.kv_down",
        "self_attn.kv_a_layernorm.weight": "attention.kv_norm", "self_attn.kv_b_proj.weight": "attention.kv_up",
        "self_attn.o_proj.weight": "attention.output", "mlp.gate.e_score_correction_bias": "router.bias",
        "mlp.experts.gate_up_proj": "experts.gate_up", "mlp.experts.down_proj": "experts.down",
        "mlp.gate.weight": "router.gate",
    }  # fmt: skip
    further = {
        "enorm.weight": "embedding_norm", "hnorm.weight": "hidden_norm",
        "eh_proj.weight": "projection", "shared_head.norm.weight": "norm",
    }  # fmt: skip
    copies = ("embed_tokens.weight", "shared_head.head.weight")
    ours, unknown = {}, []
    for name in names:
        bare, scale = name.removesuffix("_scale_inv"), ""
        place, parts = whole.get(bare), bare.split(".", 3)
        if bare.endswith("rotary_emb.inv_freq"):
            continue
        if bare.startswith("model.layers.") and len(parts) == 4 and parts[2].isdigit():
            layer, rest = int(parts[2]), parts[3]
            start = f"blocks.{layer}" if layer < layers else f"mtp.{layer - layers}"
            if layer >= layers and rest in copies:
                continue
            known = inside | further if layer >= layers else inside
            found = re.fullmatch(r"mlp\.(shared_experts\.|experts\.(\d+)\.)?(gate|up|down)_proj\.weight", rest)
            if rest in known:
                place = f"{start}.{known[rest]}"
            elif found:
                which, expert, part = found.groups()
                place = (
                    f"{start}.{'feed_forward' if which is None else f'experts.{expert}' if expert else 'shared'}.{part}"
                )
        if place is None:
            unknown.append(name)
        else:
            ours[name] = place + scale
    return ours, unknown


def strangers_dropped(names, layers):
    import re

    whole = {"model.embed_tokens.weight": "embedding", "model.norm.weight": "norm", "lm_head.weight": "head"}
    inside = {
        "input_layernorm.weight": "attention_norm", "post_attention_layernorm.weight": "feed_forward_norm",
        "self_attn.q_a_proj.weight": "attention.query_down", "self_attn.q_a_layernorm.weight": "attention.query_norm",
        "self_attn.q_b_proj.weight": "attention.query_up", "self_attn.kv_a_proj_with_mqa.weight": "attention.kv_down",
        "self_attn.kv_a_layernorm.weight": "attention.kv_norm", "self_attn.kv_b_proj.weight": "attention.kv_up",
        "self_attn.o_proj.weight": "attention.output", "mlp.gate.e_score_correction_bias": "router.bias",
        "mlp.experts.gate_up_proj": "experts.gate_up", "mlp.experts.down_proj": "experts.down",
        "mlp.gate.weight": "router.gate",
    }  # fmt: skip
    further = {
        "enorm.weight": "embedding_norm", "hnorm.weight": "hidden_norm",
        "eh_proj.weight": "projection", "shared_head.norm.weight": "norm",
    }  # fmt: skip
    copies = ("embed_tokens.weight", "shared_head.head.weight")
    ours, unknown = {}, []
    for name in names:
        bare, scale = (name[: -len("_scale_inv")], ".scale") if name.endswith("_scale_inv") else (name, "")
        place, parts = whole.get(bare), bare.split(".", 3)
        if bare.endswith("rotary_emb.inv_freq"):
            continue
        if bare.startswith("model.layers.") and len(parts) == 4 and parts[2].isdigit():
            layer, rest = int(parts[2]), parts[3]
            start = f"blocks.{layer}" if layer < layers else f"mtp.{layer - layers}"
            if layer >= layers and rest in copies:
                continue
            known = inside | further if layer >= layers else inside
            found = re.fullmatch(r"mlp\.(shared_experts\.|experts\.(\d+)\.)?(gate|up|down)_proj\.weight", rest)
            if rest in known:
                place = f"{start}.{known[rest]}"
            elif found:
                which, expert, part = found.groups()
                place = (
                    f"{start}.{'feed_forward' if which is None else f'experts.{expert}' if expert else 'shared'}.{part}"
                )
        if place is None:
            continue
        else:
            ours[name] = place + scale
    return ours, unknown


def modules_parts_anywhere(names, layers):
    import re

    whole = {"model.embed_tokens.weight": "embedding", "model.norm.weight": "norm", "lm_head.weight": "head"}
    inside = {
        "input_layernorm.weight": "attention_norm", "post_attention_layernorm.weight": "feed_forward_norm",
        "self_attn.q_a_proj.weight": "attention.query_down", "self_attn.q_a_layernorm.weight": "attention.query_norm",
        "self_attn.q_b_proj.weight": "attention.query_up", "self_attn.kv_a_proj_with_mqa.weight": "attention.kv_down",
        "self_attn.kv_a_layernorm.weight": "attention.kv_norm", "self_attn.kv_b_proj.weight": "attention.kv_up",
        "self_attn.o_proj.weight": "attention.output", "mlp.gate.e_score_correction_bias": "router.bias",
        "mlp.experts.gate_up_proj": "experts.gate_up", "mlp.experts.down_proj": "experts.down",
        "mlp.gate.weight": "router.gate",
    }  # fmt: skip
    further = {
        "enorm.weight": "embedding_norm", "hnorm.weight": "hidden_norm",
        "eh_proj.weight": "projection", "shared_head.norm.weight": "norm",
    }  # fmt: skip
    copies = ("embed_tokens.weight", "shared_head.head.weight")
    ours, unknown = {}, []
    for name in names:
        bare, scale = (name[: -len("_scale_inv")], ".scale") if name.endswith("_scale_inv") else (name, "")
        place, parts = whole.get(bare), bare.split(".", 3)
        if bare.endswith("rotary_emb.inv_freq"):
            continue
        if bare.startswith("model.layers.") and len(parts) == 4 and parts[2].isdigit():
            layer, rest = int(parts[2]), parts[3]
            start = f"blocks.{layer}" if layer < layers else f"mtp.{layer - layers}"
            if layer >= layers and rest in copies:
                continue
            known = inside | further
            found = re.fullmatch(r"mlp\.(shared_experts\.|experts\.(\d+)\.)?(gate|up|down)_proj\.weight", rest)
            if rest in known:
                place = f"{start}.{known[rest]}"
            elif found:
                which, expert, part = found.groups()
                place = (
                    f"{start}.{'feed_forward' if which is None else f'experts.{expert}' if expert else 'shared'}.{part}"
                )
        if place is None:
            unknown.append(name)
        else:
            ours[name] = place + scale
    return ours, unknown


EXERCISE = Exercise(
    id="07.2",
    unit="07",
    title="published names",
    entry="map_names",
    points=10,
    minutes=20,
    difficulty=2,
    spine=False,
    inputs=inputs,
    cases=9,
    reference=reference,
    compare=same("ours", "unknown"),
    misconceptions=(
        Misconception(
            "modules-as-blocks",
            modules_as_blocks,
            "It looks like multi-token modules taken for blocks. Layers from number `layers` on are modules: "
            "mtp.0, mtp.1 and so on.",
        ),
        Misconception(
            "modules-from-one",
            modules_from_one,
            "It looks like modules counted from 1. The first one, layer number `layers`, is mtp.0.",
        ),
        Misconception(
            "copies-kept",
            copies_kept,
            "It looks like a module's copies of embedding and head given a place. They are the main model's, "
            "stored again: leave them out.",
        ),
        Misconception(
            "copies-unknown",
            copies_unknown,
            "It looks like a module's copies of embedding and head reported as unknown. They are known, and left out.",
        ),
        Misconception(
            "frequencies-unknown",
            frequencies_unknown,
            "It looks like inv_freq reported as unknown. Old checkpoints hold it; it follows from the config and "
            "is left out.",
        ),
        Misconception(
            "norms-swapped",
            norms_swapped,
            "It looks like the two norms of a block exchanged. input_layernorm stands before attention; the other "
            "one before the feed-forward layer.",
        ),
        Misconception(
            "module-norms-swapped",
            module_norms_swapped,
            "It looks like enorm and hnorm exchanged: e is for the embedding, h for the hidden state.",
        ),
        Misconception(
            "gate-for-gate-proj",
            gate_for_gate_proj,
            "It looks like the router taken for a gate projection. mlp.gate is the router; mlp.gate_proj belongs "
            "to a dense layer.",
        ),
        Misconception(
            "scales-unknown",
            scales_unknown,
            "It looks like scales reported as unknown. A name ending in _scale_inv belongs to the weight before "
            "it: its place with .scale.",
        ),
        Misconception(
            "scales-over-weights",
            scales_over_weights,
            "It looks like a scale that gets the place of its weight, and would overwrite it. Its place ends in "
            ".scale.",
        ),
        Misconception(
            "strangers-dropped",
            strangers_dropped,
            "It looks like unknown names that are dropped in silence. Report them, in the order in which they came.",
        ),
        Misconception(
            "module-parts-anywhere",
            modules_parts_anywhere,
            "It looks like parts of a module accepted in any layer. In a block, enorm and its like are unknown.",
        ),
    ),
    alternatives=(by_patterns,),
    hints=(
        "Three kinds of names: of the whole model, of a layer, and of neither. Cut a layer's name into its number "
        "and the rest.",
        "A dictionary from rest to place does most of it; only the three projections of a feed-forward layer need "
        "the pieces between.",
        "Take _scale_inv off first and put .scale on last; below `layers` a layer is a block, from there on a "
        "module, with four more parts.",
    ),
)
