import os

import numpy as np
import pytest

from unary.errors import ImageError, UnaryError
from unary.training.processes import map_in_processes
from unary.training.threads import count_threads


def describe(state, item):
    """What the tests have processes do; at the top level, where they can find it."""
    if isinstance(item, str) and item == "end":
        os._exit(3)
    if isinstance(item, str) and item == "fail":
        raise ImageError("it cannot be read", reason="BLANK")
    return state + item, os.getpid(), count_threads()


def test_results_come_in_order_whatever_the_number_of_processes():
    items = [np.full(40_000, number) for number in range(7)]  # more than a pipe holds
    for workers in (1, 3):
        found = list(map_in_processes(describe, items, state=np.float64(0.5), workers=workers))
        assert [(values[0], len(values)) for values, *_ in found] == [(number + 0.5, 40_000) for number in range(7)]
        processes = {process for _, process, _ in found}
        assert len(processes) == workers
        assert (os.getpid() in processes) == (workers == 1)
        if workers > 1:
            assert {threads for *_, threads in found} == {1}
    assert list(map_in_processes(describe, [], state=0, workers=2)) == []


def test_what_goes_wrong_in_a_process_is_told():
    with pytest.raises(ImageError, match="cannot be read") as raised:
        list(map_in_processes(describe, ["a", "fail", "b"], state="", workers=2))
    assert raised.value.reason == "BLANK"
    with pytest.raises(UnaryError, match="ended without an answer"):
        list(map_in_processes(describe, ["a", "end", "b"], state="", workers=2))
    with pytest.raises(ValueError, match="at least 1"):
        next(map_in_processes(describe, ["a"], state="", workers=0))


def test_whoever_stops_listening_leaves_no_process():
    found = map_in_processes(describe, map(str, range(100)), state="", workers=2)
    process = next(found)[1]
    found.close()
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)
