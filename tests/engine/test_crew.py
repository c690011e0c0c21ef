import os
import signal
import subprocess
import sys
import threading
from threading import Barrier, Event, get_ident

import pytest

from refengine.engine.crew import CREW, Crew


def idents(crew, threads=2):
    """Who works, where everybody waits for everybody."""
    together, found = Barrier(threads, timeout=20), set()

    def work():
        together.wait()
        found.add(get_ident())

    crew.share(work, threads, Event())
    return found


def test_a_thread_is_kept_for_the_next_piece_of_work():
    crew = Crew()
    first = idents(crew, 3)
    assert len(first) == 3 and idents(crew, 3) == first and idents(crew, 2) < first


def test_what_goes_wrong_beside_the_caller_stops_it_and_is_raised():
    caller, stop = get_ident(), Event()

    def work():
        if get_ident() != caller:
            raise ValueError("beside")
        assert stop.wait(20)

    with pytest.raises(ValueError, match="beside"):
        CREW.share(work, 2, stop)


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="needs signals to a thread")
def test_interrupted_while_it_waits_for_the_others_it_stops_them():
    caller, stop, at_work, stopped = threading.main_thread().ident, Event(), Event(), []

    def work():
        if get_ident() == caller:
            assert at_work.wait(20)
            return
        at_work.set()
        signal.pthread_kill(caller, signal.SIGINT)
        stopped.append(stop.wait(20))

    with pytest.raises(KeyboardInterrupt):
        CREW.share(work, 2, stop)
    assert stopped == [True]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_has_threads_of_its_own():
    code = """
import os, sys
sys.path.insert(0, sys.argv[1])
from test_crew import CREW, idents
idents(CREW)
child = os.fork()
if child == 0:
    os._exit(0 if len(idents(CREW)) == 2 else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    here = os.path.dirname(__file__)
    assert subprocess.run([sys.executable, "-W", "ignore", "-c", code, here], timeout=120).returncode == 0
