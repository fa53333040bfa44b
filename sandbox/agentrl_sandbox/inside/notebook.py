"""What a notebook adds to plain Python: exit, quit, help, display, figures that become files, and errors that
say what a session does not have (a keyboard, a debugger, a network).

Standard library only; runs in the program's own process and knows nothing of cells or of the supervisor.
"""

from __future__ import annotations

import builtins
import errno
import os
import sys

NO_NETWORK = "there is no network in this sandbox"
NO_INPUT = (
    "there is no standard input in this session: nobody can answer input(). Write the value into the code"
)


class Leave:
    """`exit` and `quit`: end the program, keep the session."""

    def __init__(self, name):
        self.name = name

    def __repr__(self):
        return f"{self.name}() ends the program; the variables of the session stay"

    def __call__(self, code=None):
        """Ends the program with an exit code, as `sys.exit` does."""
        raise SystemExit(code)


class Help:
    """`help(object)`, printed at once; there is no keyboard to ask from."""

    def __repr__(self):
        return "help(object) prints the documentation of an object"

    def __call__(self, *arguments, **named):
        """Print what pydoc has to say."""
        if not arguments and not named:
            say("Nobody can answer questions here. Call help(object), for example help(str.join).")
            return
        import pydoc

        pydoc.help(*arguments, **named)


class AfterImport:
    """A finder that lets others find a module, and calls a function with it once it is imported."""

    def __init__(self, name, action):
        self.name, self.action = name, action

    def find_spec(self, name, path=None, target=None):
        """Of importlib.abc.MetaPathFinder."""
        if name != self.name:
            return None
        for finder in sys.meta_path:
            find = None if finder is self else getattr(finder, "find_spec", None)
            spec = find(name, path, target) if find else None
            if spec is not None:
                return self._with_action(spec)
        return None

    def _with_action(self, spec):
        execute = getattr(spec.loader, "exec_module", None)
        if execute is None:
            return spec

        def exec_module(module):
            execute(module)
            self.action(module)

        spec.loader.exec_module = exec_module
        return spec


class Notebook:
    """The additions to plain Python."""

    def __init__(self):
        self.directory = ""
        self.cell = self.saved = 0
        self.stdin = None
        builtins.exit, builtins.quit, builtins.help = Leave("exit"), Leave("quit"), Help()
        builtins.display = self.display
        self._input = builtins.input
        builtins.input = self.input
        sys.breakpointhook = lambda *_, **__: say("There is no debugger here: breakpoint() does nothing.")
        self._after_import("matplotlib.pyplot", self._take_over_pyplot)
        self._after_import("socket", name_the_missing_network)

    def begin_session(self, directory):
        """A session begins. `directory`: where figures go."""
        self.directory = directory
        share_libraries()

    def _after_import(self, name, action):
        if name in sys.modules:
            action(sys.modules[name])
        else:
            sys.meta_path.insert(0, AfterImport(name, action))

    def begin(self, cell, stdin):
        """A cell begins. `stdin`: the stream that nobody has filled, None when the cell was given input."""
        self.cell, self.saved, self.stdin = cell, 0, stdin

    def input(self, prompt="", /):
        """Read a line of the standard input that was given; prompts, as builtins.input does."""
        if self.stdin is not None and sys.stdin is self.stdin:
            raise EOFError(NO_INPUT)
        return self._input(prompt)

    def display(self, *values, **_options):
        """Print each value as the last expression of a cell is shown; a figure is saved."""
        for value in values:
            if hasattr(value, "savefig") and hasattr(value, "axes"):
                self.save(value)
            else:
                say(repr(value))

    def save(self, figure):
        """Write a figure to `figure_CELL_N.png` of the working directory and print its name."""
        self.saved += 1
        name = f"figure_{self.cell}_{self.saved}.png"
        figure.savefig(os.path.join(self.directory, name))
        say(f"{figure!r} saved as {name}")

    def save_open_figures(self):
        """Save and close what pyplot has open."""
        pyplot = sys.modules.get("matplotlib.pyplot")
        if pyplot is None or not pyplot.get_fignums():
            return
        try:
            for number in pyplot.get_fignums():
                self.save(pyplot.figure(number))
        finally:
            pyplot.close("all")  # also what could not be saved: it would fail again after every cell

    def _take_over_pyplot(self, pyplot):
        def show(*_, block=None, **__):
            if (
                block is not False
            ):  # plt.pause() shows so, many times over; the last state is saved in the end
                self.save_open_figures()

        def show_one(figure, *_, **__):
            self.save(figure)
            pyplot.close(figure)

        pyplot.show = show
        pyplot.Figure.show = show_one


def say(text):
    """Print a line; the program may have replaced `print`."""
    sys.stdout.write(f"{text}\n")


def share_libraries():
    """Let scripts that are started through sys.executable import what programs can."""
    standard = {os.path.dirname(os.__file__), os.path.join(os.path.dirname(os.__file__), "lib-dynload")}
    extra = [path for path in sys.path if path not in standard and not path.endswith(".zip")]
    if extra:
        os.environ["PYTHONPATH"] = os.pathsep.join(extra)


def name_the_missing_network(socket):
    """Add to the errors of names and sockets that there is no network: the kernel's words sound temporary."""

    def explain(function, error, numbers):
        def explained(*arguments, **named):
            try:
                return function(*arguments, **named)
            except error as failure:
                if failure.errno not in numbers:
                    raise
                number, words = numbers[failure.errno] or failure.args
                raise type(failure)(number, f"{words} ({NO_NETWORK})") from None

        explained.__name__, explained.__doc__ = function.__name__, function.__doc__
        return explained

    # Where the resolver may not even look it says "temporary failure", which invites to try again.
    none = (socket.EAI_NONAME, "Name or service not known")
    unknown = dict.fromkeys((socket.EAI_NONAME, socket.EAI_AGAIN, socket.EAI_FAIL), none)
    for name in ("getaddrinfo", "gethostbyname", "gethostbyname_ex", "gethostbyaddr", "getnameinfo"):
        setattr(socket, name, explain(getattr(socket, name), socket.gaierror, unknown))
    refused = dict.fromkeys((errno.EPERM, errno.EACCES, errno.EAFNOSUPPORT, errno.ENETUNREACH))
    socket.socket.__init__ = explain(socket.socket.__init__, OSError, refused)
