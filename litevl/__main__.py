"""`python -m litevl`: the same as the `litevl` command."""

from litevl.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
