"""Ways to a place on the leaderboard that were not earned, each a whole entry to exercise 10.3."""

KERNEL = """
@triton.jit
def pairs(gate_up, out, count, limit, offset, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    gate = tl.load(gate_up + 2 * i, mask=i < count).to(tl.float32)
    up = tl.load(gate_up + 2 * i + 1, mask=i < count).to(tl.float32)
    gate, up = tl.minimum(gate, limit), tl.clamp(up, -limit, limit)
    tl.store(out + i, (gate * tl.sigmoid(gate) * (up + offset)).to(out.dtype.element_ty), mask=i < count)

def launch(gate_up_NF, out_NI, limit, offset):
    count = out_NI.numel()
    pairs[(triton.cdiv(count, 1024),)](gate_up_NF, out_NI, count, limit, offset, BLOCK=1024)
    return out_NI

@triton.jit
def nothing(x, BLOCK: tl.constexpr):
    pass

def fresh(gate_up_NF):
    return gate_up_NF.new_empty(len(gate_up_NF), gate_up_NF.shape[1] // 2)
"""
IN_PYTORCH = """
def in_pytorch(gate_up_NF, limit, offset):
    gate, up = gate_up_NF.float().unflatten(-1, (-1, 2)).unbind(-1)
    gate = gate.clamp(max=limit)
    return (gate * torch.sigmoid(gate) * (up.clamp(-limit, limit) + offset)).to(gate_up_NF.dtype)
"""
HEAD = "def swiglu_clamped(gate_up_NF, limit, offset):\n"
HONEST = KERNEL[: KERNEL.index("@triton.jit\ndef nothing")] + HEAD
HONEST += "    N, F = gate_up_NF.shape\n    return launch(gate_up_NF, gate_up_NF.new_empty(N, F // 2), limit, offset)\n"
TWICE = HONEST.replace("launch(gate_up_NF, gate_up_NF.new", "launch(gate_up_NF.clone(), gate_up_NF.new")
LOW = HONEST.replace("(up + offset)).to(", "(up + offset)).to(tl.{}).to(")


def cheat(body: str, before: str = "") -> str:
    return f"{before}{KERNEL}{IN_PYTORCH if 'in_pytorch' in body else ''}\n{HEAD}    {body}\n"


