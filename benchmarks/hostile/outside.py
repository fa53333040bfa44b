"""Programs that reach for the host: its files, network, processes, environment."""

from agentrl_sandbox.result import Status

from .case import case

_CONNECT = """
import socket
for where in (('1.1.1.1', 80), ('169.254.169.254', 80), ('127.0.0.1', @PORT@)):
    try:
        s = socket.socket(); s.settimeout(0.2); s.connect(where); print('ESCAPED', where)
    except OSError as error:
        print(type(error).__name__)
"""
_READ = """
import os
for path in ('/etc/shadow', '/root/.ssh/id_rsa', '/root/.bashrc', '/var/run/secrets', '/proc/1/environ',
             '/proc/1/mem', '/proc/kcore', '/dev/mem', '/dev/vda', '/dev/sda', '@SECRET_PATH@'):
    try:
        data = open(path, 'rb').read(200)
        print('ESCAPED' if data else 'empty', path)  # engines cover some of these with /dev/null
    except (OSError, ValueError) as error:
        print(path, type(error).__name__)
"""
_WRITE = """
import os
for path in ('/etc/x', '/usr/x', '/usr/bin/x', '/x', '/var/x', '/root/x', '/proc/sys/kernel/core_pattern',
             '/driver/supervisor.py', '/dev/x', '@PLANTED@', os.__file__):
    try:
        open(path, 'a').write('x')
        print('ESCAPED', path)
    except OSError as error:
        print(path, type(error).__name__)
"""
_UNIX = """
import socket
for where in ('/var/run/docker.sock', '/run/dbus/system_bus_socket', '@ABSTRACT@'):
    try:
        s = socket.socket(socket.AF_UNIX); s.settimeout(0.2); s.connect(where); print('ESCAPED', where)
    except OSError as error:
        print(type(error).__name__)
"""
_KILL = """
import os
for pid in (@PID@, os.getppid(), 1):
    try:
        os.kill(pid, 15 if pid == @PID@ else 9)
        if pid == @PID@: print('ESCAPED', pid)
    except OSError as error:
        print(type(error).__name__)
try:
    os.kill(-1, 9)
except OSError as error:
    print(type(error).__name__)
"""
_PTRACE = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
for pid in (1, os.getppid(), @PID@):
    if libc.ptrace(16, pid, 0, 0) == 0: print('ESCAPED ptrace', pid)
    buffer = ctypes.create_string_buffer(64)
    class V(ctypes.Structure):
        _fields_ = [('a', ctypes.c_void_p), ('n', ctypes.c_size_t)]
    mine, theirs = V(ctypes.addressof(buffer), 64), V(0x400000, 64)
    if libc.process_vm_readv(pid, ctypes.byref(mine), 1, ctypes.byref(theirs), 1, 0) > 0: print('ESCAPED vm')
    try:
        open(f'/proc/{pid}/mem', 'rb+').close(); print('ESCAPED mem', pid)
    except OSError:
        pass
"""
_PROC = """
import os
try:
    names = os.listdir('/proc')
except OSError:
    names = []
for name in names:
    if not name.isdigit(): continue
    try:
        line = open(f'/proc/{name}/cmdline', 'rb').read()
    except OSError:
        continue
    if b'pytest' in line or b'sleep\\x0060' in line: print('ESCAPED', line)
for path in ('/proc/@PID@/cmdline', '/proc/@PID@/environ', '/proc/@PID@/root/etc/passwd'):
    try:
        open(path, 'rb').read(1); print('ESCAPED', path)
    except OSError:
        pass
"""
_OTHERS = """
import os
for top in ('/tmp', '/dev/shm', '/work', '/var/tmp', '/run'):
    for path, directories, names in os.walk(top):
        for name in names:
            if name == 'neighbour-file': print('ESCAPED', path, name)
try:
    for name in os.listdir(os.path.dirname(os.path.dirname(os.getcwd()))):
        place = os.path.join(os.path.dirname(os.path.dirname(os.getcwd())), name, 'work', 'neighbour-file')
        if os.path.exists(place):
            try:
                open(place).read(); print('ESCAPED')
            except OSError: pass
except OSError: pass
"""
_DAEMON = """
import os, time
if os.fork() == 0:
    try:
        os.setsid()
    except OSError:
        pass
    if os.fork() == 0:
        for fd in range(0, 64):
            try: os.close(fd)
            except OSError: pass
        time.sleep(1000)
    os._exit(0)
os.wait()
print('daemon runs')
"""

CASES = (
    case(12, "environment", "import os\nprint(dict(os.environ))\nprint(open('/proc/self/environ').read())"),
    case(13, "secrets of the host", _READ, Status.OK),
    case(14, "connect out", _CONNECT, Status.OK),
    case(15, "name lookup", "import socket\nsocket.getaddrinfo('example.com', 80)", Status.ERROR),
    case(16, "sockets of the host", _UNIX, Status.OK),
    case(17, "write to the host", _WRITE, Status.OK),
    case(18, "kill others", _KILL, Status.OK, Status.ERROR, Status.PROTOCOL_LOST, Status.KILLED),
    case(19, "trace others", _PTRACE, Status.OK),
    case(20, "look at processes of the host", _PROC, Status.OK),
    case(22, "daemon", _DAEMON, Status.OK, time_s=3),
    case(81, "files of another session", _OTHERS, Status.OK, time_s=3),
    case(
        82,
        "state of another session",
        "import builtins\nprint('ESCAPED') if hasattr(builtins, 'NEIGHBOUR') else print('nothing')",
        Status.OK,
    ),
    case(
        88,
        "packages of the next user",
        "import os, sys\nfor path in sys.path:\n    try:\n        open(os.path.join(path, 'sitecustomize.py'), 'w')"
        "\n        print('ESCAPED', path)\n    except OSError as error:\n        print(type(error).__name__)",
        Status.OK,
    ),
    case(
        88.5,
        "packages of the host",
        "import sys, glob\nsys.path += glob.glob('/usr/lib/python3*/dist-packages') + "
        "glob.glob('/usr/local/lib/python3*/*-packages')\n"
        "for name in ('agentrl', 'agentrl_envs', 'agentrl_sandbox', 'torch', 'math_verify', 'pytest'):\n"
        "    try:\n        __import__(name)\n        print('ESCAPED', name)\n    except ImportError:\n        pass",
        Status.OK,
    ),
    case(
        89,
        "preloaded library",
        "import os, subprocess\nopen('x.so', 'w').write('no')\n"
        "out = subprocess.run(['/bin/ls', '/'], env={'LD_PRELOAD': os.path.abspath('x.so')}, capture_output=True)\n"
        "print(out.returncode)",
        time_s=3,
    ),
    case(66, "subprocess", "import os\nos.system('ls / > /dev/null; id > /dev/null')", time_s=3),
    case(
        67,
        "pip install",
        "import subprocess, sys\nout = subprocess.run([sys.executable, '-m', 'pip', 'install', 'six'], "
        "capture_output=True, text=True)\nprint(out.returncode)\nprint('ESCAPED') if out.returncode == 0 else None",
        time_s=8,
    ),
)
