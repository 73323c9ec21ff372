"""06.6: bytes of cache for a token, of the whole model and on one GPU, from a config.json (semantics as in course.model)."""

from course.checking.compare import same
from course.checking.exercise import Exercise, Misconception

LLAMA_405B = {
    "num_hidden_layers": 126,
    "hidden_size": 16_384,
    "num_attention_heads": 128,
    "num_key_value_heads": 8,
}
QWEN_72B = {"num_hidden_layers": 80, "hidden_size": 8192, "num_attention_heads": 64, "num_key_value_heads": 8}
QWEN3_4B = {
    "num_hidden_layers": 36,
    "hidden_size": 2560,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
}
DEEPSEEK_V3 = {
    "num_hidden_layers": 61,
    "num_nextn_predict_layers": 1,
    "first_k_dense_replace": 3,
    "hidden_size": 7168,
    "num_attention_heads": 128,
    "num_key_value_heads": 128,
    "kv_lora_rank": 512,
    "q_lora_rank": 1536,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
}
DEEPSEEK_V32 = DEEPSEEK_V3 | {"index_head_dim": 128, "index_n_heads": 64, "index_topk": 2048}
MULTI_HEAD = {"num_hidden_layers": 32, "hidden_size": 4096, "num_attention_heads": 32}
MULTI_QUERY = {"num_hidden_layers": 32, "hidden_size": 4544, "num_attention_heads": 71, "num_key_value_heads": 1}
PUBLIC = [  # config, GPUs, bytes each
    (LLAMA_405B, 8, 2),
    (DEEPSEEK_V3, 8, 2),
    (QWEN_72B, 16, 2),  # more GPUs than kv heads
    (MULTI_HEAD, 4, 2),
    (DEEPSEEK_V32, 16, 1),
    (QWEN3_4B, 1, 2),
    (MULTI_QUERY, 8, 4),
]


def inputs(rng, number):
    if number < len(PUBLIC):
        config, gpus, bytes_each = PUBLIC[number]
        return {"config": dict(config), "gpus": gpus, "bytes_each": bytes_each}
    heads = 2 ** int(rng.integers(3, 8))
    config = {
        "num_hidden_layers": int(rng.integers(2, 130)),
        "hidden_size": heads * int(rng.choice([48, 64, 80, 128])),
        "num_attention_heads": heads,
    }
    kind = int(rng.integers(4))
    if kind < 2:
        config["num_key_value_heads"] = 2 ** int(rng.integers(0, 5))
    if kind == 1:
        config["head_dim"] = int(rng.choice([96, 112, 256]))
    if kind == 3:
        config |= {
            "num_key_value_heads": heads, "kv_lora_rank": int(rng.integers(4, 40)) * 16, "q_lora_rank": 768,
            "qk_nope_head_dim": 96, "qk_rope_head_dim": 2 * int(rng.integers(8, 50)), "v_head_dim": 80,
        }  # fmt: skip
        if rng.integers(2):
            config |= {"index_head_dim": int(rng.choice([32, 64])), "index_n_heads": 8, "index_topk": 512}
    return {"config": config, "gpus": 2 ** int(rng.integers(0, 6)), "bytes_each": int(rng.choice([1, 2, 4]))}


