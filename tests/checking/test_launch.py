"""A worker as a process: frames under a deadline, replies that cannot be trusted, and an end that leaves nothing behind."""

import gc
import os
import signal
import time
from pathlib import Path

import pytest

from course.checking.launch import Worker, WorkerEnded, forked, fresh
from course.checking.wire import LARGEST_TEXT

from small import answer, verdict_on  # isort: skip

LOAD = {
    "op": "load",
    "prelude": "",
    "entry": "f",
    "earlier": {},
    "gives": [],
    "forbids": [],
    "kernel": False,
    "tags": [],
}


def loaded(worker: Worker, *body: str) -> Worker:
    source = "def f(x=None):\n" + "".join(f"    {line}\n" for line in body)
    assert worker.request(LOAD | {"source": source}, 20)["status"] == "ready"
    return worker


def call(worker: Worker, seconds: float = 20.0, **arguments):
    return worker.request({"op": "call", "arguments": arguments}, seconds)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def gone(pid: int) -> bool:
    end = time.monotonic() + 3
    while alive(pid) and time.monotonic() < end:
        time.sleep(0.01)
    return not alive(pid)


@pytest.mark.parametrize("start", [forked, fresh])
def test_a_worker_answers_many_calls_and_then_is_gone_with_its_folder(start):
    with loaded(start(), "return x") as worker:
        for value in (1, "a", [2.5, None], {"a": True}):
            assert call(worker, x=value)["value"] == value
        folder = Path(worker.folder.name)
        assert (folder / "answer.py").exists()
    assert gone(worker.pid)
    assert not folder.exists()


def test_a_large_value_crosses_in_both_directions_while_megabytes_are_printed():
    with loaded(forked(), "print('x' * 3_000_000)", "return x") as worker:
        text = "a" * (LARGEST_TEXT - 1000)
        assert call(worker, x=text)["value"] == text
        assert len(worker.printed()) == 4000


def test_workers_leave_no_descriptor_open():
    for start in (forked, fresh):
        with start():
            pass
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    for start in (forked, forked, fresh):
        with loaded(start(), "return x") as worker:
            call(worker, x=1)
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before


FORGED = """
import os, struct, sys, json
frame = sys._getframe()
while "request" not in frame.f_locals or "replies" not in frame.f_locals:
    frame = frame.f_back
request, replies = frame.f_locals["request"], frame.f_locals["replies"]
def send(text, blob=b"", lengths=None):
    replies.write(struct.pack(">II", *(lengths or (len(text), len(blob)))) + text + blob)
    replies.flush()
mark = {"id": request["id"], "nonce": request["nonce"]}
def say(**reply):
    send(json.dumps({"dict": mark | reply}).encode())
""".strip().splitlines()


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        (["send(b'noise')"], "The reply cannot be read"),
        (["send(b'', lengths=(2**32 - 1, 0))"], "larger than"),
        (["send(b'[]')"], "The reply is not a message"),
        (["say(nonce='guessed', status='value', value=3)"], "It sent a reply to a question that was not asked."),
        (["mark['id'] += 1", "say(status='value', value=3)"], "It sent a reply to a question that was not asked."),
        (["mark.clear()", "say(status='value', value=3)"], "It sent a reply to a question that was not asked."),
        (["say()"], "It sent a reply of the wrong form."),
        (["say(status=3)"], "It sent a reply of the wrong form."),
        (["say(status='value', changed=3)"], "It sent a reply of the wrong form."),
        (["say(status='value', changed=[3])"], "It sent a reply of the wrong form."),
        (["say(status='value', launches={'dict': {}})"], "It sent a reply of the wrong form."),
        (["say(status='value', launches=[1])"], "It sent a reply of the wrong form."),
        (["say(status='raised', error=[1])"], "It sent a reply of the wrong form."),
        (["send(b'x', lengths=(100, 0))", "os._exit(0)"], "It ended the Python process (exit code 0)."),
    ],
)
def test_a_forged_reply_is_refused_in_a_sentence(lines, says):
    with loaded(forked(), *FORGED, *lines, "return 3") as worker, pytest.raises(WorkerEnded) as refused:
        call(worker)
    assert says in str(refused.value)
    assert str(refused.value).endswith(".")


