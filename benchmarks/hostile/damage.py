"""Programs that damage the interpreter they run in: modules, streams, limits, signals. The next one must be served."""

from agentrl_sandbox.result import Status

from .case import case, holds, lacks, says

_NEXT = "40 + 2"
_ANY = (Status.OK, Status.ERROR)
_TWO = holds("value", "42")
_LATE = """
import builtins, threading, time
def late():
    time.sleep(0.05)
    builtins.print = None
    builtins.__dict__.pop('len', None)
threading.Thread(target=late).start()
"""
_HUNT = """
import gc
for found in gc.get_objects():
    if type(found).__name__ in ('Interpreter', 'Upkeep', 'Notebook'):
        for name in list(vars(found)):
            if name not in ('line', 'pid'):
                try: setattr(found, name, None)
                except Exception: pass
"""
_REPLY = """
import os, struct, sys
frame = sys._getframe()
while frame is not None:
    if 'request' in frame.f_locals: request = frame.f_locals['request']; line = frame.f_locals['self'].line
    frame = frame.f_back
body = request + @BODY@
os.write(line, struct.pack('!I', len(body)) + body)
"""
_SAID = '{"kind": "ok", "value": null, "error": null, "exit_code": null, "files": [], '


def _reply(rest: str) -> str:
    return _REPLY.replace("@BODY@", repr((_SAID + rest + "}").encode()))