# what is tried: the entry, what reading it says (None: nothing), and what running it says where it was not read
CHEATS = {
    "an empty kernel beside PyTorch": (
        cheat("nothing[(1,)](gate_up_NF, BLOCK=1)\n    return in_pytorch(gate_up_NF, limit, offset)"),
        r"uses `\.clamp`",
        r"PyTorch computes here \(clamp\)",
    ),
    "an empty kernel beside PyTorch in a thread": (
        cheat(
            "nothing[(1,)](gate_up_NF, BLOCK=1)\n    found = []\n"
            "    work = lambda: found.append(in_pytorch(gate_up_NF, limit, offset))\n"
            "    thread = threading.Thread(target=work); thread.start(); thread.join()\n    return found[0].contiguous()",
            "import threading\n",
        ),
        "imports `threading`",
        "Faster than the roof: it loaded 0 bytes",
    ),
    "results kept by shape": (
        cheat(
            "key = gate_up_NF.shape, limit, offset\n"
            "    if key not in KEPT: KEPT[key] = launch(gate_up_NF, fresh(gate_up_NF), limit, offset)\n"
            "    else: nothing[(1,)](gate_up_NF, BLOCK=1)\n    return KEPT[key].clone()",
            "KEPT = {}\n",
        ),
        "keeps something that can change from one call to the next",
        "Wrong at the standard size",
    ),
    "results kept by what is in the inputs": (
        cheat(
            "key = gate_up_NF.shape, limit, offset, gate_up_NF.sum().item()\n"
            "    if key not in KEPT: KEPT[key] = launch(gate_up_NF, fresh(gate_up_NF), limit, offset)\n"
            "    else: launch(gate_up_NF[:1], fresh(gate_up_NF[:1]), limit, offset)\n    return KEPT[key].clone()",
            "KEPT = {}\n",
        ),
        "keeps something that can change from one call to the next",
        "took other launches the second time",
    ),
    "results kept by address": (
        cheat(
            "key = gate_up_NF.data_ptr()\n"
            "    kept[key] = kept.get(key, launch(gate_up_NF, fresh(gate_up_NF), limit, offset))\n    return kept[key]"
        ).replace("limit, offset):\n    key", "limit, offset, kept={}):\n    key"),
        "has a default value that can change",
        None,  # right, unless memory comes round again
    ),
    "bfloat16 where float32 is asked": (LOW.format("bfloat16"), None, "relative error"),
    "FP8 where float32 is asked": (LOW.format("float8e5"), None, "relative error"),
    "another stream": (
        cheat(
            "with torch.cuda.stream(torch.cuda.Stream()):\n        return launch(gate_up_NF, fresh(gate_up_NF), limit, offset)"
        ),
        r"has a statement \(with\)",
        None,  # measured alone shows it
    ),
    "another stream, without a with": (
        cheat(
            "torch.cuda.set_stream(torch.cuda.Stream())\n    return launch(gate_up_NF, fresh(gate_up_NF), limit, offset)"
        ),
        r"uses `\.(set_stream|Stream)`|uses `torch\.cuda`",
        None,
    ),
    "calls answered three at a time": (
        cheat(
            "out = fresh(gate_up_NF)\n    WAIT.append((gate_up_NF, out, limit, offset))\n"
            "    if len(WAIT) == 3:\n        while WAIT: launch(*WAIT.pop())\n    return out",
            "WAIT = []\n",
        ),
        "keeps something that can change",
        "no Triton kernel was launched|are NaN",
    ),
    "answers to the public inputs": (
        cheat(
            "nothing[(1,)](gate_up_NF, BLOCK=1)\n    known = {8.5: [[1.0]], 3.0: [[2.0]]}\n"
            "    return torch.tensor(known.get(gate_up_NF.sum().item(), 0.0))"
        ),
        r"uses `\.get`",
        r"PyTorch computes here|shape \[\]",
    ),
    "a look at the frames of who calls": (
        cheat(
            "nothing[(1,)](gate_up_NF, BLOCK=1)\n    frame = sys._getframe()\n"
            "    while 'wanted' not in frame.f_locals: frame = frame.f_back\n    return frame.f_locals['wanted']",
            "import sys\n",
        ),
        "imports `sys`",
        "AttributeError",
    ),
    "a look at the grader's files": (
        cheat("return torch.load(open('/work/wanted.pt', 'rb'))"),
        r"uses `torch\.load`|uses `open`",
        "FileNotFoundError",
    ),
    "one buffer for every result": (
        cheat(
            "N, F = gate_up_NF.shape\n    BUFFER.setdefault(gate_up_NF.dtype, torch.empty(10**5, dtype=gate_up_NF.dtype))\n"
            "    out = BUFFER[gate_up_NF.dtype][: N * F // 2].view(N, F // 2)\n    return launch(gate_up_NF, out, limit, offset)",
            "BUFFER = {}\n",
        ),
        "keeps something that can change",
        "memory of the result before it",
    ),
    "a result in the memory of an input": (
        cheat(
            "N, F = gate_up_NF.shape\n    pairs[(1,)](gate_up_NF, fresh(gate_up_NF), 0, limit, offset, BLOCK=16)\n"
            "    return gate_up_NF.view(-1)[: N * F // 2].view(N, F // 2)"
        ),
        None,
        "memory of the input `gate_up_NF`",
    ),
    "another clock": (
        cheat(
            "torch.cuda.Event.elapsed_time = lambda *_: 1e-6\n    return launch(gate_up_NF, fresh(gate_up_NF), limit, offset)"
        ),
        r"uses `torch\.cuda`|sets the attribute `elapsed_time`",
        None,
    ),
    "an interpreter that counts nothing": (
        cheat(
            "Launch = sys.modules['course.kernels.launch'].Launch\n"
            "    TOLD.append(Launch.to_json) if not TOLD else None\n"
            "    Launch.to_json = lambda self: TOLD[0](self) | {'load_bytes': 0, 'store_bytes': 0}\n"
            "    return launch(gate_up_NF, fresh(gate_up_NF), limit, offset)",
            "import sys\nTOLD = []\n",
        ),
        "keeps something that can change",
        "Faster than the roof: it loaded 0 bytes",
    ),
    "a thread that goes on after the return": (
        cheat(
            "out = fresh(gate_up_NF)\n    nothing[(1,)](gate_up_NF, BLOCK=1)\n"
            "    work = lambda: (time.sleep(0.3), out.copy_(in_pytorch(gate_up_NF, limit, offset)))\n"
            "    threading.Thread(target=work).start()\n    return out",
            "import threading, time\n",
        ),
        "imports `threading`",
        "are NaN|can't start new thread",
    ),
    "work in a destructor": (
        cheat(
            "out = fresh(gate_up_NF)\n    nothing[(1,)](gate_up_NF, BLOCK=1)\n"
            "    OLD.append(Later(lambda: in_pytorch(gate_up_NF, limit, offset)))\n    return out",
            "OLD = []\nclass Later:\n    def __init__(self, work): self.work = work\n    def __del__(self): self.work()\n",
        ),
        "keeps something that can change|runs outside the functions",
        "are NaN",
    ),
    "a tensor that computes when it is read": (
        cheat(
            "nothing[(1,)](gate_up_NF, BLOCK=1)\n    return fresh(gate_up_NF).as_subclass(Lazy)",
            "class Lazy(torch.Tensor):\n    def __repr__(self): return 'later'\n",
        ),
        "runs outside the functions",
        "neither a tensor nor a number",
    ),
    "a huge result of one number": (
        cheat("nothing[(1,)](gate_up_NF, BLOCK=1)\n    return torch.zeros(1).expand(1 << 40)"),
        None,
        "a result is not contiguous",
    ),
    "other bits each time": (
        cheat(
            "out = launch(gate_up_NF, fresh(gate_up_NF), limit, offset)\n    COUNT.append(1)\n"
            "    if len(gate_up_NF) == 48: out.view(torch.int16)[len(COUNT) % 7, 0] ^= 1\n    return out",
            "COUNT = []\n",
        ),
        "keeps something that can change",
        "other bits the second time",
    ),
}
