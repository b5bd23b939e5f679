"""The subcommands of `archc`, one module each; every module's `command` is what `cli.py` runs."""
