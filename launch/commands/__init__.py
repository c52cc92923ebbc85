"""The subcommands of `distrain`: what each takes, and what it does."""
