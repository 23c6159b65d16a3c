import sys

if sys.version_info < (3, 11):  # noqa: UP036
    # One line instead of a traceback; in words that older versions can parse.
    sys.exit("error: Python 3.11 or newer is needed; run bash dev/setup.sh, then .venv/bin/python")
