"""Untrusted Python in confined processes; `nanochat.execution` is the interface to it.

    host ── pool ──(sockets)── fork server ── worker, worker, ...

The fork server is a small isolated interpreter. It forks one worker per program, which confines
itself (`policy`: resource limits, Landlock, seccomp), says so, executes one job and ends. All
modules but `pool` are imported there, so this package uses nothing but the standard library.
"""
