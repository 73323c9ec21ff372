"""Answers that try to earn what they did not, or to harm: each earns its due, and one sentence says why."""

import json
import os
import re
import time
from pathlib import Path

import pytest
from conftest import SMALL, answer, book, cell

from course.grading.sandbox import interpreter, libraries

ENGINE_FILES = ("__init__", "host_waits", "wire", "worker")

HEAD = "def group_limited_topk(scores_TE, bias_E, groups, keep, k):\n"
RIGHT = """
    T, E = scores_TE.shape
    c = scores_TE + bias_E
    rank = c.view(T, groups, -1).topk(min(2, E // groups), dim=-1).values.sum(-1)
    best = rank.sort(dim=-1, descending=True, stable=True).indices[:, :keep]
    ok = torch.zeros(T, groups, dtype=torch.bool).scatter(1, best, True).repeat_interleave(E // groups, dim=1)
    right = c.masked_fill(~ok, -torch.inf).sort(dim=-1, descending=True, stable=True).indices[:, :k]
"""

FAIL = {  # what is tried: the answer's body, and what the first failing case says
    "the network": ("import socket; socket.create_connection(('1.1.1.1', 53), 2)", "OSError.*unreachable"),
    "a name server": ("import socket; socket.getaddrinfo('example.org', 80)", "gaierror"),
    "a quiet exit": ("import os; os._exit(0)", r"ended the Python process \(exit code 0\)"),
    "a segmentation fault": ("import ctypes; ctypes.string_at(0)", r"ended the Python process \(SIGSEGV\)"),
    "a loop deaf to signals": (
        "import signal; [signal.signal(s, signal.SIG_IGN) for s in (1, 2, 3, 13, 14, 15)]\n    while True: pass",
        "did not finish within 5 seconds",
    ),
    "a fork bomb": (
        "import os\n    while True:\n        try: os.fork()\n        except OSError: pass",
        "did not finish within 5 seconds",
    ),
    "a thread bomb": (
        "import threading, time\n    while True: threading.Thread(target=time.sleep, args=(60,)).start()",
        "RuntimeError.*can't start new thread",
    ),
    "a memory bomb in tensors": (
        "x = []\n    while True: x.append(torch.empty(10**7))",
        "RuntimeError.*allocate memory",
    ),
    "a memory bomb in a list": ("x = []\n    while True: x.append(bytes(10**7))", "MemoryError"),
    "a memory bomb in /tmp": (
        "i = 0\n    while True:\n        i += 1; open(f'/tmp/{i}', 'wb').write(bytes(1 << 22))",
        "OSError.*No space left",
    ),
    "a memory bomb in /dev/shm": (
        "i = 0\n    while True:\n        i += 1; open(f'/dev/shm/{i}', 'wb').write(bytes(1 << 22))",
        "OSError.*No space left",
    ),
    "one huge file": ("open('/tmp/x', 'wb').truncate(1 << 30)", "OSError.*File too large"),
    "a descriptor bomb": ("x = []\n    while True: x.append(open('/dev/null'))", "OSError.*Too many open files"),
    "a signal to every process": ("import os; os.kill(-1, 9)", "ProcessLookupError"),
    "a flood of output": ("while True: print('x' * 100000)", "did not finish"),
    "input": ("return input()", "EOFError"),
    "an object equal to everything": (
        "return type('Same', (), {'__eq__': lambda *_: True, '__ne__': lambda *_: False})()",
        "neither a tensor nor a number",
    ),
    "a pickle that runs code": (
        "return type('Evil', (), {'__reduce__': lambda s: (print, ('run',))})()",
        "neither a tensor nor a number",
    ),
    "a list of instances": ("return [object(), object()]", "wanted a tensor .* got 2 values"),
    "a tensor subclass": (
        "class Same(torch.Tensor):\n        def __eq__(s, o): return True\n"
        "        def __torch_function__(f, t, a=(), k=None): return True\n"
        "    return torch.zeros(len(scores_TE), k, dtype=torch.int64).as_subclass(Same)",
        "neither a tensor nor a number",
    ),
    "not a number": ("return torch.full((len(scores_TE), k), torch.nan)", "dtype float32, wanted int64"),
    "patched comparisons": (
        "torch.equal = torch.allclose = torch.Tensor.equal = torch.Tensor.__eq__ = torch.Tensor.__ne__ = lambda *a: True\n"
        "    return torch.zeros(len(scores_TE), k, dtype=torch.int64)",
        "indices",
    ),
    "changed inputs": (
        "scores_TE.zero_(); bias_E.zero_(); return torch.arange(k).expand(len(scores_TE), k)",
        "in place",
    ),
    "endless nesting": ("x = []; x.append(x); return x", "nested more than 64 deep"),
    "a value of 512 MiB": ("return torch.zeros(1 << 27)", "larger than 256 MiB|not enough memory|allocate memory"),
    "half a surrogate pair": ("return '\\ud800' + chr(27) + '[2J'", "wanted a tensor"),
}


