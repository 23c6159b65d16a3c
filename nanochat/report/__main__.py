"""python -m nanochat.report"""

from nanochat.configurator import run
from nanochat.report import main

if __name__ == "__main__":
    run(main)
