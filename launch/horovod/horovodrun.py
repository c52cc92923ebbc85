"""horovodrun, tied to the launcher that has started it: `LAUNCHER` and its own arguments.

It ends when that does, however that ends; it has its workers end when it ends itself.
"""

import sys

from launch.parent import die_with_parent

if __name__ == "__main__":
    die_with_parent(int(sys.argv.pop(1)))
    from horovod.runner.launch import run_commandline

    run_commandline()
