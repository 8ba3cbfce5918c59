"""What the command line does beyond the library: `doctor`, `explore` and `demo`.

Each stands for itself. This room imports whatever it shows, and nothing imports it but `cli`.
"""