@pytest.mark.parametrize("tried", FAIL)
def test_nothing_is_earned_by(graded, tried):
    body, says = FAIL[tried]
    verdict, grade = graded(f"{HEAD}    {body}\n")
    what = verdict.failures[0].what if verdict.failures else verdict.reason
    assert grade.total == 0
    assert grade.complete
    assert re.search(says, what), what
    assert "\n" not in what.split("got ")[0]


FORGE = """
import os, struct, sys
def forge(reply):
    text = reply if isinstance(reply, bytes) else sys.modules['course.checking.wire'].pack(reply)
    for fd in range(3, 64):
        try: os.write(fd, text)
        except OSError: pass
def asked():
    frame = sys._getframe()
    while 'request' not in frame.f_locals: frame = frame.f_back
    return {key: frame.f_locals['request'][key] for key in ('id', 'nonce')}
"""
FRAMES = {
    "early": "{'id': 1, 'nonce': '0', 'status': 'value', 'value': True}",
    "of the wrong form": "asked() | {'status': 'value', 'changed': 7}",
    "without a status": "asked()",
    "with a launch that is none": "asked() | {'status': 'value', 'launches': [{'kernel': 7}]}",
    "of huge length": "struct.pack('>II', 1 << 31, 1 << 31)",
    "of garbage": "bytes(range(256)) * 64",
    "of deep lists": "struct.pack('>II', 400000, 0) + b'[' * 400000",
    "twice": "asked() | {'status': 'value', 'value': torch.zeros(1)}",
}


@pytest.mark.parametrize("kind", FRAMES)
def test_a_forged_reply_earns_nothing(graded, kind):
    verdict, grade = graded(f"{FORGE}{HEAD}    forge({FRAMES[kind]})\n    return True\n")
    assert grade.total == 0
    assert grade.complete
    assert verdict.failures


LOOK = """
import gc, json, os, sys
def looked():
    files, read = [], []
    for folder, folders, names in os.walk('/'):
        folders[:] = [name for name in folders if not os.path.join(folder, name).startswith(LIBRARIES)]
        files += [os.path.join(folder, name) for name in names]
    for path in ('/etc/passwd', '/etc/shadow', '/proc/kcore', '/proc/1/root/etc/passwd', *FORBIDDEN):
        try: read.append(open(path, 'rb').read(9) and path)
        except OSError: pass
    frame, names = sys._getframe(), []
    while frame: names += frame.f_locals; frame = frame.f_back
    return {
        'files': files,
        'read': read,
        'init': open('/proc/1/environ').read().split(chr(0)),
        'processes': [p for p in os.listdir('/proc') if p.isdigit()],
        'environment': list(os.environ),
        'objects': [type(o).__name__ for o in gc.get_objects() if type(o).__module__.startswith('course')],
        'modules': [m for m in sys.modules if m.split('.')[0] in ('course', 'course_exercises')],
        'names': names,
    }
print(json.dumps(looked()), flush=True)
os._exit(0)
"""


def test_an_answer_that_looks_around_finds_itself_and_nothing_else(graded, tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "hunter2")
    (tmp_path / "bob.ipynb").write_text("another's answers")
    clone = Path(__file__).resolve().parents[2]
    forbidden = [tmp_path / "bob.ipynb", clone / "pyproject.toml", Path(__file__), Path.home() / ".bashrc"]
    python = [interpreter(), *libraries(), Path(os.__file__).parents[1], "/usr/lib", "/lib", "/proc", "/dev"]
    code = LOOK.replace("LIBRARIES", repr((*map(str, python), str(interpreter().parent))))
    verdict, _ = graded(code.replace("FORBIDDEN", repr([*map(str, forbidden)])) + HEAD + "    return 0\n")
    seen = json.loads(verdict.printed)
    staged = {f"/stage/course/{name}" for name in ("__init__.py", *(f"checking/{n}.py" for n in ENGINE_FILES))}
    assert set(seen["files"]) == {"/tmp/answer.py", "/etc/ld.so.cache"} | staged
    assert seen["read"] == []
    assert "hunter2" not in verdict.printed
    assert not [line for line in seen["init"] if line.startswith(("SECRET", "HOME=/root", "OLDPWD", "SUDO"))]
    assert len(seen["processes"]) == 2
    assert set(seen["modules"]) <= {"course", "course.checking", "course.checking.wire", "course.checking.worker"}
    assert not {"Exercise", "Misconception", "Verdict"} & set(seen["objects"])
    assert not {"exercise", "wanted", "reference", "seed", "numbers"} & set(seen["names"])


