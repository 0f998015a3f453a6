"""`python -m pice` is the `pice` command."""

from pice.cli import main

if __name__ == "__main__":
    main()
