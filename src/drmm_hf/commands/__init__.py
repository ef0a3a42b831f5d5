"""The subcommands of `drmm`, a module each: `parser()` says what it takes, `run(arguments)` does it."""
