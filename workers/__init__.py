"""What runs in each forked child: boot, loader, accept gate, scoreboard, drain.

The folder stands at the top of the repository and is installed as `prefork.workers`.
A site-wide package named `workers` would break every user who has one, so importing
it under any other name is refused.
"""

if __name__ != "prefork.workers":
    raise ImportError(
        f"this folder is the package prefork.workers, not {__name__!r}: "
        "import prefork.workers (your working directory or PYTHONPATH puts it in the way)"
    )
