"""Runs Python scripts for a test program, each in a fork of one process that has imported what they import.

    python tests/peers/host.py

Writes the path of a unix socket to its standard output, and ends when its standard input does. Each connection brings one script as a line
of JSON: `argv` as after `python`, `cwd`, `env` (what is added to this process's own) and `stdin`. The answer is JSON too: `status` (a
negative number is the signal that ended the script), `stdout`, `stderr`.

This process never has a second thread that computes, or locks that a fork finds held would stay so: OMP_NUM_THREADS is 1 before anything
is imported.
"""

import os

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import ast
import atexit
import contextlib
import gc
import importlib
import json
import pathlib
import runpy
import select
import shutil
import signal
import socket
import sys
import tempfile
import threading
import traceback


def host():
    """Waits for scripts; returns, in a process of its own, with one that is to be run."""
    os.setpgrp()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    folder = tempfile.mkdtemp(prefix="plumb-peers-")
    server = socket.socket(socket.AF_UNIX)
    server.bind(f"{folder}/socket")
    server.listen(64)
    print(server.getsockname(), flush=True)
    while sys.stdin not in (ready := select.select([server, sys.stdin], [], [])[0]):
        connection = server.accept()[0]
        with connection:
            request = json.loads(connection.makefile(encoding="utf-8").readline())
            task = [request[name] for name in ("argv", "cwd", "env")]
            # What cannot be read or imported, the script itself will say.
            with contextlib.suppress(Exception):
                import_for(*task)
            gc.freeze()
            if os.fork() == 0:
                server.close()
                serve(connection, request["stdin"])
                return task
    shutil.rmtree(folder)
    # With the scripts that nobody waits for any more.
    os.killpg(0, signal.SIGKILL)


def serve(connection, stdin):
    """Returns in the script's process; in this one answers when the script has ended."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    streams = [tempfile.TemporaryFile() for _ in range(3)]
    streams[0].write(stdin.encode())
    streams[0].seek(0)
    script = os.fork()
    if script == 0:
        connection.close()
        for number, stream in enumerate(streams):
            os.dup2(stream.fileno(), number)
        return
    status = os.waitstatus_to_exitcode(os.waitpid(script, 0)[1])
    answer = {"status": status}
    for name, stream in zip(("stdout", "stderr"), streams[1:]):
        stream.seek(0)
        answer[name] = stream.read().decode(errors="replace")
    connection.sendall(json.dumps(answer).encode())
    os._exit(0)


def run(argv, cwd, env):
    """What `python ARGV` does."""
    sys.dont_write_bytecode = True
    os.chdir(cwd)
    os.environ.update(env)
    first, *others = argv
    sys.path[:1] = folders(argv, cwd, env)
    if first == "-c":
        sys.path[0] = ""
        sys.argv = ["-c", *others[1:]]
        exec(compile(others[0], "<string>", "exec"), {"__name__": "__main__"})
    elif first == "-m":
        sys.argv = others
        runpy.run_module(others[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv = argv
        runpy.run_path(first, run_name="__main__")


def folders(argv, cwd, env):
    """Where a script's own modules are."""
    beside = cwd if argv[0] in ("-c", "-m") else os.path.dirname(os.path.join(cwd, argv[0]))
    return [beside, *filter(None, env.get("PYTHONPATH", "").split(os.pathsep))]


def import_for(argv, cwd, env):
    """Imports what a script imports, but for its own modules, of which it imports what these do."""
    where = folders(argv, cwd, env)
    if argv[0] == "-c":
        sources = [argv[1]]
    elif argv[0] == "-m":
        sources = [file.read_text(encoding="utf-8") for name in argv[1:] for file in own(name, where)]
    else:
        sources = [pathlib.Path(cwd, argv[0]).read_text(encoding="utf-8")]
    seen = set()
    while sources:
        for module, names in imported(sources.pop()).items():
            files = own(module, where)
            if not files:
                there = importlib.import_module(module)
                for name in names:
                    getattr(there, name, None)
            elif module not in seen:
                seen.add(module)
                sources += [file.read_text(encoding="utf-8") for file in files]


def own(module, where):
    """The files of a module in these folders."""
    for folder in where:
        path = pathlib.Path(folder, *module.split("."))
        if path.with_suffix(".py").is_file():
            return [path.with_suffix(".py")]
        if (path / "__init__.py").is_file():
            return sorted(path.glob("*.py"))
    return []


def imported(source):
    """The modules that a source imports and, of each, the names that it takes: some packages import these only when they are asked for."""
    found = {}
    tree = list(ast.walk(ast.parse(source)))
    for node in tree:
        if isinstance(node, ast.Import):
            for alias in node.names:
                found.setdefault(alias.name, set())
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.setdefault(node.module, set()).update(alias.name for alias in node.names)
    for node in tree:
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in found:
            found[node.value.id].add(node.attr)
    return found


def end(run, *task):
    """Ends as Python does after a script, but for freeing half a million objects one by one, each in a page that is copied for it."""
    status = 0
    try:
        run(*task)
    except SystemExit as exit:
        status = exit.code or 0
        if not isinstance(status, int):
            print(status, file=sys.stderr)
            status = 1
    except BaseException:  # noqa: BLE001
        traceback.print_exc()
        status = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status & 0xFF)


if __name__ == "__main__":
    end(run, *host())
