"""What heavy imports leave behind, each in a Python of its own."""

import subprocess
import sys


def printed(program: str) -> list[str]:
    """The words that a program prints."""
    command = [sys.executable, "-c", f"import atexit, gc\n{program}"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()


IMPORT = """
from hala_hpc.config.imports import heavy_imports
with heavy_imports():
    import xml.dom.minidom
    print(gc.isenabled())
"""


def test_the_collector_rests_and_never_sees_the_objects_again() -> None:
    rested, works, count = printed(f"{IMPORT}\nprint(gc.isenabled(), gc.get_freeze_count())")
    assert (rested, works) == ("False", "True")
    assert int(count) > 1000


def test_a_collector_that_was_off_stays_off() -> None:
    assert printed(f"gc.disable()\n{IMPORT}\nprint(gc.isenabled())") == ["False", "False"]


def test_imports_that_bring_nothing_keep_no_garbage() -> None:
    program = f"""{IMPORT}
class Circle: pass
circle = Circle()
circle.itself = circle
del circle
gc.unfreeze()
{IMPORT}
print(gc.get_freeze_count())
"""
    assert printed(program)[-1] == "0"


def test_the_objects_of_a_library_that_thaws_them_are_not_seen_at_the_end() -> None:
    """As vLLM does; what is registered first is called last."""
    last = "atexit.register(lambda: print(gc.get_freeze_count()))"
    assert int(printed(f"{last}\n{IMPORT}\natexit.register(gc.unfreeze)")[-1]) > 1000


def test_a_hidden_package_is_not_there_meanwhile() -> None:
    program = """
import importlib.util
from hala_hpc.config.imports import heavy_imports
with heavy_imports("wave", "gc"):
    print(importlib.util.find_spec("wave"))
    try:
        import wave
    except ImportError:
        print("refused")
    import gc
import wave
print(wave.__name__)
"""
    assert printed(program) == ["None", "refused", "wave"], "and what was imported before stays"
