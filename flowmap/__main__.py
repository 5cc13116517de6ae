"""`python -m flowmap` is `flowmap`, also where that is not on the PATH."""

from flowmap.cli.app import main

if __name__ == "__main__":
    main()