@pytest.mark.parametrize(
    "reply",
    [
        "status='ready'",
        "status='value'",
        "status='value', value=3",
        "status='value', value={'foreign': 'x' * 10**6}",
        "status='value', value='x' * 10**6",
        "status='value', value=[[[]] * 1000] * 100",
        "status='value', launches=[{'dict': {}}]",
        "status='value', changed=['x' * 10**6]",
        "status='raised'",
        "status='raised', error={'dict': {'type': 3, 'message': [1], 'line': {'dict': {}}}}",
        "status='raised', error={'dict': {'type': 'x' * 10**6, 'message': 'y\\n' * 10**6, 'line': 10**70}}",
        "status='raised', error={'dict': {'type': 'NameError', 'message': None}}",
        "status='no such status'",
    ],
)
def test_a_reply_of_the_right_form_with_nonsense_in_it_is_a_failed_case_of_modest_length(reply):
    forged = answer(*FORGED, f"say({reply})", "return x_N")
    verdict = verdict_on(forged)
    assert verdict.status == "failed"
    assert all(len(case.what) < 1500 for case in verdict.failures)


def test_a_forged_right_value_helps_only_whoever_knows_it():
    honest = answer(*FORGED, "return x_N * factor")
    assert verdict_on(honest).passed
    forged = answer(*FORGED, "say(status='value', value=0, changed=[], launches=[])", "return x_N * factor")
    assert verdict_on(forged).status == "failed"


def test_replies_sent_ahead_of_their_question_are_not_taken():
    ahead = answer(*FORGED, "for n in range(5):", "    say(id=request['id'] + n, status='value', value=0)", "return 0")
    verdict = verdict_on(ahead)
    assert verdict.status == "failed"


LEAVES = [
    "import subprocess, os",
    "child = subprocess.Popen(['sleep', '60'])",
    "print(child.pid, flush=True)",
    "return x_N * factor",
]


@pytest.mark.parametrize("start", [forked, fresh])
def test_children_that_an_answer_leaves_behind_are_ended(start):
    verdict = verdict_on(answer(*LEAVES), start=start)
    assert verdict.passed
    pids = [int(pid) for pid in verdict.printed.split()]
    assert len(pids) == 3
    assert all(map(gone, pids))


def test_children_of_an_answer_that_crashes_are_ended_too():
    verdict = verdict_on(answer(*LEAVES[:3], "os._exit(0)"))
    assert gone(int(verdict.printed))


def test_a_child_that_holds_the_pipes_open_does_not_keep_the_judge_waiting():
    begun = time.monotonic()
    body = ["import os, time", "if os.fork() == 0:", "    time.sleep(60)", "os._exit(5)"]
    verdict = verdict_on(answer(*body), seconds=1.0)
    assert verdict.status == "failed"
    assert time.monotonic() - begun < 3


@pytest.mark.parametrize("start", [forked, fresh])
def test_a_worker_has_a_process_group_of_its_own(start):
    with loaded(start(), "import os", "return os.getpgid(0)") as worker:
        assert call(worker)["value"] == worker.pid != os.getpgid(0)


@pytest.mark.parametrize("start", [forked, fresh])
def test_an_interrupt_of_the_judge_ends_the_worker(start):
    def interrupt(*_):
        raise KeyboardInterrupt

    old = signal.signal(signal.SIGALRM, interrupt)
    try:
        with loaded(start(), "while True: pass") as worker:
            signal.setitimer(signal.ITIMER_REAL, 0.2)
            with pytest.raises(KeyboardInterrupt):
                call(worker)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
    assert gone(worker.pid)


def test_a_worker_knows_nothing_of_the_parents_streams(capfd):
    body = ["import os, sys", "os.write(1, b'one')", "os.write(2, b'two')", "print('three', file=sys.__stdout__)"]
    verdict = verdict_on(answer(*body, "return x_N"))
    assert capfd.readouterr() == ("", "")
    assert "onetwo" in verdict.printed


def test_a_forked_worker_runs_torch_with_one_thread_after_the_parent_used_two():
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        x = torch.randn(600, 600)
        x @ x
        body = ["assert torch.get_num_threads() == 1", "y = torch.randn(600, 600)", "y @ y", "return x_N * factor"]
        assert verdict_on(answer(*body), seconds=5.0).passed
    finally:
        torch.set_num_threads(threads)