def test_a_daemon_left_behind_is_dead_after_the_grade(graded):
    daemon = (
        "import sys\n"
        "    if os.fork() == 0:\n        os.setsid()\n        if os.fork() == 0:\n"
        "            [os.close(fd) for fd in range(64) if fd > 2 or fd == 0]\n"
        "            os.execv(sys.executable, [sys.executable, '-I', '-S', '-c', 'import time; time.sleep(77.125)'])\n"
        "        os._exit(0)\n    open('/tmp/left', 'w')\n"
    )
    code = f"import os\n{HEAD}    if os.path.exists('/tmp/left'): return right(scores_TE, bias_E, groups, keep, k)\n    {daemon}"
    code += "    return right(scores_TE, bias_E, groups, keep, k)\n"
    code += HEAD.replace("group_limited_topk", "right") + RIGHT + "    return right\n"
    assert graded(code)[0].passed
    assert _gone(b"time.sleep(77.125)")


def test_a_fork_bomb_stops_at_a_few_processes(graded):
    code = "import os\nfor number in range(100):\n    if os.fork() == 0:\n        while True: pass\n    print(number)\n"
    verdict, _ = graded(code + HEAD + "    return 0\n")
    assert "BlockingIOError" in verdict.reason
    assert int(verdict.printed.split()[-1]) < SMALL.processes


def _gone(words: bytes) -> bool:
    """Whether no process has these words in its command, two seconds given."""
    for _ in range(40):
        commands = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                commands.append(path.read_bytes())
            except OSError:
                continue
        if not any(words in command for command in commands):
            return True
        time.sleep(0.05)
    return False


def test_a_right_answer_that_prints_much_passes_and_little_of_it_is_kept(graded):
    verdict, _ = graded(f"{HEAD}    print('x' * 10**6){RIGHT}    return right\n")
    assert verdict.passed
    assert len(verdict.printed) <= 4000


def test_answers_written_for_the_public_inputs_fail_on_secret_ones(pilots, graded):
    from course.checking.judge import PUBLIC_SEED, draw, run_reference

    exercise = pilots["05.9"]
    drawn = [draw(exercise, PUBLIC_SEED, number) for number in range(exercise.cases)]
    known = [(i["scores_TE"].tolist(), run_reference(exercise.reference, i).tolist()) for i in drawn]
    body = f"    known = {known!r}\n    return next((torch.tensor(w) for s, w in known if s == scores_TE.tolist()), None)\n"
    verdict, grade = graded(HEAD + body)
    assert grade.total == 0
    assert len(verdict.failures) >= 17


def test_only_answer_cells_are_run(pilots, graded):
    trick = cell("get_ipython().input_transformers_post.append(lambda lines: ['pass\\n'])")
    check = cell("print('05.9 group-limited top-k: passed, 10 points')", "check:05.9")
    verdict, grade = graded(book({"05.9": HEAD + "    return None\n"}, trick, check))
    assert verdict.status == "failed"
    assert grade.total == 0
    assert grade.notes == ("The check cell of 05.9 was edited.",)


def test_a_worker_patched_from_inside_still_earns_only_what_is_right(pilots, graded):
    patch = "import sys\nsys.modules['course.checking.wire'].pack.__globals__['json'].dumps = lambda *a: '[]'\n"
    verdict, grade = graded(patch + answer(pilots["05.9"]))
    assert grade.total == 0
    assert grade.complete
    assert "reply" in (verdict.reason or verdict.failures[0].what)


def test_this_process_keeps_its_descriptors(graded):
    graded(HEAD + "    return None\n")
    before = len(os.listdir("/proc/self/fd"))
    graded(HEAD + "    return None\n")
    assert len(os.listdir("/proc/self/fd")) == before