CASES = (
    # What every function looks its names up in.
    case(501, "no builtins", ("import builtins\nfor n in list(vars(builtins)): delattr(builtins, n)", _NEXT), check=_TWO, alive=True),
    case(502, "builtins of no use", ("import builtins\nfor n in list(vars(builtins)): setattr(builtins, n, None)", "print(len('abc'), sorted([2, 1]))"), check=says("3 [1, 2]"), alive=True),
    case(503, "builtins that raise", ("import builtins\ndef bad(*a, **k): 1 / 0\nfor n in ('len', 'isinstance', 'repr', 'eval', 'compile', 'any', 'str', 'map', 'zip', 'sorted'): setattr(builtins, n, bad)", _NEXT), check=_TWO, alive=True),
    case(504, "a print of its own stays", ("import builtins\nreal = print\nbuiltins.print = lambda *a: real('>', *a)", "print('mine')"), Status.OK, check=says("> mine"), alive=True),
    case(505, "cell without builtins", ("__builtins__ = {}", "print(len('abc'))"), Status.OK, check=says("3"), alive=True),
    case(506, "cell without globals", ("x = 1\nglobals().clear()", "print(__name__, len('abc'))"), Status.OK, check=says("__main__ 3"), alive=True),
    case(507, "builtins damaged between two runs", (_LATE, "import time\ntime.sleep(0.2)", "print(len('abc'))"), Status.OK, check=says("3"), alive=True),
    # Modules.
    case(511, "no json", ("import json, json.encoder as e\njson.dumps = json.loads = json.JSONEncoder = None\nfor n in list(vars(e)): setattr(e, n, None)", _NEXT), check=_TWO, alive=True),
    case(512, "no os", ("import os\nfor n in list(vars(os)):\n    if not n.startswith('__'): setattr(os, n, None)", _NEXT), check=_TWO, alive=True),
    case(513, "no traceback", ("import traceback, linecache\nfor m in (traceback, linecache):\n    for n in list(vars(m)):\n        if not n.startswith('__'): setattr(m, n, None)", "1 / 0"), Status.ERROR, check=says("<cell 2>", "ZeroDivisionError"), alive=True),
    case(514, "no modules", ("import sys\nsys.modules.clear()", "import fractions\nprint(fractions.Fraction(1, 3))"), Status.OK, check=says("1/3"), alive=True),
    case(515, "other modules", ("import sys\nsys.modules = {}", "import fractions, csv\nprint(fractions.Fraction(1, 3))"), Status.OK, check=says("1/3"), alive=True),
    case(516, "modules that are None", ("import sys\nfor n in list(sys.modules): sys.modules[n] = None", "import os, io, fractions\nprint(fractions.Fraction(1, 3))"), Status.OK, check=says("1/3"), alive=True),
    case(517, "nowhere to import from", ("import sys\nsys.path.clear(); sys.meta_path.clear(); sys.path_hooks.clear(); sys.path_importer_cache.clear()", "import csv, wave\nprint(csv.QUOTE_ALL)"), Status.OK, check=says("1"), alive=True),
    case(518, "paths that are no list", ("import sys\nsys.path = None; sys.meta_path = 7; sys.path_hooks = ''", "import csv, wave\nprint(csv.QUOTE_ALL)"), Status.OK, check=says("1"), alive=True),
    case(519, "no sys", ("import sys\nfor n in ('stdout', 'stderr', 'stdin', 'modules', 'path', 'meta_path', 'exc_info', 'settrace', 'getrecursionlimit'): delattr(sys, n)", _NEXT, _NEXT), check=_TWO),
    case(520, "the interpreter's own objects", (_HUNT, _NEXT, _NEXT), check=_TWO),
    case(521, "a trace that raises", ("import sys\nsys.settrace(lambda *a: 1 / 0)\nsys.setprofile(lambda *a: 1 / 0)", _NEXT, _NEXT), check=_TWO),
    case(522, "a hook on everything", ("import sys\nsys.addaudithook(lambda *a: 1 / 0)", _NEXT, _NEXT), check=_TWO),
    case(523, "a hook on compile", ("import sys\ndef hook(event, _):\n    if event == 'compile': raise OSError('no')\nsys.addaudithook(hook)", _NEXT, _NEXT), check=_TWO),
    case(524, "a shallow stack", ("import sys\ntry: sys.setrecursionlimit(40)\nexcept RecursionError: pass", "def f(n): return n and f(n - 1)\nf(200)"), Status.OK, check=holds("value", "0"), alive=True),
    # Streams.
    case(531, "stdout closed", ("import sys\nprint('before'); sys.stdout.close()", "print('after')"), Status.OK, check=says("after"), alive=True),
    case(532, "both streams closed and an exit", ("import sys\nsys.stdout.close(); sys.stderr.close()\nsys.exit('bye')",), Status.EXITED, check=says("bye"), alive=True),
    case(533, "stdout taken apart", ("import sys\nbuffer = sys.stdout.detach()", "print('after')"), Status.OK, check=says("after"), alive=True),
    case(534, "a stream over stdout that goes", ("import io, sys\nsys.stdout = io.TextIOWrapper(sys.stdout.buffer, encoding='utf-8')\nprint('first')", "print('second')"), Status.OK, check=says("second"), alive=True),
    case(535, "no stdout", ("import sys\ndel sys.stdout, sys.__stdout__, sys.stderr", "print('after')"), Status.OK, check=says("after"), alive=True),
    case(536, "stdout that raises", ("import sys\nclass S:\n    def write(self, t): raise OSError('full')\n    def flush(self): raise SystemExit(7)\nsys.stdout = S()", "print('after')"), Status.OK, check=says("after"), alive=True),
    case(537, "a file over descriptor 1", ("import os\nf = open('o', 'w')\nos.dup2(f.fileno(), 1)\nprint('hidden')", "print('seen')"), Status.OK, check=says("seen"), alive=True),
    case(538, "text that was stuck", ("import os\nos.close(1)\ntry: print('stuck')\nexcept OSError: pass", "print('second')"), Status.OK, check=lacks("stuck"), alive=True),
    case(539, "stdin closed", ("import sys, os\nsys.stdin.close(); os.close(0)", "input()"), Status.ERROR, check=says("EOFError", "no standard input"), alive=True),
    # Limits of its own, signals, directories.
    case(541, "no descriptors", ("import resource\nresource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))", _NEXT), Status.OK, check=_TWO, alive=True),
    case(542, "no descriptors says so", "import resource\nresource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))", Status.OK, check=says("open files", "restarted"), alive=False),
    case(543, "no descriptors for the moment", ("import resource\nresource.setrlimit(resource.RLIMIT_NOFILE, (3, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))", "len(open('x', 'w').name)"), Status.OK, check=holds("value", "1"), alive=True),
    case(544, "no memory", ("import resource\nresource.setrlimit(resource.RLIMIT_AS, (1, 1))", "len(bytearray(1 << 24))"), Status.OK, check=holds("value", "16777216"), alive=True),
    case(545, "no data", ("import resource\nresource.setrlimit(resource.RLIMIT_DATA, (1, 1))", "len(bytearray(1 << 24))"), Status.OK, check=holds("value", "16777216"), alive=True),
    case(546, "an alarm for the next one", ("import signal\nsignal.signal(signal.SIGALRM, lambda *a: 1 / 0)\nsignal.setitimer(signal.ITIMER_REAL, 0.02)", "import time\ntime.sleep(0.1)\n42"), Status.OK, check=_TWO, alive=True),
    case(547, "interrupts blocked for the next one", ("import signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())\nsignal.signal(2, signal.SIG_IGN)", "while True: pass"), Status.TIMEOUT, alive=True),
    case(548, "no working directory", ("import os, shutil\nshutil.rmtree(os.getcwd())", "len(open('x', 'w').name)"), Status.OK, check=holds("value", "1"), alive=True),
    case(549, "a directory below the feet", ("import os\nos.mkdir('d'); os.chdir('d'); os.rmdir('../d')", "len(open('x', 'w').name)"), Status.OK, check=holds("value", "1"), alive=True),
    case(550, "an event loop that is closed", ("import asyncio\nawait asyncio.sleep(0)\nasyncio.get_event_loop().close()", "import asyncio\nawait asyncio.sleep(0)\n42"), Status.OK, check=_TWO, time_s=4, alive=True),
    # What it says of itself.
    case(561, "notes of a wrong type", _reply('"notes": 7'), Status.PROTOCOL_LOST, Status.KILLED, alive=False),
    case(562, "notes of wrong types", _reply('"notes": [1, null]'), Status.PROTOCOL_LOST, Status.KILLED, alive=False),
    case(563, "a million notes", _reply('"notes": [' + '"n", ' * 20_000 + '"n"]'), Status.OK, Status.PROTOCOL_LOST, Status.KILLED, check=lambda result: "too long" if len(result.note or "") > 11_000 else None),
    case(564, "a restart of a wrong type", _reply('"restart": {}'), Status.PROTOCOL_LOST, Status.KILLED, alive=False),
    case(565, "a restart that nobody needs", (_reply('"restart": "' + "r" * 5_000 + '"'), _NEXT), Status.OK, check=_TWO, alive=True),
)  # fmt: skip
