"""Entry point of `python -m clipvid <verb>`."""

from clipvid.commands import main

if __name__ == "__main__":
    main()
