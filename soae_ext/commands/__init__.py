"""The subcommands of `soae`, one module each."""