def reference(config, gpus, bytes_each):
    layers = config["num_hidden_layers"]
    if "kv_lora_rank" in config:
        row = config["kv_lora_rank"] + config["qk_rope_head_dim"] + config.get("index_head_dim", 0)
        return layers * row * bytes_each, layers * row * bytes_each
    heads = config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads", heads)
    width = config.get("head_dim", config["hidden_size"] // heads)
    one_head = layers * 2 * width * bytes_each
    return kv_heads * one_head, max(kv_heads // gpus, 1) * one_head


def gpu_by_gpu(config, gpus, bytes_each):
    """Deal the cached vectors out to the GPUs, and measure what lies on the first and what exists in all."""
    heads = config["num_attention_heads"]
    if config.get("kv_lora_rank"):
        vectors = {"latent": config["kv_lora_rank"], "turned": config["qk_rope_head_dim"]}
        vectors["index"] = config.get("index_head_dim") or 0
        held = [set(vectors) for _ in range(gpus)]
    else:
        width = config.get("head_dim") or config["hidden_size"] // heads
        kv_heads = config.get("num_key_value_heads") or heads
        vectors = {(part, g): width for part in "kv" for g in range(kv_heads)}
        per_gpu = max(gpus, kv_heads) // gpus
        first = [gpu * kv_heads // gpus for gpu in range(gpus)]
        held = [{(part, g) for part in "kv" for g in range(at, at + per_gpu)} for at in first]
    each = bytes_each * config["num_hidden_layers"]
    assert set().union(*held) == set(vectors)
    return each * sum(vectors.values()), each * sum(vectors[name] for name in held[0])


def every_query_head(config, gpus, bytes_each):
    layers = config["num_hidden_layers"]
    if "kv_lora_rank" in config:
        row = config["kv_lora_rank"] + config["qk_rope_head_dim"] + config.get("index_head_dim", 0)
        return layers * row * bytes_each, layers * row * bytes_each
    heads = config["num_attention_heads"]
    one_head = layers * 2 * config.get("head_dim", config["hidden_size"] // heads) * bytes_each
    return heads * one_head, max(heads // gpus, 1) * one_head


def keys_alone(config, gpus, bytes_each):
    layers = config["num_hidden_layers"]
    if "kv_lora_rank" in config:
        row = config["kv_lora_rank"] + config["qk_rope_head_dim"] + config.get("index_head_dim", 0)
        return layers * row * bytes_each, layers * row * bytes_each
    heads = config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads", heads)
    one_head = layers * config.get("head_dim", config["hidden_size"] // heads) * bytes_each
    return kv_heads * one_head, max(kv_heads // gpus, 1) * one_head


def latent_twice(config, gpus, bytes_each):
    layers = config["num_hidden_layers"]
    if "kv_lora_rank" in config:
        row = 2 * config["kv_lora_rank"] + config["qk_rope_head_dim"] + config.get("index_head_dim", 0)
        return layers * row * bytes_each, layers * row * bytes_each
    heads = config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads", heads)
    one_head = layers * 2 * config.get("head_dim", config["hidden_size"] // heads) * bytes_each
    return kv_heads * one_head, max(kv_heads // gpus, 1) * one_head


def row_twice(config, gpus, bytes_each):
    layers = config["num_hidden_layers"]
    if "kv_lora_rank" in config:
        row = 2 * (config["kv_lora_rank"] + config["qk_rope_head_dim"]) + config.get("index_head_dim", 0)
        return layers * row * bytes_each, layers * row * bytes_each
    heads = config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads", heads)
    one_head = layers * 2 * config.get("head_dim", config["hidden_size"] // heads) * bytes_each
    return kv_heads * one_head, max(kv_heads // gpus, 1) * one_head


def expanded(config, gpus, bytes_each):
    layers, heads = config["num_hidden_layers"], config["num_attention_heads"]
    if "kv_lora_rank" in config:
        wide = config["qk_nope_head_dim"] + config["qk_rope_head_dim"] + config["v_head_dim"]
        whole = layers * (heads * wide + config.get("index_head_dim", 0)) * bytes_each
        return whole, layers * (max(heads // gpus, 1) * wide + config.get("index_head_dim", 0)) * bytes_each
    kv_heads = config.get("num_key_value_heads", heads)
    one_head = layers * 2 * config.get("head_dim", config["hidden_size"] // heads) * bytes_each
    return kv_heads * one_head, max(kv_heads // gpus, 1) * one_head


def latent_not_noticed(config, gpus, bytes_each):
    layers, heads = config["num_hidden_layers"], config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads", heads)
    one_head = layers * 2 * config.get("head_dim", config["hidden_size"] // heads) * bytes_each
    return kv_heads * one_head, max(kv_heads // gpus, 1) * one_head


def latent_shared_out(config, gpus, bytes_each):
    layers = config["num_hidden_layers"]
    if "kv_lora_rank" in config:
        row = config["kv_lora_rank"] + config["qk_rope_head_dim"] + config.get("index_head_dim", 0)
        return layers * row * bytes_each, layers * row * bytes_each // gpus
    heads = config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads", heads)
    one_head = layers * 2 * config.get("head_dim", config["hidden_size"] // heads) * bytes_each
    return kv_heads * one_head, max(kv_heads // gpus, 1) * one_head


def without_the_turned_key(config, gpus, bytes_each):
    layers = config["num_hidden_layers"]
    if "kv_lora_rank" in config:
        row = config["kv_lora_rank"] + config.get("index_head_dim", 0)
        return layers * row * bytes_each, layers * row * bytes_each
    heads = config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads", heads)
    one_head = layers * 2 * config.get("head_dim", config["hidden_size"] // heads) * bytes_each
    return kv_heads * one_head, max(kv_heads // gpus, 1) * one_head


def without_the_indexer(config, gpus, bytes_each):
    layers = config["num_hidden_layers"]
    if "kv_lora_rank" in config:
        row = config["kv_lora_rank"] + config["qk_rope_head_dim"]
        return layers * row * bytes_each, layers * row * bytes_each
    heads = config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads", heads)
    one_head = layers * 2 * config.get("head_dim", config["hidden_size"] // heads) * bytes_each
    return kv_heads * one_head, max(kv_heads // gpus, 1) * one_head


def a_key_for_each_index_head(config, gpus, bytes_each):
    layers = config["num_hidden_layers"]
    if "kv_lora_rank" in config:
        index = config.get("index_head_dim", 0) * config.get("index_n_heads", 0)
        row = config["kv_lora_rank"] + config["qk_rope_head_dim"] + index
        return layers * row * bytes_each, layers * row * bytes_each
    heads = config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads", heads)
    one_head = layers * 2 * config.get("head_dim", config["hidden_size"] // heads) * bytes_each
    return kv_heads * one_head, max(kv_heads // gpus, 1) * one_head


def part_of_a_head(config, gpus, bytes_each):
    layers = config["num_hidden_layers"]
    if "kv_lora_rank" in config:
        row = config["kv_lora_rank"] + config["qk_rope_head_dim"] + config.get("index_head_dim", 0)
        return layers * row * bytes_each, layers * row * bytes_each
    heads = config["num_attention_heads"]
    whole = config.get("num_key_value_heads", heads) * layers * 2 * bytes_each
    whole *= config.get("head_dim", config["hidden_size"] // heads)
    return whole, whole // gpus


def all_on_each(config, gpus, bytes_each):
    layers = config["num_hidden_layers"]
    if "kv_lora_rank" in config:
        row = config["kv_lora_rank"] + config["qk_rope_head_dim"] + config.get("index_head_dim", 0)
        return layers * row * bytes_each, layers * row * bytes_each
    heads = config["num_attention_heads"]
    whole = config.get("num_key_value_heads", heads) * layers * 2 * bytes_each
    whole *= config.get("head_dim", config["hidden_size"] // heads)
    return whole, whole


def copies_counted(config, gpus, bytes_each):
    layers = config["num_hidden_layers"]
    if "kv_lora_rank" in config:
        row = config["kv_lora_rank"] + config["qk_rope_head_dim"] + config.get("index_head_dim", 0)
        return gpus * layers * row * bytes_each, layers * row * bytes_each
    heads = config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads", heads)
    one_head = layers * 2 * config.get("head_dim", config["hidden_size"] // heads) * bytes_each
    return max(kv_heads, gpus) * one_head, max(kv_heads // gpus, 1) * one_head


def head_width_by_division(config, gpus, bytes_each):
    layers = config["num_hidden_layers"]
    if "kv_lora_rank" in config:
        row = config["kv_lora_rank"] + config["qk_rope_head_dim"] + config.get("index_head_dim", 0)
        return layers * row * bytes_each, layers * row * bytes_each
    heads = config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads", heads)
    one_head = layers * 2 * (config["hidden_size"] // heads) * bytes_each
    return kv_heads * one_head, max(kv_heads // gpus, 1) * one_head


def always_two_bytes(config, gpus, bytes_each):
    layers = config["num_hidden_layers"]
    if "kv_lora_rank" in config:
        row = config["kv_lora_rank"] + config["qk_rope_head_dim"] + config.get("index_head_dim", 0)
        return layers * row * 2, layers * row * 2
    heads = config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads", heads)
    one_head = layers * 2 * config.get("head_dim", config["hidden_size"] // heads) * 2
    return kv_heads * one_head, max(kv_heads // gpus, 1) * one_head


EXERCISE = Exercise(
    id="06.6",
    unit="06",
    title="bytes of cache",
    entry="cache_bytes",
    points=5,
    minutes=15,
    difficulty=2,
    spine=False,
    inputs=inputs,
    cases=10,
    reference=reference,
    compare=same("whole", "per_gpu"),
    misconceptions=(
        Misconception(
            "every-query-head",
            every_query_head,
            "It looks like as many cached heads as query heads. Keys and values have num_key_value_heads.",
            "jranaraki/vllm-fit issue 2: an estimate that ignores num_key_value_heads",
        ),
        Misconception(
            "keys-alone",
            keys_alone,
            "It looks like keys alone. Outside of latent attention a head caches a key and a value.",
        ),
        Misconception(
            "latent-twice",
            latent_twice,
            "It looks like the latent counted twice, for keys and for values. Both come from the same latent, cached once.",
            "LMCache/LMCache pull request 694: 2 x layers x latent for DeepSeek-V3",
        ),
        Misconception(
            "row-twice",
            row_twice,
            "It looks like a latent and a turned key cached twice, for keys and for values. One row serves both.",
        ),
        Misconception(
            "expanded",
            expanded,
            "It looks like the keys and values that are made from the latent. What is cached is the latent and one "
            "turned key.",
            "huggingface/transformers pull request 47761: expanded keys and values were cached, not the latent",
        ),
        Misconception(
            "latent-not-noticed",
            latent_not_noticed,
            "It looks like latent attention counted by its heads: DeepSeek's num_key_value_heads says nothing about "
            "its cache. With a kv_lora_rank, count latent and turned key.",
        ),
        Misconception(
            "latent-shared-out",
            latent_shared_out,
            "It looks like a latent divided among the GPUs. Every head reads all of it, so every GPU holds it whole.",
        ),
        Misconception(
            "without-the-turned-key",
            without_the_turned_key,
            "It looks like the latent alone. The turned key of qk_rope_head_dim numbers is cached beside it.",
        ),
        Misconception(
            "without-the-indexer",
            without_the_indexer,
            "It looks like a cache without the indexer's keys: index_head_dim more numbers a layer.",
        ),
        Misconception(
            "index-heads",
            a_key_for_each_index_head,
            "It looks like one indexer key for each of its heads. Its heads share one key of index_head_dim numbers.",
        ),
        Misconception(
            "part-of-a-head",
            part_of_a_head,
            "It looks like GPUs that hold less than one head. With more GPUs than kv heads, heads are copied: each GPU "
            "holds one.",
            "tenstorrent/vllm pull request 50: kv heads divided by more devices than there are heads",
        ),
        Misconception(
            "all-on-each",
            all_on_each,
            "It looks like every kv head on every GPU. Heads are shared out; only a latent cannot be.",
        ),
        Misconception(
            "copies-counted",
            copies_counted,
            "It looks like copies counted as new. `whole` counts each cached number once, on however many GPUs it lies.",
        ),
        Misconception(
            "head-width-by-division",
            head_width_by_division,
            "It looks like hidden_size / heads where the config says head_dim. It holds only where head_dim is missing.",
            "LMCache/LMCache issue 688: a calculator that was wrong for Qwen3-4B",
        ),
        Misconception(
            "always-two-bytes",
            always_two_bytes,
            "It looks like two bytes a number, whatever the cache's dtype. Use bytes_each.",
        ),
    ),
    alternatives=(gpu_by_gpu,),
    hints=(
        "First which of two kinds it is; then what one layer caches for one token; then what of it lies on one GPU.",
        "A latent row is kv_lora_rank + qk_rope_head_dim, and index_head_dim where there is one; nothing divides it.",
        "Otherwise each kv head costs two vectors of head_dim; a GPU holds kv_heads / gpus of them, at least one.",
    ),
)
