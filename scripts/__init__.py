import nanochat  # noqa: F401  # checks the version of Python
