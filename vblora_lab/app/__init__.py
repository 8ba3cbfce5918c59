"""What the command line does: a module for each command, with its options and what it runs.

`doctor` looks at the machine (its `checks` make a `diagnosis`), `explore` serves a page, `demo` walks
the whole road, `train`, `plan` and `convert` put the library behind options. This room imports
whatever it shows, torch only when a command runs, and nothing imports it but `cli`.
"""
